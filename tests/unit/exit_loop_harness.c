/* The exit loop with an invented kernel in place of KVM_RUN: hostile exits, full rings, kicks, wild hypercalls.
 *
 *     exit_loop_harness SCENARIO SEED COUNT
 *
 * Compiled together with the loop itself and with sanitizers, by test_exit_loop_sanitized.py. Prints what
 * it found wrong and ends with status 1, or ends with 0. What the loop may touch (kvm_run, guest memory, rings)
 * lies in allocations of exactly its size, so that a step beside it is seen.
 */
#define _GNU_SOURCE
#include <linux/kvm.h>

static int invented_run(int fd);
#define ENTER_GUEST(fd) invented_run(fd)
#include "vcpu_run.c"
#include "fast_call.c"
#include "call_ring.c"
#include "trace_record.c"
#include "guest_bytes.c"
#include "syscall_tap.c"

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#define RUN_BYTES (sizeof(struct kvm_run) + 4096)
#define SLOT_BYTES 4096u
#define APPEND_PORT 0xe9
#define DISCARD_PORT 0x80
#define DOORBELL_PORT 0x700
#define STRANGE_PORT 0x701 /* fast by the table, with a verb that is none */
#define WILD_PORT 0x702    /* an index beyond the table */
#define MARKS_BYTES 64u
#define PATIENCE_NS 5000000000ll

#define CHECK(condition, ...)                                     \
    do {                                                          \
        if (!(condition)) {                                       \
            fprintf(stderr, "line %d: %s: ", __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                         \
            fputc('\n', stderr);                                  \
            exit(1);                                              \
        }                                                         \
    } while (0)

static struct exit_loop loop;
static struct loop_shared shared;
static int is_done;
static uint64_t sequence;          /* exits so far; each goes to rip, so that its record can be told */
static int (*guest)(void);         /* the scenario's kernel */
static _Thread_local uint64_t dice = 1;

static uint64_t roll(void)
{
    dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17; /* xorshift64 */
    return dice;
}

static uint64_t below(uint64_t limit)
{
    return limit ? roll() % limit : 0;
}

/* A number as a guest that means harm would choose it: small, or near an edge of some width. */
static uint64_t hostile(void)
{
    static const uint64_t edges[] = {0, 1, 0xff, 0x100, 0xfff, 0x1000, 0xffff, 0xffffffff, 1ull << 32, 1ull << 63, ~0ull};
    uint64_t edge = edges[below(sizeof edges / sizeof *edges)];
    return below(3) ? edge + below(17) - 8 : below(2) ? roll() : below(8192);
}

static void *exactly(uint64_t size)
{
    void *at = calloc(1, size);
    CHECK(at, "out of memory");
    return at;
}

static int invented_run(int fd)
{
    (void)fd;
    return guest();
}

static int fail_with(int error)
{
    errno = error;
    return -1;
}

static void set_up(uint64_t trace_capacity, uint32_t mode, uint64_t console_capacity)
{
    static const struct { uint16_t port; uint8_t index; uint32_t verb; } ports[] = {
        {DISCARD_PORT, 1, VERB_DISCARD}, {APPEND_PORT, 2, VERB_APPEND},     {DOORBELL_PORT, 3, VERB_DOORBELL},
        {STRANGE_PORT, 4, 77},           {HYPERCALL_PORT, 5, VERB_HYPERCALL}, {WILD_PORT, 200, 0},
    };
    shared.console = (struct byte_ring){.bytes = exactly(console_capacity), .capacity = console_capacity};
    shared.marks = (struct byte_ring){.bytes = exactly(MARKS_BYTES), .capacity = MARKS_BYTES};
    shared.call_register = HYPERCALL_MMIO;
    for (unsigned i = 0; i < sizeof ports / sizeof *ports; i++) {
        shared.fast_index[ports[i].port] = ports[i].index;
        if (ports[i].index < FAST_PORTS_MAX)
            shared.fast_ports[ports[i].index] =
                (struct fast_port){.verb = ports[i].verb, .doorbell_fd = -1, .ring = &shared.console};
    }
    loop = (struct exit_loop){.fd = -1, .run = exactly(RUN_BYTES), .run_bytes = RUN_BYTES, .shared = &shared};
    loop.run->kvm_valid_regs = KVM_SYNC_X86_REGS;
    loop.trace = (struct trace_ring){.capacity = trace_capacity, .mode = mode};
    if (trace_capacity)
        loop.trace.records = exactly(trace_capacity * sizeof(struct trace_record));
}

static void tear_down(void)
{
    free(loop.run);
    free(loop.trace.records);
    free(shared.console.bytes);
    free(shared.marks.bytes);
    for (uint32_t i = 0; i < shared.slot_count; i++)
        free(shared.slots[i].host);
}

/* One more exit, of `reason`; its number in rip. */
static int exits_with(uint32_t reason)
{
    loop.run->exit_reason = reason;
    loop.run->s.regs.regs.rip = ++sequence;
    return 0;
}

static int writes_port(uint16_t port, uint8_t size, uint32_t count, const void *data)
{
    loop.run->io.direction = KVM_EXIT_IO_OUT;
    loop.run->io.port = port, loop.run->io.size = size, loop.run->io.count = count;
    loop.run->io.data_offset = sizeof(struct kvm_run);
    memcpy((uint8_t *)loop.run + sizeof(struct kvm_run), data, (size_t)size * count);
    return exits_with(KVM_EXIT_IO);
}

/* ---- any exit at all ----------------------------------------------------------------------------- */

static int any_exit(void)
{
    static const uint16_t ports[] = {APPEND_PORT, DISCARD_PORT, DOORBELL_PORT, STRANGE_PORT, WILD_PORT, HYPERCALL_PORT};
    static const int errors[] = {EINTR, EAGAIN, EFAULT, ENOMEM, EINVAL};
    uint8_t *noise = (uint8_t *)&loop.run->io;
    if (!below(16))
        return fail_with(errors[below(5)]);
    for (int i = 0; i < 64; i++)
        noise[i] = (uint8_t)roll();
    loop.run->kvm_valid_regs = roll() & 3;
    if (below(4))
        return exits_with(below(4) ? (uint32_t)below(45) : (uint32_t)hostile());
    loop.run->io.port = below(4) ? ports[below(6)] : (uint16_t)roll();
    loop.run->io.direction = below(8) ? KVM_EXIT_IO_OUT : (uint8_t)roll();
    loop.run->io.size = below(4) ? 1 : (uint8_t)hostile();
    loop.run->io.count = below(4) ? (uint32_t)below(9) : (uint32_t)hostile();
    loop.run->io.data_offset = below(4) ? RUN_BYTES - below(16) : hostile();
    return exits_with(KVM_EXIT_IO);
}

/* Take what the ring holds; `expected` is the number of the next exit's record, which no mode but STOP promises. */
static uint64_t drain(uint64_t last, uint64_t *taken)
{
    struct trace_ring *ring = &loop.trace;
    for (; ring->tail < ring->head; ring->tail++, ++*taken) {
        struct trace_record *record = &ring->records[ring->tail & (ring->capacity - 1)];
        if (!(record->flags & RECORD_REGS))
            continue;
        CHECK(record->rip > last, "record %llu after %llu", (unsigned long long)record->rip, (unsigned long long)last);
        CHECK(record->enter_tsc && record->enter_tsc <= record->exit_tsc && record->exit_tsc <= record->resume_tsc,
              "times of record %llu", (unsigned long long)record->rip);
        last = record->rip;
    }
    return last;
}

static void hostile_exits(uint64_t count, uint32_t mode)
{
    static const uint64_t capacities[] = {0, 1, 2, 8, 64};
    uint64_t to_python = 0, last = 0, taken = 0, reasons = 0, rings = 0;
    uint64_t capacity = capacities[below(5)];
    set_up(capacity, mode, 1ull << below(6));
    shared.fast_ports[3].doorbell_fd = eventfd(0, EFD_NONBLOCK);
    guest = any_exit;
    for (uint64_t i = 0; i < count; i++) {
        uint8_t bytes[64];
        uint64_t rung;
        int result = exit_loop_run(&loop);
        CHECK(result >= LOOP_EXIT && result <= LOOP_ERROR, "result %d", result);
        to_python += result == LOOP_EXIT;
        if (result == LOOP_CONSOLE_FULL)
            CHECK(byte_ring_read(&shared.console, bytes, 1 + below(sizeof bytes)), "full, and nothing to read");
        if (mode != RING_OVERWRITE && (result == LOOP_TRACE_FULL || !below(8)))
            last = drain(last, &taken);
        if (!below(4) && read(shared.fast_ports[3].doorbell_fd, &rung, sizeof rung) == sizeof rung)
            rings += rung;
    }
    exit_loop_settle(&loop);
    if (mode != RING_OVERWRITE)
        drain(last, &taken);
    for (int i = 0; i <= EXIT_REASONS_MAX; i++)
        reasons += loop.by_reason[i];
    CHECK(loop.exits == sequence && reasons == sequence, "exits were not all counted");
    CHECK(loop.exits == to_python + loop.fast_exits + (loop.pending != PENDING_NONE), "an exit got lost or came twice");
    if (capacity && mode == RING_OVERWRITE)
        taken = loop.trace.head;
    if (capacity) /* at the end the newest may wait for room */
        CHECK(taken + loop.trace.dropped + (loop.pending == PENDING_NEW) == loop.exits, "%llu records, %llu dropped, %llu exits",
              (unsigned long long)taken, (unsigned long long)loop.trace.dropped, (unsigned long long)loop.exits);
    CHECK(mode == RING_DROP || !loop.trace.dropped, "dropped a record that was to be kept");
    CHECK(!loop.by_fast_port[4] && !loop.by_fast_port[5], "answered what only Python can");
    {
        uint64_t rung = 0;
        if (read(shared.fast_ports[3].doorbell_fd, &rung, sizeof rung) == sizeof rung)
            rings += rung;
        CHECK(rings == loop.by_fast_port[3], "rung %llu times", (unsigned long long)rings);
    }
    close(shared.fast_ports[3].doorbell_fd);
    tear_down();
}

/* ---- hypercalls ---------------------------------------------------------------------------------- */

enum way { BY_OUT, BY_STORE32, BY_STORE64, BY_VMCALL, WAYS };

static uint64_t call_gpa;
static enum way call_way;
static int round_again;

/* The call once, by its way, then a kick. */
static int calls_once(void)
{
    struct kvm_run *run = loop.run;
    if (round_again++)
        return exit_loop_kick(&loop), fail_with(EINTR);
    switch (call_way) {
    case BY_STORE32:
    case BY_STORE64:
        run->mmio.phys_addr = HYPERCALL_MMIO, run->mmio.is_write = 1;
        run->mmio.len = call_way == BY_STORE32 ? 4 : 8;
        memcpy(run->mmio.data, &call_gpa, sizeof run->mmio.data);
        return exits_with(KVM_EXIT_MMIO);
    case BY_VMCALL:
        run->hypercall.nr = HYPERCALL_VMCALL, run->hypercall.ret = 0x77;
        run->hypercall.args[0] = HYPERCALL_VMCALL_KEY, run->hypercall.args[2] = call_gpa;
        return exits_with(KVM_EXIT_HYPERCALL);
    default:
        return writes_port(HYPERCALL_PORT, 4, 1, &call_gpa);
    }
}

/* Slots with gaps, neighbours, ROM, and one that ends with the address space. */
static void lay_out_memory(void)
{
    static const uint64_t where[] = {0, SLOT_BYTES, 3 * SLOT_BYTES, 1ull << 31, 1ull << 32, 0ull - SLOT_BYTES};
    for (shared.slot_count = 0; shared.slot_count < 6; shared.slot_count++)
        shared.slots[shared.slot_count] = (struct guest_slot){
            .gpa = where[shared.slot_count], .size = SLOT_BYTES, .host = exactly(SLOT_BYTES), .read_only = shared.slot_count == 2};
}

static uint64_t some_gpa(void)
{
    const struct guest_slot *slot = &shared.slots[below(6)];
    switch (below(4)) {
    case 0: return hostile();
    case 1: return slot->gpa + SLOT_BYTES - below(64);
    default: return slot->gpa + below(SLOT_BYTES);
    }
}

/* The slower, obvious way to find guest bytes, to hold against guest_bytes(). */
static uint8_t *find_bytes(uint64_t gpa, uint64_t size, int write)
{
    for (int i = 0; i < 6; i++) {
        const struct guest_slot *slot = &shared.slots[i];
        unsigned __int128 end = (unsigned __int128)gpa + size, slot_end = (unsigned __int128)slot->gpa + slot->size;
        if (gpa >= slot->gpa && gpa < slot_end && end <= slot_end && !(write && slot->read_only))
            return slot->host + (gpa - slot->gpa);
    }
    return NULL;
}

static void one_hypercall(void)
{
    static uint8_t before[6][SLOT_BYTES], read_back[SLOT_BYTES];
    struct guest_mark marks[MARKS_BYTES / sizeof(struct guest_mark)];
    uint64_t marked;
    uint64_t gpa = below(8) ? some_gpa() : hostile(), text = below(8) ? some_gpa() : gpa + below(64) - 8, held;
    uint64_t length = below(3) ? below(128) : below(2) ? below(SLOT_BYTES) : hostile();
    struct hypercall call = {.number = below(4) ? HC_CONSOLE_WRITE : (uint32_t)below(7), .result = 0x5a5a, .arg = {text, length}};
    uint8_t *at, *rom, *from;
    int result, answered;
    call_way = (enum way)below(WAYS);
    call_gpa = gpa = call_way == BY_OUT || call_way == BY_STORE32 ? (uint32_t)gpa : gpa;
    for (int i = 0; i < 6; i++)
        for (unsigned b = 0; b < SLOT_BYTES; b += 8)
            *(uint64_t *)(shared.slots[i].host + b) = roll();
    at = find_bytes(gpa, sizeof call, 1);
    if ((rom = find_bytes(gpa, sizeof call, 0))) /* also where the loop must not write the result */
        memcpy(rom, &call, sizeof call);
    for (int i = 0; i < 6; i++)
        memcpy(before[i], shared.slots[i].host, SLOT_BYTES);
    from = find_bytes(text, length, 0);
    answered = at && (call.number == HC_TIME || call.number == HC_MARK || (call.number == HC_CONSOLE_WRITE && length <= shared.console.capacity && (from || !length)));
    guest = calls_once;
    result = exit_loop_run(&loop); /* answered in C it goes round again, to a kick */
    CHECK(result == (answered ? LOOP_KICKED : LOOP_EXIT), "result %d for call %u at %#llx: %#llx + %#llx", result, call.number,
          (unsigned long long)gpa, (unsigned long long)text, (unsigned long long)length);
    CHECK(call_way != BY_VMCALL || loop.run->hypercall.ret == (answered ? 0 : 0x77), "VMCALL answers %llx", (unsigned long long)loop.run->hypercall.ret);
    marked = byte_ring_read(&shared.marks, (uint8_t *)marks, sizeof marks);
    CHECK(marked == (answered && call.number == HC_MARK ? sizeof *marks : 0), "%llu bytes of marks", (unsigned long long)marked);
    CHECK(!marked || marks[0].value == text, "the mark is %#llx", (unsigned long long)marks[0].value);
    held = byte_ring_read(&shared.console, read_back, sizeof read_back);
    CHECK(held == (answered && call.number == HC_CONSOLE_WRITE ? length : 0), "%llu bytes printed", (unsigned long long)held);
    for (int i = 0; i < 6; i++) {
        const struct guest_slot *slot = &shared.slots[i];
        if (held && from >= slot->host && from < slot->host + SLOT_BYTES)
            CHECK(!memcmp(read_back, before[i] + (from - slot->host), held), "other bytes were printed");
        if (answered && at >= slot->host && at < slot->host + SLOT_BYTES)
            memcpy(before[i] + (at - slot->host) + HC_RESULT, at + HC_RESULT, 8); /* the one place that may change */
        CHECK(!memcmp(before[i], slot->host, SLOT_BYTES), "memory changed at %#llx", (unsigned long long)slot->gpa);
    }
    if (answered && call.number == HC_CONSOLE_WRITE)
        CHECK(!memcmp(at + HC_RESULT, &length, 8), "wrong result");
}

static void hypercalls(uint64_t count)
{
    set_up(16, RING_OVERWRITE, SLOT_BYTES / 4);
    lay_out_memory();
    while (count--) {
        round_again = 0;
        one_hypercall();
    }
    tear_down();
}

/* ---- rings of calls ------------------------------------------------------------------------------ */

#define RINGS 3
#define RING_CALLS 8u

static struct call_worker worker;
static uint8_t *ring_memory[RINGS];
static uint64_t vandalism; /* goes on until so many calls have been taken */

/* Rings in slots of exactly their size, so that a step beside one is seen. */
static void set_up_rings(uint64_t trace_capacity, uint32_t mode)
{
    set_up(0, RING_OVERWRITE, 256);
    lay_out_memory();
    worker = (struct call_worker){.shared = &shared, .doorbell_fd = eventfd(0, EFD_NONBLOCK), .interrupt_fd = eventfd(0, EFD_NONBLOCK)};
    worker.loop.trace = (struct trace_ring){.capacity = trace_capacity, .mode = mode};
    worker.loop.trace.records = trace_capacity ? exactly(trace_capacity * sizeof(struct trace_record)) : NULL;
    for (worker.ring_count = 0; worker.ring_count < RINGS; worker.ring_count++) {
        uint8_t *at = ring_memory[worker.ring_count] = exactly(sizeof(struct call_ring) + RING_CALLS * sizeof(struct hypercall));
        worker.rings[worker.ring_count] = (struct call_ring_host){
            .header = (struct call_ring *)at, .calls = (struct hypercall *)(at + sizeof(struct call_ring)),
            .capacity = RING_CALLS, .gpa = worker.ring_count, .flags = worker.ring_count & 1 ? CALL_RING_INTERRUPT : 0};
    }
}

static void tear_down_rings(void)
{
    for (int i = 0; i < RINGS; i++)
        free(ring_memory[i]);
    free(worker.loop.trace.records);
    close(worker.doorbell_fd);
    close(worker.interrupt_fd);
    tear_down();
}

static void drain_worker(uint64_t *taken)
{
    uint8_t bytes[256];
    struct trace_ring *ring = &worker.loop.trace;
    byte_ring_read(&shared.console, bytes, sizeof bytes);
    byte_ring_read(&shared.marks, bytes, sizeof bytes);
    *taken += ring->head - ring->tail;
    ring->tail = ring->head;
}

/* Run the worker until its rings are empty, as Python does; how many calls Python had to do. */
static uint64_t serve_until_stopped(uint64_t *records)
{
    uint64_t by_python = 0;
    int result;
    while ((result = call_worker_run(&worker)) != WORKER_STOPPED) {
        CHECK(result == WORKER_CALL || result == WORKER_TRACE_FULL || result == WORKER_CONSOLE_FULL, "result %d", result);
        if (result == WORKER_CALL) {
            by_python++;
            call_worker_answer(&worker, HC_ENOSYS);
        } else
            drain_worker(records);
    }
    drain_worker(records);
    return by_python;
}

/* Hostile heads and calls: a ring is served exactly, or found damaged and left alone; every call has its record. */
static void call_rings(uint64_t count)
{
    uint64_t records = 0, served = 0, damaged = 0;
    set_up_rings(4, RING_STOP);
    while (count--) {
        uint64_t expected = 0, now_damaged = 0, before = worker.taken, mores[RINGS] = {0};
        for (int i = 0; i < RINGS; i++) {
            struct call_ring_host *ring = &worker.rings[i];
            uint64_t more = below(16) ? below(RING_CALLS + 1) : hostile();
            if (ring->is_damaged && !below(4)) /* as if it had been announced anew */
                ring->is_damaged = 0, ring->done = ring->header->head = ring->header->tail = ring->header->error = 0;
            for (unsigned c = 0; c < RING_CALLS; c++)
                ring->calls[c] = (struct hypercall){.number = below(2) ? (uint32_t)below(16) : (uint32_t)hostile(),
                                                    .result = 0x5a5a, .arg = {some_gpa(), below(2) ? below(300) : hostile()}};
            if (ring->is_damaged)
                continue;
            ring->header->head = ring->done + more;
            mores[i] = more <= RING_CALLS ? more : 0;
            expected += mores[i];
            now_damaged += more > RING_CALLS;
        }
        call_worker_stop(&worker);
        serve_until_stopped(&records);
        served += expected, damaged += now_damaged;
        CHECK(worker.taken - before == expected, "%llu calls, not %llu", (unsigned long long)(worker.taken - before), (unsigned long long)expected);
        for (int i = 0; i < RINGS; i++) {
            struct call_ring_host *ring = &worker.rings[i];
            CHECK(ring->header->tail == ring->done, "ring %d tells another tail", i);
            for (uint64_t c = ring->done - mores[i]; c < ring->done; c++)
                CHECK(ring->calls[c & (RING_CALLS - 1)].result != 0x5a5a, "ring %d: call %llu has no result", i, (unsigned long long)c);
            CHECK(ring->is_damaged ? ring->header->error == HC_EINVAL : ring->done == ring->header->head, "ring %d is not done", i);
        }
    }
    CHECK(records == served + damaged, "%llu records of %llu calls", (unsigned long long)records, (unsigned long long)(served + damaged));
    tear_down_rings();
}

/* A guest that rewrites all of its rings while they are served. */
static void *vandal(void *unused)
{
    dice = 4711;
    while (__atomic_load_n(&worker.taken, __ATOMIC_RELAXED) < vandalism) {
        unsigned ring = (unsigned)below(RINGS);
        uint64_t *words = (uint64_t *)ring_memory[ring], head = __atomic_load_n(&worker.rings[ring].done, __ATOMIC_RELAXED);
        uint64_t at = below((sizeof(struct call_ring) + RING_CALLS * sizeof(struct hypercall)) / 8);
        __atomic_store_n(&words[at], below(2) ? some_gpa() : hostile(), __ATOMIC_RELAXED);
        if (below(8))
            __atomic_store_n(&worker.rings[ring].header->head, head + below(RING_CALLS + 1), __ATOMIC_RELEASE);
        if (!below(64))
            sched_yield();
    }
    __atomic_store_n(&is_done, 1, __ATOMIC_RELEASE);
    call_worker_stop(&worker);
    return unused;
}

static void hostile_rings(uint64_t count)
{
    uint64_t records = 0;
    pthread_t guest_thread;
    set_up_rings(16, RING_DROP);
    vandalism = count, is_done = 0;
    pthread_create(&guest_thread, NULL, vandal, NULL);
    while (!__atomic_load_n(&is_done, __ATOMIC_ACQUIRE)) {
        int result = call_worker_run(&worker);
        CHECK(result >= WORKER_STOPPED && result <= WORKER_CONSOLE_FULL, "result %d", result);
        if (result == WORKER_CALL)
            call_worker_answer(&worker, HC_EFAULT);
        drain_worker(&records);
        for (int i = 0; i < RINGS; i++)
            if (worker.rings[i].is_damaged && !worker.has_call) /* look at it again, or it would soon be over */
                worker.rings[i].is_damaged = 0, worker.rings[i].done = worker.rings[i].header->head;
    }
    pthread_join(guest_thread, NULL);
    tear_down_rings();
}

/* ---- trace rings with a reader beside ------------------------------------------------------------- */

static uint64_t wanted_exits;

static int counted_exits(void)
{
    static const char text[] = "x";
    if (sequence == wanted_exits)
        return exit_loop_kick(&loop), fail_with(EINTR);
    return writes_port(DISCARD_PORT, 1, 1, text);
}

static void *run_to_the_kick(void *unused)
{
    int result;
    while ((result = exit_loop_run(&loop)) != LOOP_KICKED) {
        CHECK(result == LOOP_TRACE_FULL || result == LOOP_SIGNAL, "result %d", result);
        sched_yield();
    }
    exit_loop_settle(&loop);
    __atomic_store_n(&is_done, 1, __ATOMIC_RELEASE);
    return unused;
}

/* The reader's half of a ring, as pykvm/trace/record.py does it: every record once, in order. */
static void read_ring(uint32_t mode, uint64_t count)
{
    struct trace_ring *ring = &loop.trace;
    uint64_t last = 0, taken = 0;
    pthread_t vcpu;
    set_up(64, mode, 1);
    wanted_exits = count, guest = counted_exits;
    pthread_create(&vcpu, NULL, run_to_the_kick, NULL);
    for (int over = 0; !over;) {
        over = __atomic_load_n(&is_done, __ATOMIC_ACQUIRE);
        uint64_t head = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE), tail = ring->tail;
        if (head == tail)
            sched_yield();
        for (; tail < head; tail++, taken++) {
            struct trace_record record = ring->records[tail & (ring->capacity - 1)];
            CHECK(mode == RING_DROP ? record.rip > last : record.rip == last + 1, "record %llu after %llu",
                  (unsigned long long)record.rip, (unsigned long long)last);
            last = record.rip;
        }
        __atomic_store_n(&ring->tail, head, __ATOMIC_RELEASE);
    }
    pthread_join(vcpu, NULL);
    CHECK(taken + ring->dropped == count, "%llu taken, %llu dropped", (unsigned long long)taken, (unsigned long long)ring->dropped);
    tear_down();
}

/* ---- kicks --------------------------------------------------------------------------------------- */

static uint64_t acknowledged, kicks_wanted;

static int64_t patience(void)
{
    return host_time_ns() + PATIENCE_NS;
}

static void dawdle(uint64_t most)
{
    for (volatile uint64_t i = below(most); i; i--)
        ;
}

/* As KVM_RUN does it: immediate_exit is looked at once, and a signal from then on ends the wait. */
static int waits_for_a_kick(void)
{
    struct timespec limit = {.tv_sec = PATIENCE_NS / NS};
    sigset_t blocked, before;
    int result;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGRTMIN);
    if (below(4))
        return exits_with(KVM_EXIT_HLT);
    dawdle(50);
    pthread_sigmask(SIG_BLOCK, &blocked, &before);
    if (__atomic_load_n(&loop.run->immediate_exit, __ATOMIC_SEQ_CST)) {
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        return fail_with(EINTR);
    }
    result = ppoll(NULL, 0, &limit, &before);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    CHECK(result < 0 && errno == EINTR, "a kick got lost: nothing came for %d s", (int)limit.tv_sec);
    return fail_with(EINTR);
}

static void *kicker(void *unused)
{
    dice = 0x9e3779b97f4a7c15ull;
    for (uint64_t i = 0; i < kicks_wanted; i++) {
        int64_t until = patience();
        uint64_t before = __atomic_load_n(&acknowledged, __ATOMIC_SEQ_CST);
        dawdle(below(8) ? 40 : 2000);
        exit_loop_kick(&loop);
        while (__atomic_load_n(&acknowledged, __ATOMIC_SEQ_CST) == before)
            CHECK(host_time_ns() < until, "kick %llu was never answered", (unsigned long long)i);
    }
    __atomic_store_n(&is_done, 1, __ATOMIC_SEQ_CST);
    exit_loop_kick(&loop);
    return unused;
}

static void kicks(uint64_t count)
{
    pthread_t other;
    set_up(64, RING_OVERWRITE, 1);
    kicks_wanted = count, guest = waits_for_a_kick;
    pthread_create(&other, NULL, kicker, NULL);
    while (!__atomic_load_n(&is_done, __ATOMIC_SEQ_CST)) {
        int result = exit_loop_run(&loop);
        CHECK(result == LOOP_EXIT || result == LOOP_KICKED || result == LOOP_SIGNAL, "result %d", result);
        if (result == LOOP_KICKED)
            __atomic_fetch_add(&acknowledged, 1, __ATOMIC_SEQ_CST);
        dawdle(20);
    }
    pthread_join(other, NULL);
    CHECK(__atomic_load_n(&acknowledged, __ATOMIC_SEQ_CST) >= count, "too few answers");
    tear_down();
}

/* Ticks come again and again, also when some fall between two entries, and stop when told. */
static void ticks(uint64_t count)
{
    int tick;
    set_up(0, RING_OVERWRITE, 1);
    guest = waits_for_a_kick;
    tick = tick_start(1000, 200000);
    CHECK(tick >= 0, "no timer: %d", tick);
    while (count) {
        int result = exit_loop_run(&loop);
        CHECK(result == LOOP_EXIT || result == LOOP_SIGNAL, "result %d", result);
        count -= result == LOOP_SIGNAL;
    }
    tick_stop(tick);
    CHECK(syscall(SYS_timer_delete, tick) && errno == EINVAL, "the timer is still there");
    tear_down();
}

/* ---- the console's ring --------------------------------------------------------------------------- */

#define WRITERS 3
#define LONGEST 24

static uint64_t messages;

/* A message of writer w: w, its length, and that many bytes that count on from message to message. */
static void *writer(void *number)
{
    uint8_t w = (uint8_t)(uintptr_t)number, next = 0, message[LONGEST + 2];
    dice = 77 + w;
    for (uint64_t i = 0; i < messages; i++) {
        uint8_t size = (uint8_t)below(LONGEST);
        message[0] = w, message[1] = size;
        for (uint8_t b = 0; b < size; b++)
            message[2 + b] = next++;
        while (!byte_ring_append(&shared.console, message, size + 2u))
            sched_yield();
    }
    return NULL;
}

static uint8_t next_byte(uint64_t *total)
{
    static uint8_t held[LONGEST * 3];
    static uint64_t size, at;
    for (; at == size; at = 0)
        if (!(size = byte_ring_read(&shared.console, held, 1 + below(sizeof held))))
            sched_yield();
    ++*total;
    return held[at++];
}

static void console(uint64_t count)
{
    uint8_t next[WRITERS] = {0};
    uint64_t total = 0;
    pthread_t threads[WRITERS];
    set_up(0, RING_OVERWRITE, 64);
    messages = count;
    for (uintptr_t w = 0; w < WRITERS; w++)
        pthread_create(&threads[w], NULL, writer, (void *)w);
    for (uint64_t i = 0; i < WRITERS * messages; i++) {
        uint8_t w = next_byte(&total), size = next_byte(&total);
        CHECK(w < WRITERS && size < LONGEST, "message %llu is torn", (unsigned long long)i);
        while (size--) {
            uint8_t got = next_byte(&total);
            CHECK(got == next[w]++, "writer %u: a byte lost, doubled or out of order", w);
        }
    }
    for (int w = 0; w < WRITERS; w++)
        pthread_join(threads[w], NULL);
    CHECK(total == shared.console.head && !byte_ring_read(&shared.console, next, sizeof next), "bytes from nowhere");
    CHECK(!byte_ring_append(&shared.console, shared.console.bytes, 65), "more than fits was taken");
    tear_down();
}

/* ---- a vCPU that has been closed ------------------------------------------------------------------ */

static void closed(void)
{
    CHECK(exit_loop_run(&loop) == LOOP_ERROR && loop.error == EBADF, "ran without a vCPU");
    exit_loop_kick(&loop);
    exit_loop_settle(&loop);
}

int main(int arguments, char **word)
{
    CHECK(arguments == 4, "SCENARIO SEED COUNT");
    CHECK(kick_signal_install() == SIGRTMIN, "no signal");
    uint64_t count = strtoull(word[3], NULL, 0);
    dice = strtoull(word[2], NULL, 0) * 2654435761u + 88172645463325252ull;
    if (!strcmp(word[1], "overwrite"))
        hostile_exits(count, RING_OVERWRITE);
    else if (!strcmp(word[1], "stop"))
        hostile_exits(count, RING_STOP);
    else if (!strcmp(word[1], "drop"))
        hostile_exits(count, RING_DROP);
    else if (!strcmp(word[1], "hypercalls"))
        hypercalls(count);
    else if (!strcmp(word[1], "call-rings"))
        call_rings(count);
    else if (!strcmp(word[1], "hostile-rings"))
        hostile_rings(count);
    else if (!strcmp(word[1], "read-stop"))
        read_ring(RING_STOP, count);
    else if (!strcmp(word[1], "read-drop"))
        read_ring(RING_DROP, count);
    else if (!strcmp(word[1], "kicks"))
        kicks(count);
    else if (!strcmp(word[1], "ticks"))
        ticks(count);
    else if (!strcmp(word[1], "console"))
        console(count);
    else if (!strcmp(word[1], "closed"))
        closed();
    else
        CHECK(0, "there is no scenario %s", word[1]);
    return 0;
}
