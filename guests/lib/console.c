/* A small printf(). It hands whole pieces to console_write(), at most PIECE bytes at a time. */
#include "console.h"

#include <stdarg.h>

#include "cpu.h"

#define PIECE 120

struct piece {
    unsigned long used;
    char bytes[PIECE];
};

__attribute__((weak)) void console_write(const char *bytes, unsigned long size)
{
    while (size--)
        out8(PORT_DEBUG_CONSOLE, *bytes++);
}

static void flush(struct piece *piece)
{
    if (piece->used)
        console_write(piece->bytes, piece->used);
    piece->used = 0;
}

static void put(struct piece *piece, char c)
{
    if (piece->used == PIECE)
        flush(piece);
    piece->bytes[piece->used++] = c;
}

static void put_number(struct piece *piece, unsigned long n, unsigned base)
{
    char digits[3 * sizeof n];
    unsigned i = 0;
    do
        digits[i++] = "0123456789abcdef"[n % base];
    while (n /= base);
    while (i)
        put(piece, digits[--i]);
}

void printf(const char *format, ...)
{
    struct piece piece = {.used = 0}; /* on the stack: CPUs that print at once have one each */
    va_list args;
    va_start(args, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(&piece, *format);
            continue;
        }
        int is_long = *++format == 'l';
        switch (*(format += is_long)) {
        case 's':
            for (const char *text = va_arg(args, const char *); *text; text++)
                put(&piece, *text);
            break;
        case 'c':
            put(&piece, (char)va_arg(args, int));
            break;
        case 'd': {
            long n = is_long ? va_arg(args, long) : va_arg(args, int);
            if (n < 0)
                put(&piece, '-');
            put_number(&piece, n < 0 ? -(unsigned long)n : (unsigned long)n, 10);
            break;
        }
        case 'u':
        case 'x':
            put_number(&piece, is_long ? va_arg(args, unsigned long) : va_arg(args, unsigned),
                       *format == 'x' ? 16 : 10);
            break;
        default:
            put(&piece, *format);
        }
    }
    va_end(args);
    flush(&piece);
}
