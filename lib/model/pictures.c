#include "model/pictures.h"

#include <stdlib.h>
#include <string.h>

#include "ops/ops.h"

enum { PLACES = 2 };

struct comba_picture_feed {
  comba_prepare_pictures_attributes attributes;
  comba_graph *graph[PLACES];
  comba_tensor *pictures[PLACES], *crops[PLACES];
  int next; /* place */
};

void comba_picture_feed_free(comba_picture_feed *feed) {
  if (!feed) return;
  for (int i = 0; i < PLACES; i++) comba_graph_free(feed->graph[i]);
  free(feed);
}

/* A graph of one node for each place; both write what the plan's graph reads. */
static comba_status create(comba_picture_feed **out, const comba_backend *backend, const comba_tensor *pixel_values,
                           const comba_prepare_pictures_attributes *attributes) {
  const comba_shape *shape = &pixel_values->shape;
  const int64_t words = (comba_shape_elements(shape) + 3) / 4;
  comba_status status = COMBA_OK;
  comba_picture_feed *feed = comba_allocate(sizeof *feed, "a model's pictures");
  if (!feed) return COMBA_ERROR_MEMORY;
  feed->attributes = *attributes;
  for (int i = 0; i < PLACES; i++) {
    COMBA_TRY(comba_graph_create(&feed->graph[i], backend, 0));
    comba_graph *graph = feed->graph[i];
    feed->pictures[i] = comba_graph_input(graph, "pictures", COMBA_INDEX, COMBA_SHAPE(words));
    feed->crops[i] = comba_graph_input(graph, "crops", COMBA_INDEX, COMBA_SHAPE(shape->size[0], 3));
    comba_tensor *prepared = comba_prepare_pictures(graph, feed->pictures[i], feed->crops[i], *attributes);
    comba_graph_store(graph, prepared,
                      comba_graph_external(graph, "pixel_values", COMBA_ACTIVATION, *shape, pixel_values->data));
    COMBA_TRY(comba_graph_plan(graph));
  }
  /* the places must be in order before something is copied there beside the queue */
  if (!backend->memory->is_host) COMBA_TRY(backend->memory->read(NULL, NULL, 0));
  *out = feed;
  return COMBA_OK;
cleanup:
  comba_picture_feed_free(feed);
  return status;
}

comba_status comba_pictures_write(comba_plan *plan, const comba_backend *backend, const comba_pictures *pictures) {
  const comba_shape *shape = &plan->pixel_values->shape;
  comba_prepare_pictures_attributes attributes;
  comba_status status = COMBA_OK;
  memset(&attributes, 0, sizeof attributes);
  attributes.channels = shape->size[1];
  attributes.side = shape->size[2];
  memcpy(attributes.scale, pictures->scale, (size_t)shape->size[1] * sizeof(float));
  memcpy(attributes.shift, pictures->shift, (size_t)shape->size[1] * sizeof(float));
  if (!plan->feed || memcmp(&plan->feed->attributes, &attributes, sizeof attributes)) {
    comba_picture_feed_free(plan->feed);
    plan->feed = NULL;
    COMBA_TRY(create(&plan->feed, backend, plan->pixel_values, &attributes));
  }
  comba_picture_feed *feed = plan->feed;
  const int place = feed->next;
  feed->next = (place + 1) % PLACES;
  COMBA_TRY(
      backend->memory->write_ahead(feed->pictures[place]->data, pictures->pixels, (size_t)comba_shape_elements(shape)));
  COMBA_TRY(comba_tensor_write(feed->graph[place], feed->crops[place], pictures->crops));
  comba_graph_forward(feed->graph[place]);
cleanup:
  return status;
}
