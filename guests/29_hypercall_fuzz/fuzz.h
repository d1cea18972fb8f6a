/* The parts of the fuzzing guest. */
#ifndef FUZZ_H
#define FUZZ_H

#include "transport.h"

#define CALLS 200
#define RAM_END 0x200000ul /* as guest.toml has it */

extern int is_shared;
uint64_t roll(uint64_t *dice);
uint64_t edge(uint64_t *dice);                             /* a number near where checks go wrong */
int make_hostile(struct hypercall *call, uint64_t *dice); /* 1: no answer but an error is right */
unsigned fuzz_rings(void);                                /* how many the host has given up */

#endif
