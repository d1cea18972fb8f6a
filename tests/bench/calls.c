/* The bench's guest for hypercalls: RDI says what to do, RSI how often. All but the calls is done beforehand.
 *
 * Two marks enclose what is measured. Each round is BATCH calls, or one text of TEXT_BYTES.
 */
#include "hypercall.h"
#include "transport.h"

#define BATCH 32
#define TEXT_BYTES 4096

enum what { BY_OUT, BY_MMIO, BY_VMCALL, RING_BATCHED, RING_SINGLE, CONSOLE, UART };

static struct ring ring;
static struct hypercall asks_time = {.number = HC_TIME, .abi = HYPERCALL_ABI_VERSION};
static char text[TEXT_BYTES];

static void uart_put(char c)
{
    while (!(in8(PORT_COM1 + 5) & 0x20))
        ;
    out8(PORT_COM1, (uint8_t)c);
}

static int measure(unsigned long what, unsigned long rounds)
{
    unsigned long calls = rounds * BATCH;
    struct hypercall writes = {.number = HC_CONSOLE_WRITE, .arg = {(unsigned long)text, TEXT_BYTES}};
    switch (what) {
    case BY_OUT:
        while (calls--)
            out32(HYPERCALL_PORT, (uint32_t)(unsigned long)&asks_time);
        return 0;
    case BY_MMIO:
        while (calls--)
            *(volatile uint64_t *)HYPERCALL_MMIO = (unsigned long)&asks_time;
        return 0;
    case BY_VMCALL:
        while (calls--)
            hypercall_at(HC_HAS_VMCALL, &asks_time);
        return asks_time.result < 0;
    case RING_BATCHED:
        while (rounds--) {
            ring_submit(&ring, BATCH);
            ring_wait(&ring);
        }
        return ring.header.error;
    case RING_SINGLE:
        while (calls--) {
            ring_submit(&ring, 1);
            ring_wait(&ring);
        }
        return ring.header.error;
    case CONSOLE:
        while (rounds--)
            out32(HYPERCALL_PORT, (uint32_t)(unsigned long)&writes);
        return writes.result != TEXT_BYTES;
    case UART:
        for (unsigned long i = 0; i < rounds * BATCH; i++)
            uart_put(text[i % TEXT_BYTES]);
        return 0;
    default:
        return 1;
    }
}

int main(unsigned long what, unsigned long rounds)
{
    int failed;
    for (unsigned i = 0; i < TEXT_BYTES; i++)
        text[i] = i % 64 == 63 ? '\n' : 'x';
    for (unsigned i = 0; i < RING_CALLS; i++)
        ring.call[i] = asks_time;
    transports_offered();
    if ((what == RING_BATCHED || what == RING_SINGLE) && ring_open(&ring, 0) < 0)
        return 2;
    hypercall(HC_MARK, 1, 0);
    failed = measure(what, rounds);
    hypercall(HC_MARK, 2, 0);
    return failed;
}
