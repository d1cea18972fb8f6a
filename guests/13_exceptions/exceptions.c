/* Makes four mistakes on purpose and takes the exception of each in a handler of its own.
 *
 * The CPU finds the handler in the IDT. Some exceptions bring an error code: a page fault's says what the
 * access was (bit 0: the page is there, 1: a write, 2: from ring 3, 4: an instruction fetch).
 */
#include "console.h"
#include "cpu.h"
#include "interrupts.h"

static volatile uint64_t go_on; /* where the guest goes on after the mistake */

/* Run code that faults; the label behind it is where the handler goes on. */
#define MISTAKE(code) asm volatile("movq $1f, %0;" code "; 1:" : "=m"(go_on) : : "rax", "rdx", "memory")

static void handler(struct frame *frame)
{
    static const char *const names[] = {[DIVIDE_ERROR] = "#DE", [INVALID_OPCODE] = "#UD",
                                        [GENERAL_PROTECTION] = "#GP", [PAGE_FAULT] = "#PF"};
    printf("%s: vector %lu, error code %lx", names[frame->vector], frame->vector, frame->error);
    if (frame->vector == PAGE_FAULT)
        printf(", address %lx", read_cr2());
    printf("\n");
    frame->rip = go_on; /* a handler that returns as it came runs the instruction again */
}

int main(void)
{
    interrupts_init();
    on_vector(DIVIDE_ERROR, handler);
    on_vector(INVALID_OPCODE, handler);
    on_vector(GENERAL_PROTECTION, handler);
    on_vector(PAGE_FAULT, handler);
    MISTAKE("xor %%edx, %%edx; div %%edx");
    MISTAKE("ud2");
    MISTAKE("mov $0x1230, %%eax; mov %%ax, %%ds");          /* a selector far behind the GDT's end */
    MISTAKE("mov $0x700000000000, %%rax; movl $1, (%%rax)"); /* an address that no table maps */
    return 0;
}
