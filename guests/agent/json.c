#include "json.h"

#include "base.h"

static struct json nodes[JSON_NODES]; /* [0] is the one that stands for nothing */
static struct { char *at, *end; uint32_t used; const char *why; } reader;

static uint32_t wrong(const char *why)
{
	if (!reader.why)
		reader.why = why;
	return 0;
}

static void skip(void)
{
	while (reader.at < reader.end && (*reader.at == ' ' || *reader.at == '\n' || *reader.at == '\t' || *reader.at == '\r'))
		reader.at++;
}

static bool take(char byte)
{
	skip();
	if (reader.at >= reader.end || *reader.at != byte)
		return false;
	reader.at++;
	return true;
}

static uint32_t new_node(enum json_type type)
{
	if (reader.used >= JSON_NODES)
		return wrong("too many values");
	nodes[reader.used] = (struct json){.type = type};
	return reader.used++;
}

static int hex4(void)
{
	int value = 0;
	if (reader.end - reader.at < 4)
		return -1;
	for (int n = 0; n < 4; n++) {
		char c = *reader.at++;
		int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
		if (digit < 0)
			return -1;
		value = value << 4 | digit;
	}
	return value;
}

/* \uXXXX, also two of them, becomes at most as many bytes of UTF-8 as it took. */
static char *unescape_unicode(char *to)
{
	int code = hex4();
	if (code >= 0xd800 && code < 0xdc00) {
		if (reader.end - reader.at < 6 || reader.at[0] != '\\' || reader.at[1] != 'u')
			return NULL;
		reader.at += 2;
		int low = hex4();
		if (low < 0xdc00 || low > 0xdfff)
			return NULL;
		code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
	} else if (code <= 0 || (code >= 0xdc00 && code < 0xe000)) {
		return NULL;
	}
	if (code < 0x80) {
		*to++ = (char)code;
	} else if (code < 0x800) {
		*to++ = (char)(0xc0 | code >> 6);
		*to++ = (char)(0x80 | (code & 0x3f));
	} else if (code < 0x10000) {
		*to++ = (char)(0xe0 | code >> 12);
		*to++ = (char)(0x80 | (code >> 6 & 0x3f));
		*to++ = (char)(0x80 | (code & 0x3f));
	} else {
		*to++ = (char)(0xf0 | code >> 18);
		*to++ = (char)(0x80 | (code >> 12 & 0x3f));
		*to++ = (char)(0x80 | (code >> 6 & 0x3f));
		*to++ = (char)(0x80 | (code & 0x3f));
	}
	return to;
}

static char *read_string(void)
{
	static const char names[] = "\"\\/bfnrt", bytes[] = "\"\\/\b\f\n\r\t";
	char *start, *to;
	if (!take('"'))
		return wrong("no string where one must be"), NULL;
	for (start = to = reader.at; reader.at < reader.end && *reader.at != '"';) {
		char c = *reader.at++;
		if ((unsigned char)c < 0x20)
			return wrong("a control character in a string"), NULL;
		if (c != '\\') {
			*to++ = c;
			continue;
		}
		size_t n = 0;
		c = reader.at < reader.end ? *reader.at++ : 0;
		while (names[n] && names[n] != c)
			n++;
		if (c == 'u')
			to = unescape_unicode(to);
		else
			*to++ = names[n] ? bytes[n] : 0;
		if (!to || (c != 'u' && !names[n]))
			return wrong("a wrong escape in a string"), NULL;
	}
	if (reader.at >= reader.end)
		return wrong("a string without an end"), NULL;
	reader.at++;
	*to = 0;
	return start;
}

static uint32_t read_number(void)
{
	bool is_negative = *reader.at == '-';
	char *digits = reader.at += is_negative;
	int64_t value = 0;
	for (; reader.at < reader.end && *reader.at >= '0' && *reader.at <= '9'; reader.at++)
		if (__builtin_mul_overflow(value, 10, &value) || __builtin_sub_overflow(value, *reader.at - '0', &value))
			return wrong("a number that is too large");
	if (!is_negative && __builtin_sub_overflow(0, value, &value))
		return wrong("a number that is too large");
	if (reader.at == digits || (*digits == '0' && reader.at > digits + 1))
		return wrong("no number where one must be");
	if (reader.at < reader.end && (*reader.at == '.' || (*reader.at | 32) == 'e'))
		return wrong("a number that is not whole");
	uint32_t made = new_node(JSON_NUMBER);
	nodes[made].number = made ? value : 0;
	return made;
}

static uint32_t read_value(int depth);

static bool has_key(uint32_t parent, const char *key)
{
	for (uint32_t one = nodes[parent].first; one; one = nodes[one].next)
		if (same(nodes[one].key, key))
			return true;
	return false;
}

static uint32_t read_members(enum json_type type, char end, int depth)
{
	uint32_t made = new_node(type), last = 0;
	if (!made || depth >= JSON_DEEP)
		return wrong("nested too deep");
	for (bool first = true; !take(end); first = false) {
		const char *key = NULL;
		if (!first && !take(','))
			return wrong("no comma where one must be");
		if (type == JSON_OBJECT && !((key = read_string()) && (take(':') || wrong("no colon behind a key"))))
			return 0;
		if (key && has_key(made, key))
			return wrong("a key twice");
		uint32_t one = read_value(depth + 1);
		if (!one)
			return 0;
		nodes[one].key = key;
		*(last ? &nodes[last].next : &nodes[made].first) = one;
		last = one;
		nodes[made].count++;
	}
	return made;
}

static uint32_t read_word(void)
{
	static const struct { const char *text; enum json_type type; int64_t number; } words[] = {
		{"true", JSON_BOOL, 1}, {"false", JSON_BOOL, 0}, {"null", JSON_NULL, 0}};
	for (size_t n = 0; n < COUNT(words); n++) {
		size_t size = strlen(words[n].text);
		if ((size_t)(reader.end - reader.at) >= size && !memcmp(reader.at, words[n].text, size)) {
			uint32_t made = new_node(words[n].type);
			reader.at += size;
			nodes[made].number = made ? words[n].number : 0;
			return made;
		}
	}
	return wrong("no value where one must be");
}

static uint32_t read_value(int depth)
{
	skip();
	if (reader.at >= reader.end)
		return wrong("it ends too early");
	if (*reader.at == '{' || *reader.at == '[') {
		bool is_object = *reader.at++ == '{';
		return read_members(is_object ? JSON_OBJECT : JSON_ARRAY, is_object ? '}' : ']', depth);
	}
	if (*reader.at == '"') {
		char *string = read_string();
		uint32_t made = string ? new_node(JSON_STRING) : 0;
		nodes[made].string = made ? string : NULL;
		return made;
	}
	if (*reader.at == '-' || (*reader.at >= '0' && *reader.at <= '9'))
		return read_number();
	return read_word();
}

const struct json *json_read(char *text, size_t size, const char **why)
{
	reader.at = text;
	reader.end = text + size;
	reader.used = 1;
	reader.why = NULL;
	uint32_t made = read_value(0);
	skip();
	if (made && reader.at != reader.end)
		made = wrong("something behind its end");
	*why = reader.why;
	return made ? &nodes[made] : NULL;
}

/* ---- looking things up ------------------------------------------------------------------------------------ */

const struct json *json_first(const struct json *list)
{
	return (list->type == JSON_ARRAY || list->type == JSON_OBJECT) && list->first ? &nodes[list->first] : NULL;
}

const struct json *json_next(const struct json *one)
{
	return one->next ? &nodes[one->next] : NULL;
}

const struct json *json_get(const struct json *object, const char *key)
{
	if (object->type == JSON_OBJECT)
		JSON_EACH(one, object)
			if (same(one->key, key))
				return one;
	return &nodes[0];
}

const struct json *json_path(const struct json *object, const char *keys)
{
	char key[64];
	while (*keys) {
		size_t size = 0;
		while (*keys && *keys != '.' && size < sizeof key - 1)
			key[size++] = *keys++;
		key[size] = 0;
		keys += *keys == '.';
		object = json_get(object, key);
	}
	return object;
}

const char *json_string(const struct json *value, const char *otherwise)
{
	return value->type == JSON_STRING ? value->string : otherwise;
}

int64_t json_number(const struct json *value, int64_t otherwise)
{
	return value->type == JSON_NUMBER ? value->number : otherwise;
}

bool json_true(const struct json *value)
{
	return value->type == JSON_BOOL && value->number;
}
