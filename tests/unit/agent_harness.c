/* Pieces of the agent without a guest, for sanitizers: `tar FOLDER [NAME]` to stdout, `untar ROOT PLACE` from stdin, `json` from stdin. */
#include "../../guests/agent/json.h"
#include "../../guests/agent/step.h"
#include "../../guests/agent/tar.h"

#include <stdlib.h>

static void show(const struct json *one, struct text *to)
{
	if (one->type == JSON_STRING)
		text_json(to, one->string, strlen(one->string));
	else if (one->type == JSON_NUMBER)
		text_format(to, "%l", one->number);
	else if (one->type == JSON_NULL)
		text_add(to, "null");
	else if (one->type == JSON_BOOL)
		text_add(to, one->number ? "true" : "false");
	else {
		text_add(to, one->type == JSON_ARRAY ? "[" : "{");
		JSON_EACH(part, one) {
			if (part != json_first(one))
				text_add(to, ",");
			if (part->key)
				text_format(to, "%j:", part->key);
			show(part, to);
		}
		text_add(to, one->type == JSON_ARRAY ? "]" : "}");
	}
}

/* What was read as text again; 2 and why it was refused. */
static int echo_json(void)
{
	static char written[1 << 22];
	struct text to = TEXT(written);
	size_t size = 0, room = 1 << 20;
	char *bytes = malloc(room + 1); /* on the heap, so that its end is watched */
	const char *why;
	long got;
	while ((got = SYS(read, 0, bytes + size, room - size)) > 0)
		size += (size_t)got;
	bytes = realloc(bytes, size + 1);
	const struct json *found = json_read(bytes, size, &why);
	if (!found)
		text_add(&to, why);
	else
		show(found, &to);
	free(bytes);
	write_all(1, written, to.used);
	return found ? 0 : 2;
}

int main(int count, char **words)
{
	static const struct maps maps = {.uid = {{0, 0, 65536}}, .gid = {{0, 0, 65536}}, .uids = 1, .gids = 1};
	struct tar_plan plan = {.maps = &maps, .is_layer = true};
	long failed = -EINVAL;
	if (count == 2 && same(words[1], "json"))
		return echo_json();
	int folder = count > 2 ? (int)SYS(openat, AT_FDCWD, words[2], O_PATH | O_CLOEXEC, 0) : -1;
	if (count > 2 && same(words[1], "tar"))
		failed = tar_write(&plan, folder, count > 3 ? words[3] : NULL);
	if (count > 3 && same(words[1], "untar"))
		failed = tar_read(&maps, folder, words[3]);
	if (failed < 0)
		write_all(2, trouble.text, strlen(trouble.text));
	return failed < 0 ? 2 : 0;
}
