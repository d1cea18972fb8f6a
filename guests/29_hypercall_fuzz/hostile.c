/* What the hostile calls are. */
#include "fuzz.h"

#define HARMLESS (RAM_END / 4 * 3) /* from here on memory is free to be overwritten; we are below */

uint64_t edge(uint64_t *dice) /* near one of the places where checks go wrong */
{
    static const uint64_t edges[] = {0, 1, 0x1000, 1ul << 20, 1ul << 32, 1ul << 63, -1ul, -RAM_END};
    uint64_t n = roll(dice);
    return n & 0x100 ? n : edges[n & 7] + (n >> 32 & 31) - 16;
}

static uint64_t somewhere(uint64_t *dice) /* free memory, its end, or nowhere: never our own */
{
    uint64_t n = roll(dice);
    if (n & 1)
        return HARMLESS + (n >> 8) % (RAM_END - HARMLESS);
    return n & 2 ? RAM_END - 64 + (n >> 8) % 128 : (1ul << 40) + edge(dice) % (1ul << 62);
}

int is_shared; /* the struct: another CPU may turn a wild address into a good one, and print something */

int make_hostile(struct hypercall *call, uint64_t *dice)
{
    uint64_t n = roll(dice);
    unsigned number = n & 1 ? (unsigned)(n >> 8) % 19 : (unsigned)(n >> 32) | 0x100;
    if (number == HC_EXIT || number == HC_YIELD || number == HC_MARK || (number == HC_CONSOLE_WRITE && is_shared))
        number = HC_TIME;
    call->abi = (unsigned)edge(dice);
    call->arg[0] = somewhere(dice) | (number == HC_CONSOLE_WRITE ? 1ul << 40 : 0);
    call->arg[1] = number == HC_CONSOLE_WRITE ? edge(dice) | 1 : edge(dice);
    call->arg[2] = somewhere(dice);
    call->number = number;
    return number > 18 || ((number == HC_RANDOM || number == HC_CONSOLE_WRITE) && call->arg[0] >= RAM_END);
}
