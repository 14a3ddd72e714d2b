/* Stands for libedgetpu: lists devices as edgetpu_c.h declares it, and is a TFLite external delegate that takes the
 * operator edgetpu-custom-op. On its devices that operator adds 1 to each byte.
 *
 * Environment: STANDIN_DEVICES are the devices there ("usb,usb,pci"), STANDIN_LOST is one that fails ("usb:0").
 * Only as much of TensorFlow Lite's C interface is declared as is used here; the order of fields is its binary
 * interface, "semi-ABI stable" in the words of its common.h. */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OK = 0, FAILED = 1 };

typedef struct { int size; int data[]; } Ints;
typedef struct { float scale; int32_t zero_point; } Params;
typedef struct {
  int type;
  void *data;
  Ints *dims;
  Params params;
  int allocation_type;
  size_t bytes;
  const void *allocation;
  const char *name;
  void *delegate;
  int buffer_handle;
  bool data_is_stale, is_variable;
  struct { int type; void *params; } quantization;
  void *sparsity;
  const Ints *dims_signature;
} Tensor;

typedef struct {
  Ints *inputs, *outputs, *intermediates, *temporaries;
  void *user_data, *builtin_data;
} Node;

typedef struct Context Context;
typedef struct Registration Registration;
typedef struct Delegate Delegate;

struct Registration {
  void *(*init)(Context *, const char *, size_t);
  void (*free)(Context *, void *);
  int (*prepare)(Context *, Node *);
  int (*invoke)(Context *, Node *);
  const char *(*profiling_string)(const Context *, const Node *);
  int32_t builtin_code;
  const char *custom_name;
  int version;
  void *external, *async;
  uint64_t inplace;
};

struct Delegate {
  void *data;
  int (*prepare)(Context *, Delegate *);
  int (*copy_from)(Context *, Delegate *, int, Tensor *);
  int (*copy_to)(Context *, Delegate *, int, Tensor *);
  void (*free_handle)(Context *, Delegate *, int *);
  int64_t flags;
  void *opaque;
};

struct Context {
  size_t tensors_size;
  int (*plan)(Context *, Ints **);
  Tensor *tensors;
  void *impl;
  int (*resize)(Context *, Tensor *, Ints *);
  void (*report)(Context *, const char *, ...);
  int (*add)(Context *, int, int *);
  int (*node)(Context *, int, Node **, Registration **);
  int (*replace)(Context *, Registration, const Ints *, Delegate *);
};

typedef struct { Delegate *delegate; Ints *nodes, *inputs, *outputs; } DelegateParams;
typedef struct { char device[16]; char others[64]; } Settings;

static int live;  /* delegates that are open */
static char last[80];

int standin_live(void) { return live; }
const char *standin_options(void) { return last; }

/* "usb:1" is there where STANDIN_DEVICES has at least two of usb. */
static bool is_there(const char *device) {
  const char *list = getenv("STANDIN_DEVICES");
  int wanted = atoi(device + 4), seen = 0;
  for (; list != NULL && *list; list += strcspn(list, ","), list += *list == ',')
    if (strncmp(list, device, 3) == 0 && seen++ == wanted) return true;
  return false;
}

static void *init(Context *context, const char *buffer, size_t length) {
  (void)context, (void)length;
  return ((const DelegateParams *)buffer)->delegate->data;
}

static int prepare_kernel(Context *context, Node *node) {
  (void)context, (void)node;
  return OK;
}

static int invoke(Context *context, Node *node) {
  const Settings *settings = node->user_data;
  const char *lost = getenv("STANDIN_LOST");
  if ((lost != NULL && strcmp(lost, settings->device) == 0) || !is_there(settings->device)) {
    context->report(context, "%s: USB transfer error 5", settings->device);
    return FAILED;
  }
  const Tensor *in = &context->tensors[node->inputs->data[0]];
  for (int i = 0; i < node->outputs->size; i++) {
    Tensor *out = &context->tensors[node->outputs->data[i]];
    for (size_t b = 0; b < out->bytes; b++) ((int8_t *)out->data)[b] = ((int8_t *)in->data)[b % in->bytes] + 1;
  }
  return OK;
}

static int prepare(Context *context, Delegate *delegate) {
  Registration kernel = {.init = init, .prepare = prepare_kernel, .invoke = invoke,
                         .custom_name = "StandInEdgeTpu", .version = 1};
  Ints *plan;
  if (context->plan(context, &plan) != OK) return FAILED;
  Ints *taken = malloc(sizeof(Ints) + sizeof(int) * (size_t)plan->size);
  taken->size = 0;
  for (int i = 0; i < plan->size; i++) {
    Node *node;
    Registration *registration;
    if (context->node(context, plan->data[i], &node, &registration) != OK) continue;
    if (registration->custom_name != NULL && strcmp(registration->custom_name, "edgetpu-custom-op") == 0)
      taken->data[taken->size++] = plan->data[i];
  }
  int status = context->replace(context, kernel, taken, delegate);
  free(taken);
  return status;
}

Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, void (*report)(const char *)) {
  Settings *settings = calloc(1, sizeof *settings);
  last[0] = 0;
  for (size_t i = 0; i < count; i++) {
    snprintf(last + strlen(last), sizeof last - strlen(last), "%s=%s;", keys[i], values[i]);
    if (strcmp(keys[i], "device") == 0) snprintf(settings->device, sizeof settings->device, "%s", values[i]);
  }
  if (!is_there(settings->device)) {
    report("Failed to open ");
    report(settings->device);
    free(settings);
    return NULL;
  }
  Delegate *delegate = calloc(1, sizeof *delegate);
  delegate->data = settings;
  delegate->prepare = prepare;
  delegate->flags = 1; /* kTfLiteDelegateFlagsAllowDynamicTensors: or the operator must be known before it is taken */
  live++;
  return delegate;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) {
  if (delegate == NULL) return; /* as TFLite calls it where none was created */
  free(delegate->data);
  free(delegate);
  live--;
}

struct edgetpu_device { int type; const char *path; };

struct edgetpu_device *edgetpu_list_devices(size_t *count) {
  struct edgetpu_device *devices = calloc(16, sizeof *devices);
  const char *list = getenv("STANDIN_DEVICES");
  *count = 0;
  for (; list != NULL && *list && *count < 16; list += strcspn(list, ","), list += *list == ',') {
    devices[*count].type = strncmp(list, "usb", 3) == 0;
    devices[(*count)++].path = "/dev/none";
  }
  if (*count > 0) return devices;
  free(devices);
  return NULL;
}

void edgetpu_free_devices(struct edgetpu_device *devices) { free(devices); }

const char *edgetpu_version(void) { return "BuildLabel(STANDIN), RuntimeVersion(14)"; }
