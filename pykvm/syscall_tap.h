/* The syscall tap: what the exit loop does when a guest's kernel passes one of the tapped instructions.
 *
 * Python finds the instructions and fills `struct syscall_tap`; C reads the registers that the kernel has
 * saved on its stack, applies the filter, records, does in software what the replaced instruction would
 * have done, and lets the guest go on.
 */
#ifndef PYKVM_SYSCALL_TAP_H
#define PYKVM_SYSCALL_TAP_H

#include <stdint.h>

#define TAP_SITES_MAX 16
#define TAP_NUMBERS 1024 /* syscalls beyond are wanted only where all are */
#define TAP_PROCESSES_MAX 16
#define TAP_ABIS 2
#define TAP_ARGS 6
#define TAP_NAME_BYTES 16
#define TAP_NO_OFFSET UINT32_MAX
#define TAP_STEPS 3
#define TAP_KNOWN 256 /* a power of two */

enum tap_abi { TAP_64 = 0, TAP_32 = 1 };
enum tap_kind { TAP_CALL = 1, TAP_RETURN = 2 };

/* What is done in place of the instruction at a site. `source`, `target` are indices into struct kvm_regs. */
enum tap_step {
    TAP_STEP_NONE = 0, /* it is still there: a breakpoint */
    TAP_STEP_SKIP = 1, /* a no-operation, or a jump to `next` */
    TAP_STEP_COPY = 2, /* mov %source, %target */
    TAP_STEP_LOAD = 3, /* mov offset(%rsp), %target */
    TAP_STEP_TEST = 4, /* test %al, %al or, with 4 bytes, test %eax, %eax */
};

struct tap_site {
    uint64_t rip;  /* linear address of the instruction */
    uint64_t next; /* where the guest goes on */
    uint32_t kind; /* enum tap_kind */
    uint32_t abi;  /* enum tap_abi */
    uint32_t step; /* enum tap_step */
    uint32_t source, target, offset, bytes;
};

/* What is wanted of the calls of one ABI. */
struct tap_choice {
    uint64_t wanted[TAP_NUMBERS / 64];
    uint64_t in_words[TAP_NUMBERS / 64]; /* Python puts these into words while the vCPU stands still */
    uint32_t wants_all;
};

/* One call or return: 192 bytes, fixed. */
struct tap_record {
    uint64_t sequence; /* over all vCPUs, from 0, without a gap */
    uint64_t tsc;
    uint64_t task; /* linear address of the registers that the kernel saved: one for each task */
    uint64_t cr3;
    uint64_t number; /* -1 on a return that the kernel has made up: rt_sigreturn */
    uint64_t result;
    uint64_t args[TAP_ARGS];
    uint64_t rip, rsp; /* the program's */
    uint64_t flags;    /* enum tap_flags */
    uint32_t vcpu, kind, abi;
    int32_t process, thread; /* Linux's numbers, 0 where they are not known */
    uint8_t name[TAP_NAME_BYTES];
    uint32_t pid_namespace;  /* its inode number; 0 where it is not known, as those below */
    uint64_t group;          /* the id of its cgroup's kernfs node, which the kernel never gives twice */
    uint64_t node, proxy;    /* linear addresses of that node, and of the task's struct nsproxy */
    uint64_t reserved;
};

enum tap_flags {
    TAP_BY_BREAKPOINT = 1,
    TAP_SIGNAL = 2, /* it returns into a signal's handler: args are its number, and RIP and RAX behind it */
};

struct syscall_tap {
    struct tap_site sites[TAP_SITES_MAX];
    uint32_t site_count;
    uint32_t port; /* the OUT that replaces instructions goes there */
    struct tap_choice choices[TAP_ABIS];
    uint64_t cr3s[TAP_PROCESSES_MAX];
    uint32_t cr3_count;
    int32_t processes[TAP_PROCESSES_MAX];
    uint32_t process_count;
    /* Linux's task_struct: where the current one's address is below GS, and offsets in it; or TAP_NO_OFFSET */
    uint32_t current_at, name_at, process_at, thread_at;
    /* struct task_struct → cgroups → dfl_cgrp → kn, and the id in it; → nsproxy → PID namespace, and the number in it */
    uint32_t node_steps[TAP_STEPS], id_at, proxy_at, namespace_at, number_at;
    uint64_t known[TAP_KNOWN]; /* tap_place() of those that Python has a name for; others go to Python once */
    struct tap_record *records;
    uint64_t capacity; /* a power of two */
    uint64_t head, tail;
    uint64_t sequence;
    uint32_t lock;
    uint64_t calls, returns; /* seen, wanted or not */
    uint64_t wild;           /* of them, those whose saved registers could not be read */
};

/* What tap_look() found. */
enum tap_found {
    TAP_FOREIGN = 0,  /* no exit of ours */
    TAP_UNWANTED = 1, /* the filter says no */
    TAP_WANTED = 2,
    TAP_IN_WORDS = 3, /* wanted, and Python is to look at the program's memory */
};

struct exit_loop;
int tap_look(struct exit_loop *loop, struct tap_record *record);
int tap_put(struct syscall_tap *tap, const struct tap_record *record);
int tap_go_on(struct exit_loop *loop);
int tap_answer(struct exit_loop *loop);
uint64_t tap_take(struct syscall_tap *tap, struct tap_record *to, uint64_t most);
uint64_t tap_number(struct syscall_tap *tap);
void tap_know(struct syscall_tap *tap, const struct tap_record *record);
uint64_t tap_read(struct exit_loop *loop, uint64_t gva, uint8_t *to, uint64_t size);

#endif
