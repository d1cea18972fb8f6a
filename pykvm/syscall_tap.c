/* The syscall tap's part of the exit loop; see syscall_tap.h. Every address comes from the guest. */
#include "syscall_tap.h"

#include <sched.h>
#include <string.h>

#include "vcpu_run.h"

#define PAGE_BYTES 4096ull
#define CR0_PG (1ull << 31)
#define CR4_LA57 (1ull << 12)
#define EFER_LMA_BIT (1ull << 10)
#define PRESENT 1ull
#define LARGE (1ull << 7)
#define ADDRESS 0x000ffffffffff000ull
#define NOWHERE UINT64_MAX
#define OUT_BYTES 2
#define GENERAL_REGISTERS 16
#define SIGNALS 64
#define UCONTEXT_AT 8 /* in struct rt_sigframe; then uc_flags, uc_link, uc_stack, and sigcontext at 40 */
#define UCONTEXT_RAX_AT (40 + 13 * 8)
#define UCONTEXT_RIP_AT (40 + 16 * 8)
#define DR6_BREAKPOINTS 0xf
#define RFLAGS_RF (1ull << 16)
#define FLAG_CF 1ull
#define FLAG_PF 4ull
#define FLAG_ZF (1ull << 6)
#define FLAG_SF (1ull << 7)
#define FLAG_OF (1ull << 11)
#define SPINS_BEFORE_YIELD 128
#define NEEDED (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS)

/* Linux's struct pt_regs (arch/x86/include/asm/ptrace.h): the same order since 2.6. */
struct saved_registers {
    uint64_t r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, number, ip, cs, flags, sp, ss;
};

/* ---- the guest's memory, by linear address --------------------------------------------------------- */

/* The gpa behind `gva` in long mode, NOWHERE where the CPU would fault. */
static uint64_t walk(const struct loop_shared *shared, const struct kvm_sregs *sregs, uint64_t gva)
{
    int shift = sregs->cr4 & CR4_LA57 ? 48 : 39;
    uint64_t table = sregs->cr3 & ADDRESS;
    int64_t top = (int64_t)gva >> (shift + 8);
    if (!(sregs->cr0 & CR0_PG) || !(sregs->efer & EFER_LMA_BIT) || (top != 0 && top != -1))
        return NOWHERE;
    for (;; shift -= 9) {
        uint64_t entry, inside = (1ull << shift) - 1;
        const uint8_t *at = guest_bytes(shared, table + (gva >> shift & 511) * 8, 8, 0);
        if (!at)
            return NOWHERE;
        memcpy(&entry, at, sizeof entry);
        if (!(entry & PRESENT))
            return NOWHERE;
        if (shift == 12 || (shift <= 30 && entry & LARGE))
            return (entry & ADDRESS & ~inside) | (gva & inside);
        table = entry & ADDRESS;
    }
}

/* Copy guest memory at `gva` by the vCPU's tables: how many of `size` bytes there are. */
uint64_t tap_read(struct exit_loop *loop, uint64_t gva, uint8_t *to, uint64_t size)
{
    uint64_t done = 0;
    while (done < size) {
        uint64_t step = PAGE_BYTES - (gva + done) % PAGE_BYTES;
        uint64_t gpa = walk(loop->shared, &loop->run->s.regs.sregs, gva + done);
        const uint8_t *at;
        step = step < size - done ? step : size - done;
        if (gpa == NOWHERE || !(at = guest_bytes(loop->shared, gpa, step, 0)))
            break;
        memcpy(to + done, at, step);
        done += step;
    }
    return done;
}

static int read_all(struct exit_loop *loop, uint64_t gva, void *to, uint64_t size)
{
    return tap_read(loop, gva, to, size) == size;
}

/* ---- is it ours, is it wanted ---------------------------------------------------------------------- */

static const struct tap_site *find_site(const struct syscall_tap *tap, const struct kvm_run *run)
{
    uint64_t rip = run->s.regs.regs.rip;
    int is_out = run->exit_reason == KVM_EXIT_IO;
    if (is_out && (run->io.port != tap->port || run->io.direction != KVM_EXIT_IO_OUT || run->io.size != 1 ||
                   run->io.count != 1))
        return NULL;
    if (!is_out && (run->exit_reason != KVM_EXIT_DEBUG || !(run->debug.arch.dr6 & DR6_BREAKPOINTS)))
        return NULL;
    for (uint32_t i = 0; i < tap->site_count && i < TAP_SITES_MAX; i++) {
        const struct tap_site *site = &tap->sites[i];
        if (is_out != (site->step != TAP_STEP_NONE))
            continue;
        /* KVM steps over an OUT before or after the exit, as its version and its emulator like it */
        if (site->rip == rip || (is_out && site->rip + OUT_BYTES == rip))
            return site;
    }
    return NULL;
}

static int has_bit(const uint64_t *words, uint64_t number)
{
    return number < TAP_NUMBERS && words[number / 64] >> number % 64 & 1;
}

static int is_wanted_process(const struct syscall_tap *tap, const struct tap_record *record)
{
    if (!tap->cr3_count && !tap->process_count)
        return 1;
    for (uint32_t i = 0; i < tap->cr3_count && i < TAP_PROCESSES_MAX; i++)
        if (tap->cr3s[i] == record->cr3)
            return 1;
    for (uint32_t i = 0; i < tap->process_count && i < TAP_PROCESSES_MAX; i++)
        if (tap->processes[i] == record->process)
            return 1;
    return 0;
}

/* ---- containers: which of Linux's cgroups and PID namespaces the task is in ---------------------------- */

static uint64_t place_of(const struct tap_record *record)
{
    return record->group ^ (uint64_t)record->pid_namespace << 32;
}

static uint64_t *known_at(struct syscall_tap *tap, const struct tap_record *record)
{
    return &tap->known[(record->group ^ record->pid_namespace) & (TAP_KNOWN - 1)];
}

/* Python has a name for where this record's task is. Two places that share a row take turns. */
void tap_know(struct syscall_tap *tap, const struct tap_record *record)
{
    __atomic_store_n(known_at(tap, record), place_of(record), __ATOMIC_RELAXED);
}

static int is_known(struct syscall_tap *tap, const struct tap_record *record)
{
    return (!record->group && !record->pid_namespace) ||
           __atomic_load_n(known_at(tap, record), __ATOMIC_RELAXED) == place_of(record);
}

static void look_at_place(struct exit_loop *loop, const struct syscall_tap *tap, uint64_t task,
                          struct tap_record *record)
{
    uint64_t at = task, namespace;
    if (tap->id_at == TAP_NO_OFFSET)
        return;
    for (int step = 0; step < TAP_STEPS; step++)
        if (!read_all(loop, at + tap->node_steps[step], &at, sizeof at))
            return;
    if (read_all(loop, at + tap->id_at, &record->group, sizeof record->group))
        record->node = at;
    else
        record->group = 0;
    if (!read_all(loop, task + tap->proxy_at, &at, sizeof at) || !at) /* none: it is about to end */
        return;
    record->proxy = at;
    if (!read_all(loop, at + tap->namespace_at, &namespace, sizeof namespace) ||
        !read_all(loop, namespace + tap->number_at, &record->pid_namespace, sizeof record->pid_namespace))
        record->pid_namespace = 0;
}

/* The process' numbers and name, as far as it is known where they stand. */
static void look_at_task(struct exit_loop *loop, const struct syscall_tap *tap, struct tap_record *record)
{
    uint64_t task;
    if (tap->current_at == TAP_NO_OFFSET ||
        !read_all(loop, loop->run->s.regs.sregs.gs.base + tap->current_at, &task, sizeof task))
        return;
    if (tap->name_at != TAP_NO_OFFSET)
        tap_read(loop, task + tap->name_at, record->name, sizeof record->name);
    if (tap->process_at != TAP_NO_OFFSET)
        tap_read(loop, task + tap->process_at, (uint8_t *)&record->process, sizeof record->process);
    if (tap->thread_at != TAP_NO_OFFSET)
        tap_read(loop, task + tap->thread_at, (uint8_t *)&record->thread, sizeof record->thread);
    look_at_place(loop, tap, task, record);
}

static void fill(struct tap_record *record, const struct saved_registers *saved, const struct tap_site *site)
{
    uint64_t args64[TAP_ARGS] = {saved->di, saved->si, saved->dx, saved->r10, saved->r8, saved->r9};
    uint64_t args32[TAP_ARGS] = {saved->bx, saved->cx, saved->dx, saved->si, saved->di, saved->bp};
    memcpy(record->args, site->abi == TAP_32 ? args32 : args64, sizeof record->args);
    record->number = saved->number, record->result = saved->ax;
    record->rip = saved->ip, record->rsp = saved->sp;
    if (site->abi == TAP_32)
        record->number = (uint64_t)(int32_t)saved->number;
    if (site->abi == TAP_32 && site->kind == TAP_CALL && (int32_t)saved->number == -1)
        record->number = (uint32_t)saved->ax; /* an INT 0x80 that Linux has not put down yet */
}

/* A signal's handler starts with RDX at the frame's ucontext (arch/x86/kernel/signal.c), where Linux has
 * put the registers that the program gets back behind the handler: the call's true result among them. */
static void look_at_signal(struct exit_loop *loop, const struct saved_registers *saved,
                           struct tap_record *record)
{
    uint64_t ip, ax;
    if (record->kind != TAP_RETURN || record->abi != TAP_64 || saved->dx != saved->sp + UCONTEXT_AT ||
        !saved->di || saved->di > SIGNALS || !read_all(loop, saved->dx + UCONTEXT_RAX_AT, &ax, sizeof ax) ||
        !read_all(loop, saved->dx + UCONTEXT_RIP_AT, &ip, sizeof ip))
        return;
    record->flags |= TAP_SIGNAL;
    record->args[0] = saved->di, record->args[1] = ip, record->args[2] = ax;
}

/* What the exit is for us: enum tap_found; `record` is filled in but for its sequence number. */
int tap_look(struct exit_loop *loop, struct tap_record *record)
{
    struct syscall_tap *tap = loop->shared->tap;
    struct kvm_run *run = loop->run;
    const struct tap_choice *choice;
    const struct tap_site *site;
    struct saved_registers saved;
    if (!tap || (run->kvm_valid_regs & NEEDED) != NEEDED || !(site = find_site(tap, run)))
        return TAP_FOREIGN;
    memset(record, 0, sizeof *record);
    record->task = run->s.regs.regs.rsp;
    if (!read_all(loop, record->task, &saved, sizeof saved)) {
        __atomic_add_fetch(&tap->wild, 1, __ATOMIC_RELAXED);
        return TAP_UNWANTED;
    }
    record->tsc = loop->exit_tsc, record->cr3 = run->s.regs.sregs.cr3 & ADDRESS;
    record->vcpu = loop->vcpu, record->kind = site->kind, record->abi = site->abi;
    record->flags = site->step == TAP_STEP_NONE ? TAP_BY_BREAKPOINT : 0;
    fill(record, &saved, site);
    look_at_signal(loop, &saved, record);
    choice = &tap->choices[site->abi == TAP_32 ? TAP_32 : TAP_64];
    if (!choice->wants_all && record->number != (uint64_t)-1 && !has_bit(choice->wanted, record->number))
        return TAP_UNWANTED;
    look_at_task(loop, tap, record);
    if (!is_wanted_process(tap, record))
        return TAP_UNWANTED;
    return has_bit(choice->in_words, record->number) || !is_known(tap, record) ? TAP_IN_WORDS : TAP_WANTED;
}

/* ---- records --------------------------------------------------------------------------------------- */

static void lock(struct syscall_tap *tap)
{
    int spins = 0;
    while (__atomic_exchange_n(&tap->lock, 1, __ATOMIC_ACQUIRE))
        if (++spins % SPINS_BEFORE_YIELD) /* its holder may have lost its CPU */
            __builtin_ia32_pause();
        else
            sched_yield();
}

static void unlock(struct syscall_tap *tap)
{
    __atomic_store_n(&tap->lock, 0, __ATOMIC_RELEASE);
}

/* Number the record and put it into the ring; 0: there is no room, and nothing has changed. */
int tap_put(struct syscall_tap *tap, const struct tap_record *record)
{
    struct tap_record *to;
    int fits;
    lock(tap);
    fits = tap->capacity && tap->head - __atomic_load_n(&tap->tail, __ATOMIC_ACQUIRE) < tap->capacity;
    if (fits) {
        to = &tap->records[tap->head & (tap->capacity - 1)];
        *to = *record;
        to->sequence = tap->sequence++;
        __atomic_store_n(&tap->head, tap->head + 1, __ATOMIC_RELEASE);
    }
    unlock(tap);
    return fits;
}

/* The next sequence number, for a record that does not go through the ring. */
uint64_t tap_number(struct syscall_tap *tap)
{
    uint64_t number;
    lock(tap);
    number = tap->sequence++;
    unlock(tap);
    return number;
}

/* Take at most `most` records out; how many there were. One reader at a time. */
uint64_t tap_take(struct syscall_tap *tap, struct tap_record *to, uint64_t most)
{
    uint64_t held = __atomic_load_n(&tap->head, __ATOMIC_ACQUIRE) - tap->tail;
    uint64_t count = held < most ? held : most;
    if (!tap->capacity)
        return 0;
    for (uint64_t i = 0; i < count; i++)
        to[i] = tap->records[(tap->tail + i) & (tap->capacity - 1)];
    __atomic_store_n(&tap->tail, tap->tail + count, __ATOMIC_RELEASE);
    return count;
}

/* ---- and on ---------------------------------------------------------------------------------------- */

static void set_test_flags(struct kvm_regs *regs, uint32_t bytes)
{
    uint64_t bits = bytes == 4 ? 32 : 8;
    uint64_t value = regs->rax & ((1ull << bits) - 1);
    regs->rflags &= ~(FLAG_CF | FLAG_PF | FLAG_ZF | FLAG_SF | FLAG_OF);
    regs->rflags |= value ? 0 : FLAG_ZF;
    regs->rflags |= value >> (bits - 1) ? FLAG_SF : 0;
    regs->rflags |= __builtin_parity((unsigned)(value & 0xff)) ? 0 : FLAG_PF;
}

/* Do what the replaced instruction does, and send the guest behind it. 0: the exit is none of ours.
 * Once for each exit. A load from where the CPU would fault gives 0: that kernel has lost its stack anyway. */
int tap_go_on(struct exit_loop *loop)
{
    struct syscall_tap *tap = loop->shared->tap;
    struct kvm_run *run = loop->run;
    struct kvm_regs *regs = &run->s.regs.regs;
    const struct tap_site *site = tap ? find_site(tap, run) : NULL;
    __u64 *by_number = &regs->rax; /* the first 16 members, in the header's order */
    uint64_t value = 0;
    if (!site || site->source >= GENERAL_REGISTERS || site->target >= GENERAL_REGISTERS)
        return 0;
    __atomic_add_fetch(site->kind == TAP_CALL ? &tap->calls : &tap->returns, 1, __ATOMIC_RELAXED);
    switch (site->step) {
    case TAP_STEP_NONE:
        regs->rflags |= RFLAGS_RF; /* or the breakpoint stops the same instruction again */
        break;
    case TAP_STEP_COPY:
        by_number[site->target] = by_number[site->source];
        break;
    case TAP_STEP_LOAD:
        if (!read_all(loop, regs->rsp + site->offset, &value, sizeof value))
            __atomic_add_fetch(&tap->wild, 1, __ATOMIC_RELAXED);
        by_number[site->target] = value;
        break;
    case TAP_STEP_TEST:
        set_test_flags(regs, site->bytes);
        break;
    default:
        break;
    }
    if (site->step != TAP_STEP_NONE)
        regs->rip = site->next;
    run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
    return 1;
}

/* The exit loop's question: 1 if the exit was a tapped instruction and the guest may go on, 0: for Python. */
int tap_answer(struct exit_loop *loop)
{
    struct tap_record record;
    int found = tap_look(loop, &record);
    if (found == TAP_FOREIGN || found == TAP_IN_WORDS)
        return 0;
    if (found == TAP_WANTED && !tap_put(loop->shared->tap, &record))
        return 0;
    return tap_go_on(loop);
}
