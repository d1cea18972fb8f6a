/* One trace_record per exit: opened when KVM_RUN returns, closed when the guest goes on. */
#include "vcpu_run.h"

#include <string.h>

#include "hypercall_abi.h"

#define EFER_LMA (1 << 10)

static struct trace_record *record_at(struct exit_loop *loop, uint64_t index)
{
    return &loop->trace.records[index & (loop->trace.capacity - 1)];
}

/* The record of the exit that is being answered, or NULL. */
struct trace_record *record_current(struct exit_loop *loop)
{
    return loop->open ? record_at(loop, loop->open - 1) : NULL;
}

/* Keep the first bytes of a longer piece of data. */
void record_text(struct trace_record *record, const uint8_t *from, uint64_t size)
{
    record->text_bytes = (uint8_t)(size < sizeof record->text ? size : sizeof record->text);
    memcpy(record->text, from, record->text_bytes);
}

/* Copy of the data that the guest wrote or was answered: 8 bytes, and the beginning of a string. */
static void record_data(struct exit_loop *loop, struct trace_record *record)
{
    struct kvm_run *run = loop->run;
    const uint8_t *data;
    uint64_t size;
    switch (record->reason) {
    case KVM_EXIT_IO:
        if (!(data = io_bytes(loop, &size)))
            break;
        if (size > sizeof record->data) {
            record_text(record, data, size);
            size = sizeof record->data;
        }
        memcpy(record->data, data, size);
        break;
    case KVM_EXIT_MMIO:
        memcpy(record->data, run->mmio.data, sizeof record->data);
        break;
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
        memcpy(record->data, &run->msr.data, sizeof record->data);
        break;
    default:
        break;
    }
}

static void record_registers(struct kvm_run *run, struct trace_record *record)
{
    const struct kvm_regs *regs = &run->s.regs.regs;
    const struct kvm_sregs *sregs = &run->s.regs.sregs;
    if (run->kvm_valid_regs & KVM_SYNC_X86_REGS) {
        record->flags |= RECORD_REGS;
        record->rip = regs->rip, record->rsp = regs->rsp, record->rflags = regs->rflags;
        record->rax = regs->rax, record->rbx = regs->rbx, record->rcx = regs->rcx, record->rdx = regs->rdx;
        record->rsi = regs->rsi, record->rdi = regs->rdi, record->rbp = regs->rbp;
        record->r8 = regs->r8, record->r9 = regs->r9, record->r10 = regs->r10, record->r11 = regs->r11;
        record->r12 = regs->r12, record->r13 = regs->r13, record->r14 = regs->r14, record->r15 = regs->r15;
    }
    if (run->kvm_valid_regs & KVM_SYNC_X86_SREGS) {
        record->flags |= RECORD_SREGS;
        record->cr0 = sregs->cr0, record->cr3 = sregs->cr3, record->cr4 = sregs->cr4;
        record->efer = sregs->efer, record->cs_base = sregs->cs.base, record->cpl = sregs->ss.dpl;
        record->code_bits = sregs->efer & EFER_LMA && sregs->cs.l ? 64 : sregs->cs.db ? 32 : 16;
    }
}

/* Where the exit happened: the port, gpa, MSR or number that its reason speaks of. */
static void record_address(struct kvm_run *run, struct trace_record *record)
{
    switch (run->exit_reason) {
    case KVM_EXIT_IO:
        record->address = run->io.port, record->size = run->io.size, record->count = run->io.count;
        record->flags |= run->io.direction == KVM_EXIT_IO_OUT ? RECORD_WRITE : 0;
        break;
    case KVM_EXIT_MMIO:
        record->address = run->mmio.phys_addr, record->size = (uint8_t)run->mmio.len;
        record->flags |= run->mmio.is_write ? RECORD_WRITE : 0;
        break;
    case KVM_EXIT_HYPERCALL:
        record->address = run->hypercall.nr;
        memcpy(record->data, &run->hypercall.args[0], sizeof record->data);
        break;
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
        record->address = run->msr.index, record->size = 8;
        record->flags |= run->exit_reason == KVM_EXIT_X86_WRMSR ? RECORD_WRITE : 0;
        break;
    case KVM_EXIT_DEBUG:
        record->address = run->debug.arch.pc;
        memcpy(record->data, &run->debug.arch.dr6, sizeof record->data);
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        record->address = run->internal.suberror;
        break;
    case KVM_EXIT_FAIL_ENTRY:
        record->address = run->fail_entry.hardware_entry_failure_reason;
        break;
    case KVM_EXIT_SYSTEM_EVENT:
        record->address = run->system_event.type;
        break;
    default:
        break;
    }
}

/* Claim the next record, its header empty, for loop->open. 0: the ring is full and its mode says stop. */
static int claim_record(struct exit_loop *loop)
{
    struct trace_ring *ring = &loop->trace;
    struct trace_record *record;
    if (!ring->capacity)
        return 1;
    if (ring->mode != RING_OVERWRITE &&
        ring->head - __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE) >= ring->capacity) {
        if (ring->mode == RING_STOP) {
            if (!loop->full_tsc)
                loop->full_tsc = tsc_now();
            return 0;
        }
        ring->dropped++;
        return 1;
    }
    record = record_at(loop, ring->head);
    memset(record, 0, offsetof(struct trace_record, rip));
    if (loop->full_tsc) {
        loop->wait_ticks += tsc_now() - loop->full_tsc;
        loop->full_tsc = 0;
        record->flags = RECORD_WAITED;
    }
    record->vcpu = (uint16_t)loop->vcpu, record->exit_tsc = loop->exit_tsc;
    loop->open = ring->head + 1;
    return 1;
}

/* Open this exit's record. 0: the ring is full, as above. */
int record_open(struct exit_loop *loop)
{
    struct trace_record *record;
    if (!claim_record(loop))
        return 0;
    if (!(record = record_current(loop)))
        return 1;
    record->enter_tsc = loop->stay_tsc;
    record->reason = loop->run->exit_reason;
    record_address(loop->run, record);
    record_registers(loop->run, record);
    record_data(loop, record);
    return 1;
}

/* Open the record of a hypercall that no exit brought: it came in the ring of that number. 0: full. */
int record_open_call(struct exit_loop *loop, uint64_t ring)
{
    struct trace_record *record;
    if (!claim_record(loop))
        return 0;
    if (!(record = record_current(loop)))
        return 1;
    record->enter_tsc = loop->exit_tsc, record->address = ring;
    record->reason = RECORD_BY_RING, record->flags |= RECORD_WRITE; /* there is no data to be read back */
    return 1;
}

/* The exit is a hypercall; `flags` may add RECORD_RESULT once it has been answered. */
void record_call(struct trace_record *record, const struct hypercall *call, uint8_t flags)
{
    record->call_number = call->number;
    memcpy(record->call_args, call->arg, sizeof record->call_args);
    record->call_result = call->result;
    record->flags |= RECORD_CALL | flags;
}

/* The open record is complete: hand it to the reader. */
void record_close(struct exit_loop *loop, uint64_t now, uint8_t flags)
{
    struct trace_record *record = record_current(loop);
    if (!record)
        return;
    if (!(record->flags & RECORD_WRITE))
        record_data(loop, record);
    record->resume_tsc = now;
    record->flags |= flags;
    __atomic_store_n(&loop->trace.head, loop->open, __ATOMIC_RELEASE);
    loop->open = 0;
}

/* Publish the record of the last exit although the guest does not go on: the run is over. */
void exit_loop_settle(struct exit_loop *loop)
{
    uint64_t now = tsc_now();
    if (loop->answering)
        loop->answer_ticks += now - loop->exit_tsc;
    loop->answering = 0;
    record_close(loop, now, 0);
}
