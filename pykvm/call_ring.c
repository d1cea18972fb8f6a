/* The rings' thread; see call_ring.h. Every number in a ring is the guest's claim, and may change under us. */
#include "call_ring.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#define LAST_CALLS_MAX (CALL_RINGS_MAX * CALL_RING_CALLS_MAX) /* what all rings can hold at once */

enum step { NOTHING, DID_SOME, LEAVE }; /* what a look at a ring came to */

static void set_outside(struct exit_loop *loop, uint64_t value)
{
    __atomic_store_n(&loop->outside, value, __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* first that, then the time: who reads the trace relies on it */
}

/* From here on the trace has a record of something that happens now. 0: its ring is full. */
static int open_record(struct call_worker *worker)
{
    struct exit_loop *loop = &worker->loop;
    if (!loop->outside) {
        loop->enter_tsc = tsc_now();
        set_outside(loop, 1);
        loop->exit_tsc = tsc_now();
    }
    return record_open_call(loop, worker->current);
}

static void close_record(struct call_worker *worker)
{
    record_close(&worker->loop, tsc_now(), RECORD_DONE);
    set_outside(&worker->loop, 0);
}

/* ---- one call ------------------------------------------------------------------------------------- */

/* The answer to `call`: first where the guest looks for it, then that it is there. */
static void finish_call(struct call_worker *worker)
{
    struct call_ring_host *ring = &worker->rings[worker->current];
    struct hypercall *at = &ring->calls[ring->done & (ring->capacity - 1)];
    __atomic_store_n(&at->result, worker->call.result, __ATOMIC_RELAXED);
    ring->done++;
    ring->owes_interrupt = ring->flags & CALL_RING_INTERRUPT;
    __atomic_store_n(&ring->header->tail, ring->done, __ATOMIC_RELEASE);
    worker->has_call = 0;
    close_record(worker);
}

/* Python has done `call`. */
void call_worker_answer(struct call_worker *worker, int64_t result)
{
    struct trace_record *record = record_current(&worker->loop);
    worker->call.result = result;
    if (record)
        record_call(record, &worker->call, RECORD_RESULT);
    finish_call(worker);
}

/* 0, or the enum worker_result to leave with. */
static int do_one_call(struct call_worker *worker)
{
    struct call_ring_host *ring = &worker->rings[worker->current];
    if (!worker->has_call) {
        if (!open_record(worker))
            return WORKER_TRACE_FULL;
        memcpy(&worker->call, &ring->calls[ring->done & (ring->capacity - 1)], sizeof worker->call);
        __asm__ volatile("" : : : "memory"); /* what was copied is what is looked at */
        worker->has_call = 1;
        worker->taken++;
    }
    switch (fast_call(worker->shared, record_current(&worker->loop), &worker->call)) {
    case ANSWERED:
        finish_call(worker);
        return 0;
    case RING_IS_FULL:
        return WORKER_CONSOLE_FULL;
    default:
        return WORKER_CALL;
    }
}

/* ---- one ring ------------------------------------------------------------------------------------- */

/* More calls than there is room for: the ring can't be believed any more. Told in the ring and in the trace. */
static int leave_alone(struct call_worker *worker, uint64_t head)
{
    struct call_ring_host *ring = &worker->rings[worker->current];
    struct hypercall told = {.number = HC_NOTHING, .result = HC_EINVAL, .arg = {ring->gpa, head}};
    struct trace_record *record;
    if (!open_record(worker))
        return WORKER_TRACE_FULL;
    if ((record = record_current(&worker->loop)))
        record_call(record, &told, RECORD_RESULT);
    close_record(worker);
    ring->is_damaged = 1;
    __atomic_store_n(&ring->header->error, HC_EINVAL, __ATOMIC_RELEASE);
    return 0;
}

static void interrupt(struct call_worker *worker, struct call_ring_host *ring)
{
    uint64_t one = 1;
    ring->owes_interrupt = 0;
    if (worker->interrupt_fd >= 0)
        (void)!write(worker->interrupt_fd, &one, sizeof one);
}

/* Serve what the current ring holds now; what comes meanwhile waits for the next turn. */
static enum step serve_ring(struct call_worker *worker, int *result)
{
    struct call_ring_host *ring = &worker->rings[worker->current];
    uint64_t head = __atomic_load_n(&ring->header->head, __ATOMIC_ACQUIRE);
    if (ring->owes_interrupt && head == ring->done && !worker->has_call) /* the last one was Python's */
        interrupt(worker, ring);
    if (ring->is_damaged || (head == ring->done && !worker->has_call))
        return NOTHING;
    if (head - ring->done > ring->capacity && !worker->has_call)
        return (*result = leave_alone(worker, head)) ? LEAVE : DID_SOME;
    do
        if ((*result = do_one_call(worker)))
            return LEAVE;
    while (ring->done != head && head - ring->done <= ring->capacity);
    if (ring->owes_interrupt)
        interrupt(worker, ring);
    return DID_SOME;
}

/* ---- all rings ------------------------------------------------------------------------------------ */

static void ask_for_doorbell(struct call_worker *worker, uint32_t count, uint32_t wanted)
{
    for (uint32_t i = 0; i < count; i++)
        __atomic_store_n(&worker->rings[i].header->wants_doorbell, wanted, __ATOMIC_SEQ_CST);
}

static int has_work(struct call_worker *worker, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (!worker->rings[i].is_damaged &&
            __atomic_load_n(&worker->rings[i].header->head, __ATOMIC_SEQ_CST) != worker->rings[i].done)
            return 1;
    return 0;
}

static uint32_t ring_count(struct call_worker *worker)
{
    uint32_t count = __atomic_load_n(&worker->ring_count, __ATOMIC_ACQUIRE);
    return count < CALL_RINGS_MAX ? count : CALL_RINGS_MAX;
}

/* Sleep until the doorbell rings; not at all if there is something in a ring. 0, or an errno. */
static int sleep_until_doorbell(struct call_worker *worker)
{
    uint32_t count = ring_count(worker);
    uint64_t rung;
    int failed = 0;
    ask_for_doorbell(worker, count, 1);
    if (!has_work(worker, count) && !__atomic_load_n(&worker->stop, __ATOMIC_SEQ_CST)) {
        if (read(worker->doorbell_fd, &rung, sizeof rung) < 0 && errno != EINTR && errno != EAGAIN)
            failed = errno;
        worker->wakes++;
    }
    ask_for_doorbell(worker, count, 0);
    return failed;
}

/* Give each ring a turn, beginning behind the last one that had it. */
static enum step serve_all(struct call_worker *worker, int *result)
{
    uint32_t count = ring_count(worker);
    enum step found = NOTHING;
    for (uint32_t i = 0; i < count; i++) {
        enum step step;
        if (!worker->has_call) /* or its ring goes on */
            worker->current = (worker->current + 1) % count;
        step = serve_ring(worker, result);
        if (step == LEAVE)
            return LEAVE;
        found = step == DID_SOME ? DID_SOME : found;
    }
    return found;
}

/* Whether the thread was asked to stop, and has done since then what all rings can have held. A call may
 * write into a ring, and so feed it for ever. */
static int is_over(struct call_worker *worker)
{
    return __atomic_load_n(&worker->stop, __ATOMIC_SEQ_CST) && !worker->has_call &&
           worker->taken - worker->stop_from > LAST_CALLS_MAX;
}

/* Serve all rings in turn until Python is needed: an enum worker_result. In one thread at a time. */
int call_worker_run(struct call_worker *worker)
{
    uint64_t last = tsc_now();
    for (;;) {
        int result = 0;
        enum step step;
        if (is_over(worker))
            return WORKER_STOPPED;
        step = serve_all(worker, &result);
        if (step == LEAVE)
            return result;
        if (step == DID_SOME) {
            last = tsc_now();
            continue;
        }
        if (__atomic_load_n(&worker->stop, __ATOMIC_SEQ_CST))
            return WORKER_STOPPED;
        if (tsc_now() - last < worker->look_ticks) {
            __builtin_ia32_pause();
            continue;
        }
        if ((worker->loop.error = sleep_until_doorbell(worker)))
            return WORKER_ERROR;
        last = tsc_now();
    }
}

/* Have the thread return WORKER_STOPPED once the rings are empty; from any thread. */
void call_worker_stop(struct call_worker *worker)
{
    uint64_t one = 1;
    worker->stop_from = __atomic_load_n(&worker->taken, __ATOMIC_RELAXED);
    __atomic_store_n(&worker->stop, 1, __ATOMIC_SEQ_CST);
    (void)!write(worker->doorbell_fd, &one, sizeof one);
}
