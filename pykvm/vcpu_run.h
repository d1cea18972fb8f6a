/* The exit loop's data, shared by C, Python (through cffi) and the tests.
 *
 * C measures: it runs the guest, stamps one trace_record per exit, and does the few things that must
 * be fast. It knows no policy: which port is fast, and what for, is a table that Python fills.
 */
#ifndef PYKVM_VCPU_RUN_H
#define PYKVM_VCPU_RUN_H

#include <stddef.h>
#include <stdint.h>
#include <linux/kvm.h>

/* Why exit_loop_run() returned. */
enum loop_result {
    LOOP_EXIT = 0,         /* Python handles kvm_run->exit_reason */
    LOOP_KICKED = 1,       /* somebody asked for it with exit_loop_kick() */
    LOOP_SIGNAL = 2,       /* a signal that was no kick */
    LOOP_TRACE_FULL = 3,   /* drain the trace ring, then run again: the exit is kept */
    LOOP_CONSOLE_FULL = 4, /* drain the byte ring, then run again: the bytes are kept */
    LOOP_ERROR = 5,        /* KVM_RUN failed: exit_loop.error is its errno */
};

/* What a fast port does with a write. Reads of a fast port go to Python. */
enum fast_verb {
    VERB_NONE = 0,      /* not fast */
    VERB_DISCARD = 1,   /* take it and forget it */
    VERB_APPEND = 2,    /* append the bytes to the port's byte ring */
    VERB_DOORBELL = 3,  /* signal the port's eventfd, once per repetition */
    VERB_HYPERCALL = 4, /* the gpa of a struct hypercall; what C does not know goes to Python */
    VERB_STEP = 5,      /* no port's: a single step that is only recorded */
    VERB_TAP = 6,       /* the syscall tap: an OUT in place of an instruction, or a breakpoint */
};

enum ring_mode {
    RING_OVERWRITE = 0, /* keep the newest: the flight recorder */
    RING_STOP = 1,      /* full: stop the vCPU until Python has drained it; nothing is lost */
    RING_DROP = 2,      /* full: drop the new record and count it */
};

enum record_flags {
    RECORD_WRITE = 1,  /* the guest wrote; else it read */
    RECORD_REGS = 2,   /* the general registers are valid */
    RECORD_SREGS = 4,  /* cr0, cr3, cr4, efer, cs_base and cpl are valid */
    RECORD_DONE = 8,   /* the exit was answered and the guest went on at resume_tsc */
    RECORD_CALL = 16,  /* it was a hypercall: call_number and call_args are valid */
    RECORD_RESULT = 32, /* and it was answered: call_result is valid */
    RECORD_WAITED = 64, /* the ring was full: its time includes waiting for the reader */
};

/* One exit: 320 bytes, fixed. Times are TSC ticks of the host. */
struct trace_record {
    uint64_t enter_tsc;  /* KVM_RUN was called, for the first time after the exit before */
    uint64_t exit_tsc;   /* KVM_RUN returned */
    uint64_t resume_tsc; /* the exit was answered; the next KVM_RUN follows */
    uint64_t address;    /* port, gpa, hypercall number, MSR index … */
    uint8_t data[8];     /* the first data bytes; of a read, as answered */
    uint32_t reason;     /* KVM_EXIT_… */
    uint32_t count;      /* repetitions of a string I/O */
    uint16_t vcpu;
    uint8_t size;        /* bytes of one access */
    uint8_t flags;       /* enum record_flags */
    uint8_t verb;        /* enum fast_verb that answered, VERB_NONE: Python did */
    uint8_t cpl;
    uint8_t code_bits;   /* with RECORD_SREGS: 16, 32 or 64 */
    uint8_t text_bytes;  /* how much of text is valid */
    uint64_t rip, rsp, rflags, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15;
    uint64_t cr0, cr3, cr4, efer, cs_base;
    uint64_t call_args[4]; /* as in struct hypercall */
    int64_t call_result;
    uint32_t call_number;
    uint32_t reserved;
    uint8_t text[32]; /* the first bytes of a string I/O, or of what a hypercall wrote */
};

/* Records of one vCPU: one producer (the vCPU's thread), one consumer. Index modulo `capacity`. */
struct trace_ring {
    struct trace_record *records;
    uint64_t capacity; /* a power of two */
    uint64_t head;     /* written by the producer: records completed */
    uint64_t tail;     /* written by the consumer: records taken (not used by RING_OVERWRITE) */
    uint64_t dropped;
    uint32_t mode;     /* enum ring_mode */
};

/* Bytes from all vCPUs to one reader. */
struct byte_ring {
    uint8_t *bytes;
    uint64_t capacity; /* a power of two */
    uint64_t head, tail;
    uint32_t lock; /* writers take turns */
};

struct fast_port {
    uint32_t verb;
    int32_t doorbell_fd; /* an eventfd, or -1 */
    struct byte_ring *ring;
};

struct guest_slot {
    uint64_t gpa, size;
    uint8_t *host;
    uint32_t read_only;
};

#define FAST_PORTS_MAX 32
#define GUEST_SLOTS_MAX 64
#define EXIT_REASONS_MAX 64

struct guest_mark {
    uint64_t value;
    int64_t time_ns; /* CLOCK_MONOTONIC */
};

struct syscall_tap; /* syscall_tap.h */

/* One per machine, read by all its vCPUs. Python changes it only while none of them runs. */
struct loop_shared {
    uint8_t fast_index[65536]; /* port -> index in fast_ports; 0: not fast */
    struct fast_port fast_ports[FAST_PORTS_MAX];
    struct guest_slot slots[GUEST_SLOTS_MAX]; /* sorted by gpa */
    uint32_t slot_count;
    struct byte_ring console; /* what HC_CONSOLE_WRITE appends to */
    struct byte_ring marks;   /* what HC_MARK appends to: structs guest_mark */
    uint64_t call_register;   /* gpa: a store here is a hypercall, as at the ports of VERB_HYPERCALL; 0: none */
    struct syscall_tap *tap;  /* syscall_tap.h; NULL: none */
};

/* The exit that Python has not seen yet, because a ring was full or because it has just come. */
enum pending {
    PENDING_NONE = 0,
    PENDING_NEW = 1,      /* it has no trace record yet */
    PENDING_RECORDED = 2, /* it has one, or was dropped, and is not answered */
};

/* One per vCPU. */
struct exit_loop {
    int32_t fd;
    uint32_t vcpu;
    struct kvm_run *run;
    uint64_t run_bytes; /* the size of the kvm_run mapping */
    struct loop_shared *shared;
    struct trace_ring trace;
    uint32_t kick;   /* somebody wants the vCPU out */
    int32_t tid;     /* the thread inside exit_loop_run(), or 0 */
    int32_t error;
    uint32_t pending; /* enum pending */
    uint64_t open;    /* 1 + index of the record that waits for its end, or 0 */
    uint64_t enter_tsc, exit_tsc;
    uint64_t stay_tsc;    /* the first enter_tsc after the last exit: signals interrupt a stay, exits end it */
    uint64_t outside;     /* 1: KVM_RUN has returned and was not called again */
    uint64_t answering;   /* 1: an exit is being answered since exit_tsc */
    uint64_t own_from;    /* since when the time is ours, or 0 */
    uint64_t own_ticks;   /* between KVM_RUN's return and the next entry or our own return */
    uint64_t guest_ticks; /* inside KVM_RUN */
    uint64_t answer_ticks; /* from exits to the next entry: our own time and Python's */
    uint64_t full_tsc;     /* since when the trace ring is full, or 0 */
    uint64_t wait_ticks;   /* of answer_ticks: waiting for the trace's reader */
    uint64_t step_period;  /* of the single steps only every n-th is recorded, Python sees none; 0: off */
    uint64_t steps;        /* single steps so far, where step_period is not 0 */
    uint64_t entries;     /* KVM_RUN calls */
    uint64_t exits;       /* returns of KVM_RUN with an exit reason */
    uint64_t fast_exits;  /* of them, answered in C */
    uint64_t by_reason[EXIT_REASONS_MAX + 1]; /* the last one: reasons beyond the table */
    uint64_t by_fast_port[FAST_PORTS_MAX];    /* writes answered in C, a string's every repetition */
};

struct hypercall; /* hypercall_abi.h */

enum answer { ANSWERED, FOR_PYTHON, RING_IS_FULL };

#define RECORD_BY_RING 0x10000 /* a record's `reason` where no exit brought the hypercall; address: the ring */

/* vcpu_run.c */
int exit_loop_run(struct exit_loop *loop);
void exit_loop_kick(struct exit_loop *loop);
int kick_signal_install(void);
int tick_start(uint64_t first_ns, uint64_t interval_ns);
void tick_stop(int tick);
uint64_t tsc_now(void);

/* trace_record.c */
int record_open(struct exit_loop *loop);
int record_open_call(struct exit_loop *loop, uint64_t ring);
struct trace_record *record_current(struct exit_loop *loop);
void record_close(struct exit_loop *loop, uint64_t now, uint8_t flags);
void record_call(struct trace_record *record, const struct hypercall *call, uint8_t flags);
void record_text(struct trace_record *record, const uint8_t *from, uint64_t size);
void exit_loop_settle(struct exit_loop *loop);

/* fast_call.c */
enum answer fast_call(struct loop_shared *shared, struct trace_record *record, struct hypercall *call);
enum answer fast_call_at(struct loop_shared *shared, struct trace_record *record, uint64_t gpa);
enum answer fast_call_exit(struct exit_loop *loop, struct trace_record *record);

/* guest_bytes.c */
const uint8_t *io_bytes(const struct exit_loop *loop, uint64_t *size);
uint8_t *slot_bytes(const struct guest_slot *slots, uint32_t count, uint64_t gpa, uint64_t size, int write);
uint8_t *guest_bytes(const struct loop_shared *shared, uint64_t gpa, uint64_t size, int write);
int byte_ring_append(struct byte_ring *ring, const uint8_t *from, uint64_t size);
uint64_t byte_ring_read(struct byte_ring *ring, uint8_t *to, uint64_t most);

#endif
