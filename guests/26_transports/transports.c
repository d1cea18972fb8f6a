/* Four ways to one answer: hypercalls by OUT, by a store, by VMCALL, and by a ring in memory.
 *
 *     pykvm run --transport ring transports
 *
 * The guest asks what the host offers. Of OUT, store and VMCALL each is an exit; with the ring the vCPU stays
 * in the guest, and a thread of pykvm does the calls beside it.
 */
#include "console.h"
#include "transport.h"

static const char *const names[] = {"OUT", "a store", "VMCALL", "a ring"};
static struct ring ring;

void console_write(const char *bytes, unsigned long size)
{
    hypercall_by(HC_CONSOLE_WRITE, (unsigned long)bytes, size, 0);
}

static int is_right(void) /* whichever way is in use */
{
    int64_t before = hypercall_by(HC_TIME, 0, 0, 0);
    return hypercall_by(HC_VERSION, 0, 0, 0) == HYPERCALL_ABI_VERSION && hypercall_by(HC_TIME, 0, 0, 0) > before &&
           hypercall_by(0xbad, 0, 0, 0) == HC_ENOSYS && hypercall_by(HC_RANDOM, ~0ul, 8, 0) == HC_EFAULT;
}

int main(void)
{
    int right = 0, offered = 0;
    unsigned first = transport_use(0);
    for (unsigned way = 0; way < 4; way++)
        if (transport_use(1 << way)) {
            offered++;
            right += is_right();
        }
    transport_use(first);
    printf("%s\n", right == offered ? "every way that is offered gives the same answers" : "they differ");
    for (unsigned i = 0; i < 32; i++) /* a batch: 32 calls, one doorbell at most */
        ring.call[i] = (struct hypercall){.number = HC_CONSOLE_WRITE, .arg = {(unsigned long)names[3] + 2, 1 + i % 4}};
    if (ring_open(&ring, 0) >= 0) {
        ring_submit(&ring, 32);
        ring_wait(&ring);
    }
    printf("\ndone by %s\n", names[__builtin_ctz(first)]);
    return 0;
}
