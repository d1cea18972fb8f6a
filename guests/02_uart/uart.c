/* Prints through the PC's serial port by polling: asks the chip before each byte whether it has room.
 *
 * So a byte costs two VM exits here, one to ask and one to send. The chip is a 16550A.
 */
#include "cpu.h"

enum { THR = 0, DIVISOR_LOW = 0, IER = 1, DIVISOR_HIGH = 1, FCR = 2, LCR = 3, LSR = 5 }; /* offsets */
#define LCR_8_BITS 0x03       /* 8 data bits, no parity, 1 stop bit */
#define LCR_DIVISOR 0x80      /* offsets 0 and 1 are the divisor now */
#define FCR_ON_AND_CLEAR 0x07 /* FIFOs on, and empty */
#define LSR_ROOM 0x20         /* the transmitter takes a byte */

static void uart_init(void)
{
    out8(PORT_COM1 + IER, 0); /* no interrupts: we ask */
    out8(PORT_COM1 + LCR, LCR_DIVISOR);
    out8(PORT_COM1 + DIVISOR_LOW, 1); /* 115,200 baud / 1 */
    out8(PORT_COM1 + DIVISOR_HIGH, 0);
    out8(PORT_COM1 + LCR, LCR_8_BITS);
    out8(PORT_COM1 + FCR, FCR_ON_AND_CLEAR);
}

static void uart_put(char c)
{
    while (!(in8(PORT_COM1 + LSR) & LSR_ROOM))
        ;
    out8(PORT_COM1 + THR, (uint8_t)c);
}

int main(void)
{
    uart_init();
    for (const char *next = "Hello through the serial port!\n"; *next; next++)
        uart_put(*next);
    return 0;
}
