/* Printing for guests in C. */
#ifndef CONSOLE_H
#define CONSOLE_H

/* printf() with %s %c %d %u %x, and %ld %lu %lx for what is as wide as a register. No widths, no precision. */
void printf(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Where printf()'s bytes go: to the debug console, unless the guest defines a console_write() of its own. */
void console_write(const char *bytes, unsigned long size);

#endif
