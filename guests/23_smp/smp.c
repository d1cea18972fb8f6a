/* Several CPUs: the first one wakes the others, each says hello, the first one waits for all of them.
 *
 *     pykvm run --smp 4 smp
 *
 * Each vCPU is a thread of pykvm. What they do at the same time has to be put in order: the text by a
 * lock, the count by an atomic addition.
 */
#include "console.h"
#include "smp.h"

static volatile int console_lock;
static volatile unsigned awake;

static void hello(void)
{
    lock(&console_lock);
    printf("Hello from CPU %u!\n", cpu_id());
    unlock(&console_lock);
    __atomic_fetch_add(&awake, 1, __ATOMIC_RELEASE);
}

int main(void)
{
    hello();
    start_other_cpus(hello);
    while (__atomic_load_n(&awake, __ATOMIC_ACQUIRE) < cpu_count())
        pause();
    printf("%u of %u CPUs are awake\n", awake, cpu_count());
    return 0;
}
