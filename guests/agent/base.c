#include "base.h"

#include <linux/openat2.h>
#include <linux/time.h>

#ifndef HAVE_LIBC
void *memcpy(void *to, const void *from, size_t size)
{
	void *at = to;
	size_t words = size / 8;
	size %= 8;
	__asm__ volatile("rep movsq" : "+D"(at), "+S"(from), "+c"(words) : : "memory"); /* an emulated CPU takes each by itself */
	__asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(size) : : "memory");
	return to;
}

void *memmove(void *to, const void *from, size_t size)
{
	unsigned char *a = to;
	const unsigned char *b = from;
	if (a <= b || a >= b + size)
		return memcpy(to, from, size);
	while (size--)
		a[size] = b[size];
	return to;
}

void *memset(void *to, int byte, size_t size)
{
	void *at = to;
	__asm__ volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(byte) : "memory");
	return to;
}

int memcmp(const void *a, const void *b, size_t size)
{
	const unsigned char *x = a, *y = b;
	for (; size; size--, x++, y++)
		if (*x != *y)
			return *x - *y;
	return 0;
}

size_t strlen(const char *string)
{
	size_t length = 0;
	while (string[length])
		length++;
	return length;
}
#endif

/* ---- text ------------------------------------------------------------------------------------------------- */

void text_bytes(struct text *text, const void *bytes, size_t size)
{
	if (size >= text->size - text->used) {
		text->full = true;
		size = text->size - text->used - 1;
	}
	memcpy(text->bytes + text->used, bytes, size);
	text->used += size;
	text->bytes[text->used] = 0;
}

void text_add(struct text *text, const char *string)
{
	text_bytes(text, string, strlen(string));
}

static void text_base(struct text *text, uint64_t value, unsigned base)
{
	char digits[24], *at = digits + sizeof digits;
	do
		*--at = "0123456789abcdef"[value % base];
	while (value /= base);
	text_bytes(text, at, (size_t)(digits + sizeof digits - at));
}

void text_number(struct text *text, int64_t value)
{
	if (value < 0)
		text_add(text, "-");
	text_base(text, value < 0 ? -(uint64_t)value : (uint64_t)value, 10);
}

void text_json(struct text *text, const char *bytes, size_t size)
{
	text_add(text, "\"");
	for (const char *end = bytes + size; bytes < end; bytes++) {
		unsigned char byte = (unsigned char)*bytes;
		if (byte == '"' || byte == '\\') {
			text_bytes(text, "\\", 1);
			text_bytes(text, bytes, 1);
		} else if (byte < 0x20) {
			text_add(text, byte < 0x10 ? "\\u000" : "\\u00");
			text_base(text, byte, 16);
		} else {
			text_bytes(text, bytes, 1);
		}
	}
	text_add(text, "\"");
}

void text_list(struct text *text, const char *form, va_list arguments)
{
	for (const char *at = form; *at; at++) {
		const char *from = at;
		while (*at && *at != '%')
			at++;
		text_bytes(text, from, (size_t)(at - from));
		if (!*at || !*++at)
			return;
		const char *string;
		switch (*at) {
		case 's':
			text_add(text, va_arg(arguments, const char *));
			break;
		case 'j':
			string = va_arg(arguments, const char *);
			text_json(text, string, strlen(string));
			break;
		case 'd':
			text_number(text, va_arg(arguments, int));
			break;
		case 'l':
			text_number(text, va_arg(arguments, int64_t));
			break;
		case 'x':
			text_base(text, va_arg(arguments, unsigned), 16);
			break;
		case 'o':
			text_base(text, va_arg(arguments, unsigned), 8);
			break;
		default:
			text_bytes(text, at, 1);
		}
	}
}

void text_format(struct text *text, const char *form, ...)
{
	va_list arguments;
	va_start(arguments, form);
	text_list(text, form, arguments);
	va_end(arguments);
}

char *format(char *buffer, size_t size, const char *form, ...)
{
	struct text text = {buffer, 0, size, false};
	va_list arguments;
	va_start(arguments, form);
	buffer[0] = 0;
	text_list(&text, form, arguments);
	va_end(arguments);
	return buffer;
}

int64_t number_of(const char *text)
{
	int64_t value = 0;
	if (*text < '0' || *text > '9')
		return -1;
	for (; *text >= '0' && *text <= '9'; text++)
		if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, *text - '0', &value))
			return -1;
	return value;
}

/* ---- the kernel ------------------------------------------------------------------------------------------- */

uint64_t now_ns(void)
{
	struct { int64_t seconds, ns; } now;
	SYS(clock_gettime, CLOCK_MONOTONIC, &now);
	return (uint64_t)now.seconds * 1000000000u + (uint64_t)now.ns;
}

const char *error_text(long error)
{
	static const struct { int error; const char *text; } known[] = {
		{EPERM, "operation not permitted"}, {ENOENT, "no such file or directory"}, {EIO, "I/O error"},
		{E2BIG, "arguments too long"}, {ENOEXEC, "no program that this kernel can run"}, {ENOMEM, "out of memory"},
		{EACCES, "permission denied"}, {EBUSY, "busy"}, {EEXIST, "exists"}, {ENODEV, "no such device or file system type"},
		{ENOTDIR, "not a directory"}, {EISDIR, "is a directory"}, {EINVAL, "invalid argument"}, {ENOSPC, "no space left"},
		{EROFS, "read-only"}, {ELOOP, "too many symbolic links"}, {ENAMETOOLONG, "name too long"},
		{ESRCH, "no such process"}, {EAGAIN, "try again; a limit is reached"}, {EXDEV, "leads outside"}, {EPIPE, "broken pipe"},
		{ECONNREFUSED, "connection refused"}, {ENOSYS, "not in this kernel"}, {EOPNOTSUPP, "not supported"},
	};
	for (size_t n = 0; n < COUNT(known); n++)
		if (known[n].error == error)
			return known[n].text;
	return "failed";
}

int inside(int root, const char *path, uint64_t flags)
{
	struct open_how how = {.flags = flags, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
	return (int)SYS(openat2, root, *path ? path : ".", &how, sizeof how);
}

long read_file(int at, const char *path, char *buffer, size_t size)
{
	long fd = SYS(openat, at, path, O_RDONLY | O_CLOEXEC, 0), got = 0;
	size_t used = 0;
	buffer[0] = 0;
	if (fd < 0)
		return fd;
	while (used < size - 1 && (got = SYS(read, fd, buffer + used, size - 1 - used)) > 0)
		used += (size_t)got;
	SYS(close, fd);
	buffer[used] = 0;
	return got < 0 ? got : (long)used;
}

long write_file(int at, const char *path, const char *text)
{
	long fd = SYS(openat, at, path, O_WRONLY | O_CLOEXEC, 0), done;
	if (fd < 0)
		return fd;
	done = SYS(write, fd, text, strlen(text)); /* one write is one order to the kernel */
	SYS(close, fd);
	return done < 0 ? done : 0;
}

long write_all(int fd, const void *bytes, size_t size)
{
	const char *at = bytes;
	while (size) {
		long done = SYS(write, fd, at, size);
		if (done == -EINTR)
			continue;
		if (done < 0)
			return done;
		at += done;
		size -= (size_t)done;
	}
	return 0;
}

void say(const char *form, ...)
{
	char line[512];
	struct text text = TEXT(line);
	va_list arguments;
	va_start(arguments, form);
	text_add(&text, "agent: ");
	text_list(&text, form, arguments);
	va_end(arguments);
	line[text.used++] = '\n';
	SYS(write, 2, line, text.used);
}
