/* Hypercalls: the guest's kernel asks pykvm for something, with one OUT for any amount of data.
 *
 * The request is a struct in guest memory; the OUT carries its address. Whatever the guest says is checked:
 * a bad pointer and an unknown number are answered with an error, and nothing else happens.
 */
#include "hypercall.h"

#include "console.h"

/* printf() prints with this: the whole text in one exit. */
void console_write(const char *bytes, unsigned long size)
{
    hypercall(HC_CONSOLE_WRITE, (unsigned long)bytes, size);
}

int main(void)
{
    if (hypercall(HC_VERSION, 0, 0) != HYPERCALL_ABI_VERSION)
        return 1;
    int64_t before = hypercall(HC_TIME, 0, 0);
    printf("Hello through a hypercall, %s!\n", "all of it in one exit");
    if (hypercall(HC_TIME, 0, 0) <= before)
        return 2;
    hypercall(HC_MARK, 42, 0);
    printf("a pointer to nowhere: %ld\n", (long)hypercall(HC_CONSOLE_WRITE, 1ull << 60, 5));
    printf("a length without end: %ld\n", (long)hypercall(HC_CONSOLE_WRITE, 0x100000, ~0ull));
    printf("an unknown number: %ld\n", (long)hypercall(0xbad, 0, 0));
    hypercall(HC_EXIT, 0, 0);
    return 3; /* HC_EXIT does not return */
}
