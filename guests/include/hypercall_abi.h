/* The paravirtual ABI between a guest and pykvm: numbers, structs, error codes. Its one home.
 *
 * Host C, Python (pykvm/hypercall.py) and guests (C and assembler) read this file. Every struct has a
 * fixed size and fixed offsets, the same for 16-, 32- and 64-bit guests; a test pins each of them.
 *
 * A call: fill a struct hypercall anywhere in guest RAM, 8-byte aligned, then write its guest-physical
 * address with one 32-bit OUT to HYPERCALL_PORT. When the OUT is over, `result` holds the answer:
 * 0 or more is success, below 0 is one of the HC_E… codes. An unknown number answers HC_ENOSYS, so a
 * guest may ask for a call before it relies on it.
 */
#ifndef PYKVM_HYPERCALL_ABI_H
#define PYKVM_HYPERCALL_ABI_H

#define HYPERCALL_ABI_VERSION 1
#define HYPERCALL_PORT 0x510c /* 32-bit OUT: gpa of a struct hypercall */

/* Numbers. Never reused, never renumbered. */
#define HC_VERSION 0        /* -> HYPERCALL_ABI_VERSION of the host */
#define HC_EXIT 1           /* arg0 = exit code; the call does not return */
#define HC_CONSOLE_WRITE 2  /* arg0 = gpa, arg1 = length -> bytes written (all of them) */
#define HC_TIME 3           /* -> nanoseconds of the host's monotonic clock */
#define HC_MARK 4           /* arg0 = a number the guest chooses; seen in the trace and in the result */
#define HC_CONSOLE_READ 5   /* arg0 = gpa, arg1 = length -> bytes read, 0 at the end of the input, HC_EAGAIN: none yet */
#define HC_RANDOM 6         /* arg0 = gpa, arg1 = length, at most 1 MiB -> random bytes written (all of them) */
#define HC_YIELD 7          /* arg0 = nanoseconds, ~0: without end; arg1 = HC_YIELD_… -> 0: go on */
#define HC_TRACE_RING 8     /* arg0 = gpa of a struct syscall_ring, arg1 = bytes with its records -> SYSCALL_CLOCK_… */
#define HC_TRACE_DRAIN 9    /* -> records that the host took out: the ring is empty */
#define HC_FAULT 10         /* arg0 = gpa of a struct program_fault: a program was killed -> 0 */

#define HC_YIELD_INPUT 1 /* and no longer than until the console has input, or its end */

/* Errors, numbered as Linux numbers them. */
#define HC_EIO (-5)
#define HC_EAGAIN (-11)
#define HC_EFAULT (-14) /* an address or length is not inside guest RAM */
#define HC_EINVAL (-22)
#define HC_ENOSYS (-38)

/* struct hypercall, for assembler: */
#define HC_NUMBER 0   /* u32 */
#define HC_ABI 4      /* u32: the version the guest was built against */
#define HC_RESULT 8   /* s64 */
#define HC_ARG0 16    /* u64 each */
#define HC_ARG1 24
#define HC_ARG2 32
#define HC_ARG3 40
#define HC_SIZE 48

#ifndef __ASSEMBLER__
#include <stdint.h>

struct hypercall {
    uint32_t number;
    uint32_t abi;
    int64_t result;
    uint64_t arg[4];
} __attribute__((aligned(8)));

/* What a guest's kernel tells of the system calls of its programs: a ring of records in guest RAM.
 *
 * HC_TRACE_RING announces it, once. The guest writes the record at head modulo `capacity` and then adds 1 to
 * `head`; the host takes records and adds to `tail`, at any time. Where head - tail equals `capacity` the
 * ring is full and the guest asks with HC_TRACE_DRAIN before it writes on: nothing gets lost. HC_TRACE_RING's
 * result is the clock that the host wants the times of.
 */
#define SYSCALL_CLOCK_TSC 0 /* the guest's TSC */
#define SYSCALL_CLOCK_KVM 1 /* kvmclock in ns, where the guest's TSC jumps because the host's is not steady */

#define SYSCALL_DONE 1    /* it returned: `result` and `end_time` are valid */
#define SYSCALL_UNKNOWN 2 /* the kernel does not have it, and answered -ENOSYS */

struct syscall_record {
    uint64_t number;
    uint64_t arg[6];
    int64_t result;
    uint64_t start_time, end_time; /* after entering the kernel, before leaving it */
    uint64_t cr3;
    uint64_t rip; /* where the program goes on */
    uint32_t flags; /* SYSCALL_… */
    uint32_t vcpu;
    uint32_t pid, tid;
};

struct syscall_ring {
    uint32_t header_bytes; /* where the records begin: 64 */
    uint32_t record_bytes; /* 112 */
    uint64_t capacity;     /* records, a power of two */
    uint64_t head;         /* written by the guest: records completed */
    uint64_t tail;         /* written by the host: records taken */
    uint64_t reserved[4];
};

/* Why a guest's kernel killed a program. */
#define FAULT_EXCEPTION 0 /* by `vector`, `error` and `address` (CR2) of the CPU */
#define FAULT_STACK 1     /* the same; its stack has outgrown its limit */
#define FAULT_FILE_END 2  /* the same; the page lies behind the end of the file that is mapped there */
#define FAULT_NO_MEMORY 3 /* the same; the guest has no memory for that page */
#define FAULT_RAISED 4    /* the program asked for it with kill() or abort(): only rip and rsp are valid */

struct program_fault {
    uint32_t kind;   /* FAULT_… */
    uint32_t signal; /* as Linux numbers them */
    uint32_t vector;
    uint32_t code_bytes; /* of `code`, 0 to 16 */
    uint64_t error, address;
    uint64_t rip, rflags;
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp;
    uint64_t r8, r9, r10, r11, r12, r13, r14, r15;
    uint64_t load_base;   /* added to the addresses of the program's ELF file */
    uint8_t code[16];     /* from rip on */
};
#endif

#endif
