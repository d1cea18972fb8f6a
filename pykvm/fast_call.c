/* The hypercalls that C answers: console write, time, mark. All others, and what is wrong, go to Python. */
#include <stddef.h>
#include <string.h>
#include <time.h>

#include "hypercall_abi.h"
#include "vcpu_run.h"

#define NS_PER_S 1000000000ll

static int64_t host_time_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS_PER_S + now.tv_nsec;
}

static enum answer console_write(struct loop_shared *shared, struct trace_record *record, struct hypercall *call)
{
    const uint8_t *text;
    if (call->arg[1] > shared->console.capacity)
        return FOR_PYTHON; /* too long for the ring at any time */
    text = guest_bytes(shared, call->arg[0], call->arg[1], 0);
    if (!text && call->arg[1])
        return FOR_PYTHON; /* wild, or across two slots: Python tells which */
    if (!byte_ring_append(&shared->console, text, call->arg[1]))
        return RING_IS_FULL;
    call->result = (int64_t)call->arg[1];
    if (record && text)
        record_text(record, text, call->arg[1]);
    return ANSWERED;
}

/* Do a call that has been copied out of guest memory; where it is ANSWERED, its `result` and the record's. */
enum answer fast_call(struct loop_shared *shared, struct trace_record *record, struct hypercall *call)
{
    enum answer answer = ANSWERED;
    struct guest_mark mark;
    switch (call->number) {
    case HC_CONSOLE_WRITE:
        answer = console_write(shared, record, call);
        break;
    case HC_TIME:
        call->result = host_time_ns();
        break;
    case HC_MARK:
        mark = (struct guest_mark){.value = call->arg[0], .time_ns = host_time_ns()};
        if (!byte_ring_append(&shared->marks, (const uint8_t *)&mark, sizeof mark))
            return FOR_PYTHON; /* which makes room */
        call->result = 0;
        break;
    default:
        return FOR_PYTHON;
    }
    if (answer == ANSWERED && record)
        record_call(record, call, RECORD_RESULT);
    return answer;
}

/* The same for the struct hypercall at `gpa`, which may lie anywhere. */
enum answer fast_call_at(struct loop_shared *shared, struct trace_record *record, uint64_t gpa)
{
    uint8_t *at = guest_bytes(shared, gpa, sizeof(struct hypercall), 1);
    struct hypercall call;
    enum answer answer;
    if (!at)
        return FOR_PYTHON;
    memcpy(&call, at, sizeof call); /* once: another vCPU may change it meanwhile */
    answer = fast_call(shared, record, &call);
    if (answer == ANSWERED)
        memcpy(at + offsetof(struct hypercall, result), &call.result, sizeof call.result);
    return answer;
}

/* The hypercall of an exit that is a store or VMCALL. */
enum answer fast_call_exit(struct exit_loop *loop, struct trace_record *record)
{
    struct kvm_run *run = loop->run;
    uint64_t gpa = 0, at = loop->shared->call_register;
    enum answer answer;
    if (run->exit_reason == KVM_EXIT_MMIO) {
        if (!at || run->mmio.phys_addr != at || !run->mmio.is_write || (run->mmio.len != 4 && run->mmio.len != 8))
            return FOR_PYTHON;
        memcpy(&gpa, run->mmio.data, run->mmio.len);
    } else {
        if (run->hypercall.nr != HYPERCALL_VMCALL || run->hypercall.args[0] != HYPERCALL_VMCALL_KEY)
            return FOR_PYTHON;
        gpa = run->hypercall.args[2];
    }
    answer = fast_call_at(loop->shared, record, gpa);
    if (answer == ANSWERED && run->exit_reason == KVM_EXIT_HYPERCALL)
        run->hypercall.ret = 0;
    return answer;
}
