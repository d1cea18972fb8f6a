/* More than one CPU: start the others, and a lock. */
#ifndef SMP_H
#define SMP_H

#include "cpu.h"

/* How many CPUs the board has, and which this one is (its APIC id): both from CPUID. */
static inline unsigned cpu_count(void) { return cpuid(1, 0).ebx >> 16 & 0xff; }
static inline unsigned cpu_id(void) { return cpuid(1, 0).ebx >> 24; }

/* Let all the other CPUs run entry(), at the same time, each with a small stack; then they halt. */
void start_other_cpus(void (*entry)(void));

static inline void lock(volatile int *held)
{
    while (__atomic_exchange_n(held, 1, __ATOMIC_ACQUIRE))
        pause();
}

static inline void unlock(volatile int *held)
{
    __atomic_store_n(held, 0, __ATOMIC_RELEASE);
}

#endif
