/* A guest's side of the paravirtual ABI: see hypercall_abi.h. */
#ifndef HYPERCALL_H
#define HYPERCALL_H

#include "cpu.h"
#include "hypercall_abi.h"

/* Ask pykvm. The struct is on the stack; in the machine's first page tables its address is also its gpa. */
static inline int64_t hypercall(uint32_t number, uint64_t arg0, uint64_t arg1)
{
    struct hypercall call = {.number = number, .abi = HYPERCALL_ABI_VERSION, .arg = {arg0, arg1}};
    out32(HYPERCALL_PORT, (uint32_t)(unsigned long)&call);
    return *(volatile int64_t *)&call.result; /* the host has written it */
}

#endif
