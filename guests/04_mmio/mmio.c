/* Memory-mapped I/O: a device that answers where no RAM is.
 *
 * To the guest these are loads and stores. The page has no memory slot behind it, so each of them is a
 * VM exit: KVM decodes the instruction, pykvm asks the device at that address.
 */
#include <stdint.h>

#define DEVICE 0xd0000000ul /* pykvm's board has a small device there: */
#define ID 0x0              /* 32 bits, read only: "pkvm" */
#define CONSOLE 0x4         /* the low byte written is printed */
#define SCRATCH 0x8         /* 64 bits that keep what is written */

static volatile uint32_t *const id = (uint32_t *)(DEVICE + ID);
static volatile uint8_t *const console = (uint8_t *)(DEVICE + CONSOLE);
static volatile uint64_t *const scratch = (uint64_t *)(DEVICE + SCRATCH);
static volatile uint16_t *const scratch_top = (uint16_t *)(DEVICE + SCRATCH + 6);

int main(void)
{
    if (*id != 0x6d766b70)
        return 1;
    *scratch = 0x1122334455667788;
    if (*scratch_top != 0x1122) /* any width, at any offset: little-endian, as RAM would be */
        return 2;
    *scratch_top = 0xffff;
    if (*scratch != 0xffff334455667788)
        return 3;
    for (const char *next = "Hello through memory!\n"; *next; next++)
        *console = (uint8_t)*next;
    return 0;
}
