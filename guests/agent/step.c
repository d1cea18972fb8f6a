#include "step.h"

struct trouble trouble;
bool explaining;
step_sink *explain_to;
const char *explain_who = "agent";
static int steps;

void trouble_clear(void)
{
	trouble.error = 0;
	steps = 0;
}

static void trouble_list(long error, const char *step, const char *form, va_list arguments)
{
	struct text text = TEXT(trouble.text);
	if (trouble.error)
		return;
	trouble.error = (int)-error;
	format(trouble.step, sizeof trouble.step, "%s", step);
	text_format(&text, "%s ", step);
	text_list(&text, form, arguments);
	text_format(&text, ": %s (errno %d)", error_text(-error), (int)-error);
}

long trouble_set(long error, const char *step, const char *form, ...)
{
	va_list arguments;
	va_start(arguments, form);
	trouble_list(error, step, form, arguments);
	va_end(arguments);
	return error;
}

void trouble_json(struct text *to)
{
	text_format(to, "{\"errno\":%d,\"step\":%j,\"text\":%j}", trouble.error, trouble.step, trouble.text);
}

uint64_t step_start(void)
{
	return explaining ? now_ns() : 0;
}

long step_done(uint64_t start, const char *call, const char *effect, long result, const char *form, ...)
{
	va_list arguments;
	va_start(arguments, form);
	if (explaining) {
		uint64_t taken = now_ns() - start;
		char detail[640], json[2048];
		struct text text = TEXT(detail), to = TEXT(json);
		va_list again;
		va_copy(again, arguments);
		text_list(&text, form, again);
		va_end(again);
		text_format(&to, "{\"event\":\"step\",\"n\":%d,\"who\":%j,\"call\":%j,\"detail\":%j,\"effect\":%j,", ++steps,
			    explain_who, call, detail, effect);
		text_format(&to, "\"at_ns\":%l,\"ns\":%l,\"result\":%l}", start, taken, (int64_t)result);
		if (!to.full)
			explain_to(json, to.used);
	}
	if (result < 0)
		trouble_list(result, call, form, arguments);
	va_end(arguments);
	return result;
}
