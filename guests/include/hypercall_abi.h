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

/* Errors, numbered as Linux numbers them. */
#define HC_EIO (-5)
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
#endif

#endif
