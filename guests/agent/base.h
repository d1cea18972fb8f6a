/* Strings, bounded text, and the clock: what a C library would bring. */
#ifndef BASE_H
#define BASE_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sys.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))
enum { PATH_MOST = 4096, NAME_MOST = 64 };

void *memcpy(void *to, const void *from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *to, int byte, size_t size);
int memcmp(const void *a, const void *b, size_t size);
size_t strlen(const char *string);

static inline bool same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static inline bool starts(const char *text, const char *with)
{
	while (*with && *text == *with)
		text++, with++;
	return !*with;
}

/* A text that grows in a buffer of the caller's; what has no room is dropped, and `full` says so. It always ends with a 0. */
struct text {
	char *bytes;
	size_t used, size;
	bool full;
};

#define TEXT(buffer) ((struct text){buffer, 0, sizeof(buffer), false})

void text_bytes(struct text *text, const void *bytes, size_t size);
void text_add(struct text *text, const char *string);
void text_number(struct text *text, int64_t value);
/* "…" with JSON's escapes; bytes above 127 as they are */
void text_json(struct text *text, const char *bytes, size_t size);
/* %s string, %d int, %l int64_t, %x unsigned int, %o unsigned int, %j string as JSON, %% */
void text_format(struct text *text, const char *format, ...);
void text_list(struct text *text, const char *format, va_list arguments);
/* Formats into a buffer and gives it back. */
char *format(char *buffer, size_t size, const char *form, ...);
#define PATH(...) format((char[PATH_MOST]){0}, PATH_MOST, __VA_ARGS__)

/* The number that a text begins with; -1 for none or too large. */
int64_t number_of(const char *text);

uint64_t now_ns(void);
const char *error_text(long error);

/* Opens a path as one whose root is `root` sees it: no symbolic link and no .. leads out of it. -errno */
int inside(int root, const char *path, uint64_t flags);

/* A whole small file, ended by a 0: its size, or -errno. `at` is a folder's descriptor. */
long read_file(int at, const char *path, char *buffer, size_t size);
long write_file(int at, const char *path, const char *text);
long write_all(int fd, const void *bytes, size_t size);
void say(const char *form, ...);

#endif
