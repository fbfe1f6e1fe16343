/* Checkpoints that are Python pickles (.bin, .pth, .pt): never read, since a pickle is a program, but recognised. */
#ifndef COMBA_MODEL_PICKLE_H
#define COMBA_MODEL_PICKLE_H

#include <stdbool.h>
#include <stddef.h>

#include "core/status.h"

/* Whether bytes that are no safetensors file are a pickle, bare or in a zip file as PyTorch writes it. */
bool comba_pickle_is(const void *data, size_t size);
/* COMBA_ERROR_FORMAT with the command that makes a safetensors file of it. */
comba_status comba_pickle_fail(const char *path);
/* The same, where the folder holds a file by the name of a pickle; else COMBA_OK. */
comba_status comba_pickle_fail_folder(const char *folder);

#endif
