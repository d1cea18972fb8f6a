/* The rings' thread: serves hypercalls that guests put into rings in their memory; see hypercall_abi.h. */
#ifndef PYKVM_CALL_RING_H
#define PYKVM_CALL_RING_H

#include <stdint.h>

#include "hypercall_abi.h"
#include "vcpu_run.h"

/* Why call_worker_run() returned. */
enum worker_result {
    WORKER_STOPPED = 0,      /* it was asked to, and the rings are empty or fill themselves again and again */
    WORKER_CALL = 1,         /* Python does call_worker.call, then call_worker_answer() */
    WORKER_TRACE_FULL = 2,   /* drain the trace ring, then run again: the call is kept */
    WORKER_CONSOLE_FULL = 3, /* drain the console's ring, then run again: the call is kept */
    WORKER_ERROR = 4,        /* the doorbell's fd failed: `loop.error` is the errno */
};

/* The host's half of one ring. The guest may write anything anywhere in its own half, at any time. */
struct call_ring_host {
    struct call_ring *header; /* in guest memory, 8-byte aligned */
    struct hypercall *calls;  /* `capacity` of them, in guest memory */
    uint64_t capacity;        /* as it was when the ring was announced */
    uint64_t gpa;
    uint64_t done; /* our own count: `tail` is only told */
    uint32_t flags; /* CALL_RING_… */
    uint32_t is_damaged;
    uint32_t owes_interrupt; /* calls are done, and the guest has not been told */
    uint32_t reserved;
};

/* One per machine: the doorbell, the rings, and what their thread is about. */
struct call_worker {
    struct loop_shared *shared;
    struct exit_loop loop; /* for trace records alone: there is no vCPU and no kvm_run in it */
    int32_t doorbell_fd;   /* an eventfd: the guest's doorbell, and ours to stop the thread */
    int32_t interrupt_fd;  /* an eventfd, or -1 */
    uint32_t stop;
    uint32_t ring_count; /* grows while the thread runs */
    uint32_t current;    /* the ring that the thread is at */
    uint32_t has_call;   /* `call` has been taken out of it, and is not done */
    uint64_t look_ticks; /* how long the thread looks for more by itself before it sleeps */
    uint64_t taken;      /* calls */
    uint64_t stop_from;  /* `taken` when it was asked to stop */
    uint64_t wakes;      /* returns from sleep */
    struct hypercall call;
    struct call_ring_host rings[CALL_RINGS_MAX];
};

int call_worker_run(struct call_worker *worker);
void call_worker_answer(struct call_worker *worker, int64_t result);
void call_worker_stop(struct call_worker *worker);

#endif
