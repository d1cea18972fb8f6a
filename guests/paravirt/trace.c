/* What the kernel tells of its program's system calls: one record each, in a ring that the host reads. */
#include "cpu.h"
#include "kernel.h"

#define KVM_SYSTEM_TIME 0x4b564d01 /* an MSR: bit 0 and the gpa of what follows (the kernel's KVM document, MSRs) */

static struct {
    uint32_t version, pad; /* odd while the host changes it */
    uint64_t tsc;          /* when the guest's TSC was that, … */
    uint64_t ns;           /* … kvmclock was this */
    uint32_t multiplier;   /* from there on 2^-32 ns for each tick, … */
    int8_t shift;          /* … of ticks shifted to the left by that */
    uint8_t flags, pad2[2];
} __attribute__((aligned(32))) volatile kvmclock;

int trace_is_on;
static struct syscall_ring *ring;
static uint64_t started, cr3;
static int uses_kvmclock;

static inline uint64_t read_tsc(void)
{
    uint32_t low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static uint64_t kvmclock_ns(void)
{
    uint64_t ticks, ns;
    uint32_t version;
    do {
        version = kvmclock.version;
        ticks = read_tsc() - kvmclock.tsc;
        ticks = kvmclock.shift < 0 ? ticks >> -kvmclock.shift : ticks << kvmclock.shift;
        ns = kvmclock.ns + (uint64_t)((unsigned __int128)ticks * kvmclock.multiplier >> 32);
    } while (version & 1 || version != kvmclock.version);
    return ns;
}

static uint64_t now(void)
{
    return uses_kvmclock ? kvmclock_ns() : read_tsc();
}

void trace_init(void)
{
    uint64_t bytes = sizeof *ring + boot->trace_records * sizeof(struct syscall_record), gpa;
    gpa = boot->trace_records ? frames_reserve(bytes) : 0;
    if (!gpa)
        return;
    ring = direct(gpa);
    ring->header_bytes = sizeof *ring;
    ring->record_bytes = sizeof(struct syscall_record);
    ring->capacity = boot->trace_records;
    cr3 = read_cr3();
    switch (ask(HC_TRACE_RING, gpa, bytes)) {
    case SYSCALL_CLOCK_KVM:
        write_msr(KVM_SYSTEM_TIME, gpa_of((const void *)&kvmclock) | 1);
        uses_kvmclock = 1;
        break;
    case SYSCALL_CLOCK_TSC:
        break;
    default: /* the host does not want it */
        return;
    }
    trace_is_on = 1;
}

void trace_start(void)
{
    started = now();
}

void trace_end(const syscall_t *call, int64_t result, unsigned flags)
{
    struct syscall_record *record;
    if (!trace_is_on)
        return;
    if (ring->head - *(volatile uint64_t *)&ring->tail >= ring->capacity && ask(HC_TRACE_DRAIN, 0, 0) < 0)
        return;
    record = (struct syscall_record *)(ring + 1) + (ring->head & (ring->capacity - 1));
    copy(record, call, 7 * sizeof(uint64_t)); /* the number and the arguments stand in the same order */
    record->result = result;
    record->start_time = started;
    record->end_time = flags & SYSCALL_DONE ? now() : 0;
    record->cr3 = cr3;
    record->rip = call->rip;
    record->flags = flags;
    record->vcpu = 0;
    record->pid = record->tid = PID;
    *(volatile uint64_t *)&ring->head = ring->head + 1;
}
