/* The paravirtual kernel: runs one static Linux program in ring 3 and asks pykvm for what needs a host.
 *
 * start.S    entered here; the ways in and out of ring 3
 * main.c     descriptor tables, CPU features, from the boot information to the program's first instruction
 * frames.c   free page frames, page tables
 * areas.c    what the program has mapped, page faults; mapping.c: mmap() and its relatives
 * user.c     the only door to the program's memory
 * exec.c     the ELF file and the first stack
 * files.c    the read-only file set, file descriptors; io.c: reading and writing
 * process.c  identity, limits, signals, the end; time.c: clocks, sleeping, futex
 * syscalls.c the table of system calls; trace.c: what is told of them
 *
 * The address space: the program has all of the lower half but its last page. In the upper half, for ring 0
 * alone, all RAM appears at DIRECT, and the kernel itself again at KERNEL, code and data with their own rights.
 * There is one process with one thread, no interrupt is ever let in, and the kernel does not touch the FPU.
 */
#ifndef KERNEL_H
#define KERNEL_H

#define KERNEL_BASE 0xffffffff80000000 /* gpa 0 */
#define USER_END 0x7ffffffff000        /* no page there: SYSCALL as its last instruction would return behind it */
#define PAGE 4096
#define PID 100 /* of the one process */

#ifndef __ASSEMBLER__
#include <stdint.h>


#include "hypercall_abi.h"
#include "interrupts.h"
#include "paravirt_boot.h"

#define DIRECT 0xffff800000000000ul

typedef struct syscall { /* what syscall_entry pushes; of the other registers C keeps what is the program's */
    uint64_t number;
    uint64_t arg[6]; /* RDI RSI RDX R10 R8 R9 */
    uint64_t rflags, rip, rsp;
} syscall_t;

/* ---- the host */
extern const struct paravirt_boot *boot;
int64_t ask(uint32_t number, uint64_t arg0, uint64_t arg1);
int64_t ask3(uint32_t number, uint64_t arg0, uint64_t arg1, uint64_t arg2);
uint64_t gpa_of(const void *kernel_address);

static inline void *direct(uint64_t gpa) { return (void *)(DIRECT + gpa); }

/* ---- frames.c: pages of RAM, and entries of page tables */
#define PRESENT 0x1ul
#define WRITABLE 0x2ul
#define USER 0x4ul
#define OWNED 0x200ul /* ours to give meaning: the frame belongs to this page alone, and is freed with it */
#define NO_EXECUTE (1ul << 63)
#define FRAME 0xffffffffff000ul

void frames_init(void);
uint64_t frame_alloc(void);       /* the gpa of a page of zeros; 0: there is none left */
void frame_free(uint64_t gpa);
uint64_t frames_total(void);
uint64_t frames_reserve(uint64_t bytes); /* the gpa of that many in a row, only before the first alloc; or 0 */
uint64_t *entry_of(uint64_t address, int create); /* the last-level entry; NULL: no table, or no frame for one */
void forget(uint64_t start, uint64_t end);        /* the CPU's memory of entries that have changed */

/* ---- areas.c */
enum { AREA_FILE = 1, AREA_COPY = 2, AREA_STACK = 4 };
enum fault { FAULT_OK, FAULT_BAD, FAULT_PAST_FILE, FAULT_NO_FRAME }; /* what area_fault() finds */

int area_map(uint64_t start, uint64_t end, unsigned prot, unsigned flags, uint64_t file, uint64_t file_bytes);
enum fault area_fault(uint64_t address, unsigned prot); /* make the page present for that kind of access */
int area_is_below_stack(uint64_t address);
void heap_init(uint64_t start);

/* ---- user.c: all answer 0 where a page of the range is not the program's to use in that way */
void *user_bytes(uint64_t address, uint64_t *size, int write); /* *size becomes what lies in a row from there */
void user_forget(void); /* pages have changed */
int user_read(void *to, uint64_t address, uint64_t size);
int user_write(uint64_t address, const void *from, uint64_t size);
int64_t user_string(char *to, uint64_t address, uint64_t size); /* its length, or -EFAULT, -ENAMETOOLONG */
void copy(void *to, const void *from, uint64_t size);
void fill(void *to, int byte, uint64_t size);

/* ---- exec.c, files.c, process.c */
struct start {
    uint64_t rip, rsp;
};
int exec_load(struct start *start);
extern uint64_t exec_base;
void files_init(void);
uint64_t file_of(int64_t fd, uint64_t *size_bytes); /* the gpa of what an open file holds; 0: no such file */
_Noreturn void end_program(unsigned code);
_Noreturn void kill_program(unsigned kind, unsigned signal, const struct frame *frame, const syscall_t *call);

/* ---- trace.c: nothing of it happens where no trace is wanted */
extern int trace_is_on;
void trace_init(void);
void trace_start(void);                                                /* of the call that has just come */
void trace_end(const syscall_t *call, int64_t result, unsigned flags); /* flags: SYSCALL_… */

/* ---- start.S */
extern char kernel_start[], kernel_text_end[], kernel_end[]; /* kernel.ld */
extern char kernel_stack_end[], syscall_entry[], page_fault_entry[];
extern uint64_t syscalls_by_fault;
_Noreturn void enter_ring3(uint64_t rip, uint64_t rsp);
#endif

#endif
