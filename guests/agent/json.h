/* A strict reader of JSON. It works in the text itself: strings are unescaped where they stand, and end with a 0.
 *
 * Missing things are read with care: every function takes JSON_NONE's node and answers for it. */
#ifndef JSON_H
#define JSON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum json_type { JSON_NONE, JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };
enum { JSON_NODES = 32768, JSON_DEEP = 32 };

struct json {
	enum json_type type;
	uint32_t first, next, count; /* the first of an array's or object's, the next beside this one; 0 is none */
	const char *key;             /* in an object */
	const char *string;
	int64_t number;
};

/* Reads one value that is all of the `size` bytes; text[size] must be writable. NULL and what is wrong where in `why`. The result
 * stays until the next call. */
const struct json *json_read(char *text, size_t size, const char **why);

const struct json *json_get(const struct json *object, const char *key);
const struct json *json_path(const struct json *object, const char *keys); /* "linux.resources.memory" */
const struct json *json_first(const struct json *list);                    /* NULL when there is none */
const struct json *json_next(const struct json *one);
const char *json_string(const struct json *value, const char *otherwise);
int64_t json_number(const struct json *value, int64_t otherwise);
bool json_true(const struct json *value);

#define JSON_EACH(one, list) for (const struct json *one = json_first(list); one; one = json_next(one))

#endif
