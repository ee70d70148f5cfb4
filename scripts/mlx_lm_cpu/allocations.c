/* Writes down every allocation of mlx's CPU allocator: what was asked for, and in which order it came and went.
 *
 * The allocator is one object with virtual functions; `watch` puts two of them behind ours. Built and loaded by
 * trace.py. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  uintptr_t buffer;
  int64_t bytes; /* -1: it was freed */
} Event;
typedef void *(*Allocate)(void *, size_t);
typedef void (*Release)(void *, void *);

enum { MOST = 4000000, FUNCTIONS = 16 };
static Event *events;
static size_t count;
static Allocate allocate;
static Release release;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void note(void *buffer, int64_t bytes) {
  if (count < MOST) events[count++] = (Event){(uintptr_t)buffer, bytes};
}

static void *allocated(void *self, size_t bytes) {
  pthread_mutex_lock(&lock);
  void *buffer = allocate(self, bytes);
  note(buffer, (int64_t)bytes);
  pthread_mutex_unlock(&lock);
  return buffer;
}

static void released(void *self, void *buffer) {
  pthread_mutex_lock(&lock);
  note(buffer, -1);
  release(self, buffer);
  pthread_mutex_unlock(&lock);
}

/* The allocator's address; its table holds malloc and free first (mlx/allocator.h). */
void watch(void *allocator) {
  void **table = *(void ***)allocator, **copy = malloc(FUNCTIONS * sizeof(void *));
  memcpy(copy, table - 2, FUNCTIONS * sizeof(void *));
  allocate = (Allocate)copy[2], release = (Release)copy[3];
  copy[2] = (void *)allocated, copy[3] = (void *)released;
  events = malloc(MOST * sizeof(Event));
  *(void ***)allocator = copy + 2;
}

void start(void) { count = 0; }
size_t events_so_far(void) { return count; }
const Event *all(void) { return events; }
