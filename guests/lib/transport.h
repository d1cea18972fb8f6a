/* Hypercalls by whichever way the host offers: OUT, MMIO, VMCALL, or a ring in memory. For 64-bit guests.
 *
 * hypercall.h has the one way that is always there. Here a guest asks the host first, and chooses. In the
 * machine's first page tables an address is also its gpa, and the devices' page is mapped.
 */
#ifndef TRANSPORT_H
#define TRANSPORT_H

#include "cpu.h"
#include "hypercall_abi.h"

/* What the host offers: HC_HAS_… bits. An older host says HC_ENOSYS, and has OUT. */
int64_t transports_offered(void);

/* Use `transport`, one of HC_HAS_OUT, _MMIO, _VMCALL and _RING, from now on, or the one that the host likes
 * best, if it is 0. What is in use then; 0: the host does not offer it, and nothing has changed. */
unsigned transport_use(unsigned transport);

/* Make the call by the transport in use; from any CPU. */
int64_t hypercall_by(unsigned number, uint64_t arg0, uint64_t arg1, uint64_t arg2);

/* The same by OUT, MMIO or VMCALL, whatever is in use. The answer is call->result. */
void hypercall_at(unsigned transport, struct hypercall *call);

/* ---- rings: many calls at once, and the vCPU goes on */

#define RING_CALLS 64

struct ring {
    struct call_ring header;
    struct hypercall call[RING_CALLS];
};

/* Announce a ring, 8-byte aligned and empty; flags as CALL_RING_…. Its number, or one of HC_E…. */
int64_t ring_open(struct ring *ring, unsigned flags);

/* Hand the next `count` calls over: those at head modulo RING_CALLS and on, which have been filled in. */
static inline void ring_submit(struct ring *ring, unsigned count)
{
    /* XCHG is a full barrier: the host may be about to sleep, and either sees `head` or wants the doorbell */
    (void)__atomic_exchange_n(&ring->header.head, ring->header.head + count, __ATOMIC_SEQ_CST);
    if (*(volatile uint32_t *)&ring->header.wants_doorbell)
        out32(HYPERCALL_DOORBELL_PORT, 0);
}

/* Wait until all calls are done. 0, or HC_EINVAL: the host has found the ring damaged. */
static inline int ring_wait(struct ring *ring)
{
    while (__atomic_load_n(&ring->header.tail, __ATOMIC_ACQUIRE) != ring->header.head) {
        if (*(volatile int32_t *)&ring->header.error)
            return HC_EINVAL;
        pause();
    }
    return 0;
}

#endif
