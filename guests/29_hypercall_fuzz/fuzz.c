/* Hypercalls as a guest that means harm makes them: any number, addresses beyond memory, lengths that wrap,
 * all CPUs at once in one struct, rings that claim what can't be. Each is answered, and nothing else happens.
 *
 * What is allowed happens in the last quarter of memory, where nothing is: it may be overwritten at any time.
 */
#include "fuzz.h"

#include "console.h"
#if MODE_LONG64
#include "smp.h"
#endif

static struct hypercall ours; /* of all CPUs: what one asks for is half another's */
static unsigned finished;

static unsigned fuzz(struct hypercall *call, uint64_t seed)
{
    unsigned wrong = 0;
    for (unsigned i = 0; i < CALLS; i++) {
        int is_wild = make_hostile(call, &seed);
        hypercall_at(i & 1 ? HC_HAS_MMIO : HC_HAS_OUT, call);
        wrong += is_wild && *(volatile int64_t *)&call->result >= 0;
    }
    return wrong;
}

static void fuzz_together(void)
{
    fuzz(&ours, 88172645463325252ul + __atomic_add_fetch(&finished, 0, __ATOMIC_RELAXED));
    __atomic_fetch_add(&finished, 1, __ATOMIC_RELEASE);
}

int main(void)
{
    struct hypercall mine;
    unsigned cpus = 1, wrong = fuzz(&mine, 0x2545f4914f6cdd1dul);
#if MODE_LONG64
    is_shared = 1;
    cpus = cpu_count();
    if (cpus > 1)
        start_other_cpus(fuzz_together);
#endif
    fuzz_together();
    while (__atomic_load_n(&finished, __ATOMIC_ACQUIRE) < cpus)
        pause();
    is_shared = 0;
    printf("%u wrong answers\n%u rings were damaged\n", wrong, fuzz_rings());
    return (int)wrong;
}
