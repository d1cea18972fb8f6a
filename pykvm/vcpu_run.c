/* The exit loop: KVM_RUN, one trace record per exit, the fast ports. No policy, no allocation, no printing.
 *
 * It runs without Python's lock, so nothing here touches a Python object. Everything that comes from the
 * guest (addresses, lengths, data) is a claim and is checked before use; structs in guest RAM are copied
 * once, because another vCPU may change them while we look.
 */
#define _GNU_SOURCE
#include "vcpu_run.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "hypercall_abi.h"
#include "syscall_tap.h"

#ifndef ENTER_GUEST /* the sanitizer test puts an invented kernel here */
#define ENTER_GUEST(fd) ioctl(fd, KVM_RUN, 0)
#endif

#define NS 1000000000u
#define EXCEPTION_DB 1
#define DR6_BREAKPOINTS 0xf
#define DR6_BS (1 << 14)

uint64_t tsc_now(void)
{
    return __builtin_ia32_rdtsc();
}

/* ---- fast ports ---------------------------------------------------------------------------------- */

static enum answer do_fast_port(struct exit_loop *loop, struct trace_record *record, struct fast_port *fast)
{
    struct kvm_run *run = loop->run;
    uint64_t size, rings = run->io.count;
    const uint8_t *data = io_bytes(loop, &size);
    uint32_t gpa;
    if (!data || run->io.direction != KVM_EXIT_IO_OUT)
        return FOR_PYTHON;
    switch (fast->verb) {
    case VERB_DISCARD:
        return ANSWERED;
    case VERB_APPEND:
        if (run->io.size != 1 || size > fast->ring->capacity)
            return FOR_PYTHON;
        return byte_ring_append(fast->ring, data, size) ? ANSWERED : RING_IS_FULL;
    case VERB_DOORBELL:
        if (fast->doorbell_fd >= 0)
            (void)!write(fast->doorbell_fd, &rings, sizeof rings);
        return ANSWERED;
    case VERB_HYPERCALL:
        if (run->io.size != sizeof gpa || run->io.count != 1)
            return FOR_PYTHON;
        memcpy(&gpa, data, sizeof gpa);
        return fast_call_at(loop->shared, record, gpa);
    case VERB_TAP:
        return tap_answer(loop) ? ANSWERED : FOR_PYTHON;
    default:
        return FOR_PYTHON;
    }
}

/* Whether the exit is a single step that nobody but the trace asked for. A breakpoint is none. */
static int is_counted_step(const struct exit_loop *loop)
{
    return loop->step_period && loop->run->exit_reason == KVM_EXIT_DEBUG &&
           loop->run->debug.arch.exception == EXCEPTION_DB && loop->run->debug.arch.dr6 & DR6_BS &&
           !(loop->run->debug.arch.dr6 & DR6_BREAKPOINTS);
}

static enum answer answer_exit(struct exit_loop *loop, struct trace_record *record)
{
    struct kvm_run *run = loop->run;
    struct fast_port *fast;
    enum answer answer;
    uint8_t index;
    if (is_counted_step(loop)) {
        if (record)
            record->verb = VERB_STEP;
        return ANSWERED;
    }
    if (run->exit_reason == KVM_EXIT_DEBUG && loop->shared->tap && tap_answer(loop)) {
        loop->fast_exits++;
        if (record)
            record->verb = VERB_TAP;
        return ANSWERED;
    }
    if (run->exit_reason == KVM_EXIT_MMIO || run->exit_reason == KVM_EXIT_HYPERCALL) {
        answer = fast_call_exit(loop, record);
        loop->fast_exits += answer == ANSWERED;
        if (answer == ANSWERED && record)
            record->verb = VERB_HYPERCALL;
        return answer;
    }
    if (run->exit_reason != KVM_EXIT_IO)
        return FOR_PYTHON;
    index = loop->shared->fast_index[run->io.port];
    if (!index || index >= FAST_PORTS_MAX)
        return FOR_PYTHON;
    fast = &loop->shared->fast_ports[index];
    answer = do_fast_port(loop, record, fast);
    if (answer == ANSWERED) {
        loop->by_fast_port[index] += run->io.count;
        loop->fast_exits++;
        if (record)
            record->verb = (uint8_t)fast->verb;
    }
    return answer;
}

/* ---- kicks --------------------------------------------------------------------------------------- */

static __thread int32_t own_tid; /* asked for once: each exit that Python answers comes by here */

static int32_t thread_id(void)
{
    if (!own_tid)
        own_tid = (int32_t)syscall(SYS_gettid);
    return own_tid;
}

/* In the child of a fork the calling thread is another one. */
static void forget_thread_id(void)
{
    own_tid = 0;
}

static void on_kick(int signal_number)
{
    (void)signal_number; /* that it interrupted KVM_RUN is all it is for */
}

/* Once per process: the signal that breaks a thread out of KVM_RUN. The signal's number, or -errno. */
int kick_signal_install(void)
{
    struct sigaction action = {.sa_handler = on_kick}; /* no SA_RESTART: EINTR is the point */
    int failed = pthread_atfork(NULL, NULL, forget_thread_id);
    if (failed)
        return -failed;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGRTMIN, &action, NULL) ? -errno : SIGRTMIN;
}

/* Make the vCPU leave KVM_RUN; from any thread, any number of times, before or while it runs.
 * The flags hold even when the signal comes too early: no kick gets lost. */
void exit_loop_kick(struct exit_loop *loop)
{
    int32_t tid;
    __atomic_store_n(&loop->kick, 1, __ATOMIC_SEQ_CST);
    if (!loop->run) /* closed */
        return;
    __atomic_store_n(&loop->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    tid = __atomic_load_n(&loop->tid, __ATOMIC_SEQ_CST);
    if (tid > 0)
        syscall(SYS_tgkill, getpid(), tid, SIGRTMIN);
}

/* Break the calling thread out of KVM_RUN after `first_ns`, and again every `interval_ns`: LOOP_SIGNAL.
 * A tick between two entries is lost, and the next one comes. A number for tick_stop(), or -errno. */
int tick_start(uint64_t first_ns, uint64_t interval_ns)
{
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN};
    struct itimerspec when = {.it_interval = {(time_t)(interval_ns / NS), (long)(interval_ns % NS)},
                              .it_value = {(time_t)(first_ns / NS), (long)(first_ns % NS)}};
    int tick; /* the kernel's own number: glibc's timer_t is a pointer and lives in another library */
    event._sigev_un._tid = thread_id();
    if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &tick))
        return -errno;
    if (syscall(SYS_timer_settime, tick, 0, &when, NULL)) {
        int failed = errno;
        tick_stop(tick);
        return -failed;
    }
    return tick;
}

void tick_stop(int tick)
{
    syscall(SYS_timer_delete, tick);
}

/* 1 if a kick was waiting. immediate_exit goes first: a kick that comes between sets it again. */
static int take_kick(struct exit_loop *loop)
{
    __atomic_store_n(&loop->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    return (int)__atomic_exchange_n(&loop->kick, 0, __ATOMIC_SEQ_CST);
}

/* ---- the loop ------------------------------------------------------------------------------------ */

/* Run the guest to its next exit. LOOP_EXIT: there is one. */
static enum loop_result enter_guest(struct exit_loop *loop)
{
    int failed, kicked;
    loop->enter_tsc = tsc_now();
    if (loop->own_from) /* not on the first entry of a call: Python's time is not ours */
        loop->own_ticks += loop->enter_tsc - loop->own_from;
    if (loop->answering)
        loop->answer_ticks += loop->enter_tsc - loop->exit_tsc;
    if (loop->answering || !loop->stay_tsc)
        loop->stay_tsc = loop->enter_tsc;
    loop->answering = 0;
    record_close(loop, loop->enter_tsc, RECORD_DONE);
    __atomic_store_n(&loop->outside, 0, __ATOMIC_RELEASE);
    failed = ENTER_GUEST(loop->fd) < 0 ? errno : 0;
    __atomic_store_n(&loop->outside, 1, __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* first that, then the time: ExitSource relies on it */
    loop->own_from = loop->exit_tsc = tsc_now();
    loop->guest_ticks += loop->exit_tsc - loop->enter_tsc;
    loop->entries++;
    if (!failed) {
        uint32_t reason = loop->run->exit_reason;
        loop->exits++;
        loop->answering = 1;
        loop->by_reason[reason < EXIT_REASONS_MAX ? reason : EXIT_REASONS_MAX]++;
        loop->pending = PENDING_NEW;
        return LOOP_EXIT;
    }
    loop->error = failed;
    kicked = take_kick(loop);
    if (failed != EINTR && failed != EAGAIN)
        return LOOP_ERROR;
    return kicked ? LOOP_KICKED : LOOP_SIGNAL;
}

static enum loop_result run_until_python(struct exit_loop *loop)
{
    for (;;) {
        enum loop_result result;
        enum answer answer;
        if (loop->pending == PENDING_NONE) {
            if ((result = enter_guest(loop)) != LOOP_EXIT)
                return result;
            if (is_counted_step(loop) && loop->steps++ % loop->step_period) {
                loop->pending = PENDING_NONE; /* not its turn: no record */
                continue;
            }
        }
        if (loop->pending == PENDING_NEW && !record_open(loop))
            return LOOP_TRACE_FULL;
        loop->pending = PENDING_RECORDED;
        answer = answer_exit(loop, record_current(loop));
        if (answer == RING_IS_FULL)
            return LOOP_CONSOLE_FULL;
        loop->pending = PENDING_NONE;
        if (answer == FOR_PYTHON)
            return LOOP_EXIT;
    }
}

/* Run the vCPU in the calling thread until Python is needed. */
int exit_loop_run(struct exit_loop *loop)
{
    enum loop_result result;
    if (!loop->run) { /* the vCPU has been closed */
        loop->error = EBADF;
        return LOOP_ERROR;
    }
    if (take_kick(loop))
        return LOOP_KICKED;
    loop->own_from = 0;
    __atomic_store_n(&loop->tid, thread_id(), __ATOMIC_SEQ_CST);
    result = run_until_python(loop);
    __atomic_store_n(&loop->tid, 0, __ATOMIC_SEQ_CST);
    if (loop->own_from)
        loop->own_ticks += tsc_now() - loop->own_from;
    return (int)result;
}
