/* Pictures in bytes on their way to a plan's pixel values: they are copied beside the work that is queued already, into one of
 * two places by turns, and normalised, cropped and mirrored where the model runs. */
#ifndef COMBA_MODEL_PICTURES_H
#define COMBA_MODEL_PICTURES_H

#include "model/model_private.h"

/* Fills in plan->pixel_values; makes plan->feed at first, and again for another normalisation. */
comba_status comba_pictures_write(comba_plan *plan, const comba_backend *backend, const comba_pictures *pictures);
void comba_picture_feed_free(comba_picture_feed *feed);

#endif
