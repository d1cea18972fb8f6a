/* The paravirtual ABI between a guest and pykvm: numbers, structs, error codes. Its one home.
 *
 * Host C, Python (pykvm/hypercall.py), the firmware and guests (C and assembler) read this file. Every struct
 * has a fixed size and fixed offsets, the same for 16-, 32- and 64-bit guests; a test pins each of them.
 *
 * A call: fill a struct hypercall anywhere in guest RAM, 8-byte aligned, then hand its guest-physical address
 * over, in one of four ways (transports). When that is done `result` holds the answer: 0 or more is success,
 * below 0 is one of the HC_E… codes. An unknown number answers HC_ENOSYS, so a guest may ask for a call
 * before it relies on it.
 *
 *   OUT      one 32-bit OUT of the gpa to HYPERCALL_PORT; always there
 *   MMIO     one 32-bit or 64-bit store of the gpa to HYPERCALL_MMIO
 *   VMCALL   VMCALL (Intel) or VMMCALL (AMD) in ring 0 with RAX = HYPERCALL_VMCALL, RBX = HYPERCALL_VMCALL_KEY,
 *            RCX = 1, RDX = the gpa; RAX answers 0, or HC_EFAULT: the struct is not in RAM, or KVM's own error.
 *            Only where HC_FEATURES offers it: there are KVMs on which the instruction never ends
 *   ring     a struct call_ring in guest RAM, served by a thread of the host while the vCPU goes on
 *
 * A guest that was built against an older version still runs: no number, offset or meaning ever changes, a
 * struct that the host fills in only grows at its end and is cut to the size that the guest gives, and
 * HC_VERSION answers no more than the version that the guest says it was built against.
 */
#ifndef PYKVM_HYPERCALL_ABI_H
#define PYKVM_HYPERCALL_ABI_H

#define HYPERCALL_ABI_VERSION 2
#define HYPERCALL_PORT 0x510c          /* 32-bit OUT: gpa of a struct hypercall */
#define HYPERCALL_DOORBELL_PORT 0x5110 /* 32-bit OUT of any value: look at the rings */
#define HYPERCALL_MMIO 0xd0001000      /* 32-bit or 64-bit store: gpa of a struct hypercall; a load: the version */
#define HYPERCALL_VMCALL 12            /* KVM_HC_MAP_GPA_RANGE, the one number that KVM hands on */
#define HYPERCALL_VMCALL_KEY 0x70766000 /* page-aligned, as KVM wants it; tells our calls from others */

/* Numbers. Never reused, never renumbered. A gpa with a length is a buffer; all of it must lie in guest RAM. */
#define HC_VERSION 0        /* -> the version that both sides speak */
#define HC_EXIT 1           /* arg0 = exit code; the call does not return */
#define HC_CONSOLE_WRITE 2  /* arg0 = gpa, arg1 = length, at most 1 MiB -> bytes written (all of them) */
#define HC_TIME 3           /* -> nanoseconds of the host's monotonic clock */
#define HC_MARK 4           /* arg0 = a number the guest chooses; seen in the trace and in the result */
#define HC_CONSOLE_READ 5   /* arg0 = gpa, arg1 = length -> bytes read, 0 at the input's end, HC_EAGAIN: none yet */
#define HC_RANDOM 6         /* arg0 = gpa, arg1 = length, at most 1 MiB -> random bytes written (all of them) */
#define HC_YIELD 7          /* arg0 = nanoseconds, ~0: without end; arg1 = HC_YIELD_… -> 0: go on. Not in a ring */
#define HC_TRACE_RING 8     /* arg0 = gpa of a struct syscall_ring, arg1 = its bytes -> SYSCALL_CLOCK_… */
#define HC_TRACE_DRAIN 9    /* -> records that the host took out: the ring is empty */
#define HC_FAULT 10         /* arg0 = gpa of a struct program_fault: a program was killed -> 0 */
/* since version 2: */
#define HC_FEATURES 11      /* -> HC_HAS_… bits, and the transport the host likes best << HC_PREFERRED_SHIFT */
#define HC_MEMORY_MAP 12    /* arg0 = gpa of memory_ranges, arg1 = length -> how many there are; whole ones are written */
#define HC_STATS 13         /* arg0 = gpa of a struct host_stats, arg1 = length -> bytes written */
#define HC_CALL_RING 14     /* arg0 = gpa of a struct call_ring, arg1 = its bytes, arg2 = CALL_RING_… -> its number */
/* The firmware's since version 1, everybody's since version 2. A machine without a disk answers HC_ENODEV. */
#define HC_BLOCK_INFO 0x10  /* arg0 = gpa of a struct block_info or 0, arg1 = length (both since 2) -> sectors */
#define HC_BLOCK_READ 0x11  /* arg0 = first sector, arg1 = count, arg2 = gpa -> sectors moved (all of them) */
#define HC_BLOCK_WRITE 0x12 /* the same from memory to disk */

#define HC_NOTHING 0xffffffff /* never a call: what a trace shows where a call could not be read */

#define HC_YIELD_INPUT 1 /* and no longer than until the console has input, or its end */
#define HC_BLOCK_SECTOR 512   /* bytes */
#define HC_BLOCK_MOST 65535   /* sectors in one call */

/* What HC_FEATURES answers: transports, … */
#define HC_HAS_OUT 1
#define HC_HAS_MMIO 2
#define HC_HAS_VMCALL 4
#define HC_HAS_RING 8
#define HC_HAS_RING_INTERRUPT 16 /* a ring may interrupt: CALL_RING_INTERRUPT */
#define HC_HAS_DISK 32
#define HC_PREFERRED_SHIFT 32 /* … and above this bit one of the first four again */

/* Errors, numbered as Linux numbers them. */
#define HC_EIO (-5)
#define HC_EAGAIN (-11)
#define HC_EFAULT (-14) /* an address or length is not inside guest RAM */
#define HC_EBUSY (-16)  /* there are CALL_RINGS_MAX rings already */
#define HC_ENODEV (-19) /* this machine has no disk */
#define HC_EINVAL (-22)
#define HC_EROFS (-30)  /* the disk can't be written */
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

/* Where guest memory is. */
#define MEMORY_RAM 1
#define MEMORY_ROM 2 /* reads as memory; writes are errors */

struct memory_range {
    uint64_t start, size_bytes; /* gpa */
    uint32_t kind;              /* MEMORY_… */
    uint32_t reserved;
};

/* What the host has counted so far, over all vCPUs. */
struct host_stats {
    uint64_t entries;    /* KVM_RUN calls */
    uint64_t exits;      /* returns of KVM_RUN */
    uint64_t fast_exits; /* of them answered in C */
    uint64_t io_exits, mmio_exits, hypercall_exits; /* by reason */
    uint64_t ring_calls; /* taken out of rings: these cause no exit */
    uint64_t ring_wakes; /* times that the rings' thread was woken up */
};

#define BLOCK_READ_ONLY 1

struct block_info {
    uint64_t sectors;
    uint32_t sector_bytes; /* HC_BLOCK_SECTOR */
    uint32_t most_sectors; /* HC_BLOCK_MOST */
    uint32_t flags;        /* BLOCK_… */
    uint32_t reserved;
};

/* A ring of calls in guest RAM, 8-byte aligned: this header, and behind it `capacity` structs hypercall.
 *
 * The guest fills in calls from head modulo `capacity` on, then adds their number to `head`, then writes to
 * HYPERCALL_DOORBELL_PORT if `wants_doorbell` is not 0 (with a full barrier between the two). The host does
 * them in order, each as by any other way, writes `result`, and adds 1 to `tail`: a call is done when `tail`
 * has passed it. head - tail is never above `capacity`: where it is, the host leaves the ring alone for good,
 * and says so in `error`. HC_YIELD and HC_CALL_RING answer HC_EINVAL in a ring.
 */
#define CALL_RING_INTERRUPT 1 /* raise CALL_RING_GSI, an edge, when a batch is done */
#define CALL_RING_GSI 5
#define CALL_RING_CALLS_MAX 4096
#define CALL_RINGS_MAX 16

struct call_ring {
    uint32_t header_bytes; /* where the calls begin: 128 */
    uint32_t call_bytes;   /* HC_SIZE */
    uint64_t capacity;     /* calls, a power of two */
    uint64_t head;         /* written by the guest: calls handed over */
    uint64_t reserved0[5];
    uint64_t tail;           /* written by the host: calls done */
    uint32_t wants_doorbell; /* written by the host: 0 while it looks by itself */
    int32_t error;           /* written by the host: 0, or HC_EINVAL: the ring is damaged, nothing more is done */
    uint64_t reserved1[6];
};
#endif

#endif
