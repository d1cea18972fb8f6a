/* The instructions that C has no words for, and the registers that they need. */
#ifndef CPU_H
#define CPU_H

#include <stdint.h>

#include "guest.h"

/* ---- ports: each of these is a VM exit, unless KVM has the device in the kernel -------------------- */

static inline void out8(uint16_t port, uint8_t value)
{
    asm volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out32(uint16_t port, uint32_t value)
{
    asm volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline uint8_t in8(uint16_t port)
{
    uint8_t value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

static inline uint32_t in32(uint16_t port)
{
    uint32_t value;
    asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

/* End the run. */
static inline void guest_exit(uint32_t code)
{
    out32(PORT_EXIT, code);
}

/* ---- interrupts: HLT waits for one; STI takes effect after the next instruction, so none gets between */

static inline void interrupts_off(void) { asm volatile("cli" : : : "memory"); }
static inline void interrupts_on(void) { asm volatile("sti" : : : "memory"); }
static inline void wait_for_interrupt(void) { asm volatile("sti; hlt; cli" : : : "memory"); }
static inline void pause(void) { asm volatile("pause" : : : "memory"); }

/* ---- CPUID, model-specific registers, control registers -------------------------------------------- */

struct cpuid {
    uint32_t eax, ebx, ecx, edx;
};

static inline struct cpuid cpuid(uint32_t leaf, uint32_t subleaf)
{
    struct cpuid r;
    asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
    return r;
}

#define MSR_EFER 0xc0000080
#define MSR_STAR 0xc0000081  /* the segments that SYSCALL and SYSRET load */
#define MSR_LSTAR 0xc0000082 /* where SYSCALL goes */
#define MSR_FMASK 0xc0000084 /* the flags that SYSCALL clears */
#define EFER_SCE 0x1         /* SYSCALL is allowed */
#define EFER_LME 0x100       /* long mode with the next CR0.PG */

static inline uint64_t read_msr(uint32_t index)
{
    uint32_t low, high;
    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(index));
    return (uint64_t)high << 32 | low;
}

static inline void write_msr(uint32_t index, uint64_t value)
{
    asm volatile("wrmsr" : : "c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}

/* CR2: the address of the last page fault. CR3: the page tables; writing it forgets old translations. */
static inline unsigned long read_cr2(void)
{
    unsigned long value;
    asm volatile("mov %%cr2, %0" : "=r"(value));
    return value;
}

static inline unsigned long read_cr3(void)
{
    unsigned long value;
    asm volatile("mov %%cr3, %0" : "=r"(value));
    return value;
}

static inline void write_cr3(unsigned long value)
{
    asm volatile("mov %0, %%cr3" : : "r"(value) : "memory");
}

#endif
