/* Rings of hostile calls, until each claims to hold more of them than it can, and the host gives it up. */
#include "fuzz.h"

uint64_t roll(uint64_t *dice)
{
    *dice ^= *dice << 13;
    *dice ^= *dice >> 7;
    return *dice ^= *dice << 17; /* xorshift: the same numbers in each run */
}

unsigned fuzz_rings(void)
{
    static struct ring rings[CALL_RINGS_MAX + 1];
    unsigned opened = 0, damaged = 0;
    uint64_t dice = 4101842887655102017ul;
    while (opened <= CALL_RINGS_MAX && ring_open(&rings[opened], 0) == (int64_t)opened)
        for (struct ring *ring = &rings[opened++]; !ring_wait(ring);) {
            for (unsigned i = 0; i < 4; i++)
                make_hostile(&ring->call[(ring->header.head + i) % RING_CALLS], &dice);
            ring_submit(ring, roll(&dice) & 3 ? 4 : (unsigned)edge(&dice) | RING_CALLS * 2);
        }
    for (unsigned i = 0; i < opened; i++)
        damaged += rings[i].header.error == HC_EINVAL;
    return damaged;
}
