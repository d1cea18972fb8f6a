/* Echoes a line: the serial port interrupts when a character has come, and the guest sleeps until then.
 *
 * UART -> line 4 of the interrupt controller -> vector 0x24 -> our handler. The controller is in the kernel:
 * the HLT and the controller's ports cause no exit to pykvm, the UART's ports do.
 */
#include "cpu.h"
#include "interrupts.h"
#include "pic.h"

enum { RBR = 0, THR = 0, IER = 1, MCR = 4 }; /* the UART's registers */
#define IER_RECEIVED 0x01 /* interrupt when a character has come */
#define MCR_OUT2 0x08     /* on a PC: the UART's interrupt pin is connected */
#define VECTORS 0x20
#define LINE 4

static volatile int is_over;

static void on_uart(struct frame *frame __attribute__((unused))) /* one interrupt a character */
{
    uint8_t c = in8(PORT_COM1 + RBR);
    out8(PORT_COM1 + THR, c == '\r' ? '\n' : c); /* a terminal's Enter sends a carriage return */
    is_over = c == '\n' || c == '\r';
    pic_end(LINE);
}

int main(void)
{
    interrupts_init();
    on_vector(VECTORS + LINE, on_uart);
    pic_init(VECTORS, 1 << LINE);
    out8(PORT_COM1 + MCR, MCR_OUT2);
    out8(PORT_COM1 + IER, IER_RECEIVED);
    while (!is_over)
        wait_for_interrupt();
    return 0;
}
