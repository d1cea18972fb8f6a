/* The four ways of a hypercall; see hypercall_abi.h. */
#include "transport.h"

#define VENDOR_AMD 0x68747541   /* CPUID 0, EBX: "Auth", … */
#define VENDOR_HYGON 0x6f677948 /* … "Hygo" */

static unsigned in_use = HC_HAS_OUT;
static unsigned vendor; /* asked once: CPUID is a VM exit, too */
static volatile int is_taken; /* the ring of hypercall_by(): one CPU at a time */
static struct ring ring;

static void by_vmcall(struct hypercall *call)
{
    int64_t result = HYPERCALL_VMCALL;
    if (!vendor)
        vendor = cpuid(0, 0).ebx;
    if (vendor == VENDOR_AMD || vendor == VENDOR_HYGON)
        asm volatile("vmmcall" : "+a"(result) : "b"(HYPERCALL_VMCALL_KEY), "c"(1), "d"(call) : "memory");
    else
        asm volatile("vmcall" : "+a"(result) : "b"(HYPERCALL_VMCALL_KEY), "c"(1), "d"(call) : "memory");
    if (result)
        call->result = result;
}

void hypercall_at(unsigned transport, struct hypercall *call)
{
    if (transport == HC_HAS_MMIO)
        *(volatile uint64_t *)HYPERCALL_MMIO = (uint64_t)call;
    else if (transport == HC_HAS_VMCALL)
        by_vmcall(call);
    else
        out32(HYPERCALL_PORT, (uint32_t)(uint64_t)call);
    asm volatile("" : : : "memory"); /* the host has written the result */
}

int64_t transports_offered(void)
{
    struct hypercall call = {.number = HC_FEATURES, .abi = HYPERCALL_ABI_VERSION};
    hypercall_at(HC_HAS_OUT, &call);
    return call.result < 0 ? HC_HAS_OUT | (int64_t)HC_HAS_OUT << HC_PREFERRED_SHIFT : call.result;
}

int64_t ring_open(struct ring *new, unsigned flags)
{
    struct hypercall call = {.number = HC_CALL_RING, .abi = HYPERCALL_ABI_VERSION,
                             .arg = {(uint64_t)new, sizeof *new, flags}};
    new->header.header_bytes = sizeof new->header;
    new->header.call_bytes = HC_SIZE;
    new->header.capacity = RING_CALLS;
    hypercall_at(HC_HAS_OUT, &call);
    return call.result;
}

unsigned transport_use(unsigned transport)
{
    int64_t offered = transports_offered();
    if (!transport)
        transport = (unsigned)(offered >> HC_PREFERRED_SHIFT);
    if (!(offered & transport))
        return 0;
    if (transport == HC_HAS_RING && !ring.header.capacity && ring_open(&ring, 0) < 0)
        return 0;
    return in_use = transport;
}

static int64_t by_ring(const struct hypercall *call)
{
    struct hypercall *at;
    int64_t result;
    while (__atomic_exchange_n(&is_taken, 1, __ATOMIC_ACQUIRE))
        pause();
    at = &ring.call[ring.header.head % RING_CALLS];
    *at = *call;
    ring_submit(&ring, 1);
    result = ring_wait(&ring);
    if (!result)
        result = at->result;
    __atomic_store_n(&is_taken, 0, __ATOMIC_RELEASE);
    return result;
}

int64_t hypercall_by(unsigned number, uint64_t arg0, uint64_t arg1, uint64_t arg2)
{
    struct hypercall call = {.number = number, .abi = HYPERCALL_ABI_VERSION, .arg = {arg0, arg1, arg2}};
    if (in_use == HC_HAS_RING && number != HC_YIELD) /* a wait is the vCPU's, which a ring leaves alone */
        return by_ring(&call);
    hypercall_at(in_use == HC_HAS_RING ? HC_HAS_OUT : in_use, &call);
    return call.result;
}
