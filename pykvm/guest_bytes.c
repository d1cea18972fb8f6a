/* What C may touch of a guest: bytes of its RAM through one checked door, and the ring its console fills. */
#include "vcpu_run.h"

#include <sched.h>
#include <string.h>

#define SPINS_BEFORE_YIELD 128

/* ---- guest memory: the one checked door on C's side ---------------------------------------------- */

/* The host address of guest bytes [gpa, gpa + size), which must lie in one of `count` slots; else NULL. */
uint8_t *slot_bytes(const struct guest_slot *slots, uint32_t count, uint64_t gpa, uint64_t size, int write)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct guest_slot *slot = &slots[i];
        if (gpa < slot->gpa || gpa - slot->gpa >= slot->size)
            continue;
        if (size > slot->size - (gpa - slot->gpa) || (write && slot->read_only))
            return NULL;
        return slot->host + (gpa - slot->gpa);
    }
    return NULL;
}

/* The same in a machine's slots. */
uint8_t *guest_bytes(const struct loop_shared *shared, uint64_t gpa, uint64_t size, int write)
{
    uint32_t count = shared->slot_count < GUEST_SLOTS_MAX ? shared->slot_count : GUEST_SLOTS_MAX;
    return slot_bytes(shared->slots, count, gpa, size, write);
}

/* The data of a port exit, `size` bytes in the kvm_run mapping; NULL if they do not lie in it. */
const uint8_t *io_bytes(const struct exit_loop *loop, uint64_t *size)
{
    uint64_t at = loop->run->io.data_offset;
    *size = (uint64_t)loop->run->io.size * loop->run->io.count;
    if (at > loop->run_bytes || *size > loop->run_bytes - at)
        return NULL;
    return (const uint8_t *)loop->run + at;
}

/* ---- the byte ring: many vCPUs write, one reader -------------------------------------------------- */

/* All of `size` bytes or, if they do not fit, none. */
int byte_ring_append(struct byte_ring *ring, const uint8_t *from, uint64_t size)
{
    int fits, spins = 0;
    while (__atomic_exchange_n(&ring->lock, 1, __ATOMIC_ACQUIRE))
        if (++spins % SPINS_BEFORE_YIELD) /* its holder may have lost its CPU */
            __builtin_ia32_pause();
        else
            sched_yield();
    fits = size <= ring->capacity - (ring->head - __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE));
    if (fits && size) {
        uint64_t at = ring->head & (ring->capacity - 1);
        uint64_t first = size < ring->capacity - at ? size : ring->capacity - at;
        memcpy(ring->bytes + at, from, first);
        memcpy(ring->bytes, from + first, size - first);
        __atomic_store_n(&ring->head, ring->head + size, __ATOMIC_RELEASE);
    }
    __atomic_store_n(&ring->lock, 0, __ATOMIC_RELEASE);
    return fits;
}

/* Take at most `most` bytes out; how many there were. Called by the one reader. */
uint64_t byte_ring_read(struct byte_ring *ring, uint8_t *to, uint64_t most)
{
    uint64_t held = __atomic_load_n(&ring->head, __ATOMIC_ACQUIRE) - ring->tail;
    uint64_t size = held < most ? held : most;
    uint64_t at, first;
    if (!size)
        return 0;
    at = ring->tail & (ring->capacity - 1);
    first = size < ring->capacity - at ? size : ring->capacity - at;
    memcpy(to, ring->bytes + at, first);
    memcpy(to + first, ring->bytes, size - first);
    __atomic_store_n(&ring->tail, ring->tail + size, __ATOMIC_RELEASE);
    return size;
}
