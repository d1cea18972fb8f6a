/* Touches a port and an address where nobody answers.
 *
 * pykvm ends the run at the first of them and says where it was: most often it is a mistake. With
 * `--unclaimed float` it goes on as a PC's bus does: writes are lost, reads are all ones, each is counted.
 */
#include "console.h"
#include "cpu.h"

#define NOBODY_PORT 0x1234
#define NOBODY_ADDRESS 0xe0000000ul /* in the hole below 4 GiB, where there is no RAM */

int main(void)
{
    out8(NOBODY_PORT, 0x42); /* by default the run ends here */
    printf("port: %x %x\n", in8(NOBODY_PORT), in32(NOBODY_PORT));
    printf("address: %x\n", *(volatile uint32_t *)NOBODY_ADDRESS);
    return 0;
}
