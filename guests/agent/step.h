/* Steps: each system call that makes a container, with what it does, how long it took, and what became of it.
 *
 * STEP always gives the call's result back. A failure is remembered as the reason that the host is told; with `explain` each
 * step is also sent as an event. Text is put together only for one of the two. */
#ifndef STEP_H
#define STEP_H

#include "base.h"

struct trouble {
	int error; /* errno; 0: none */
	char step[32], text[480];
};

extern struct trouble trouble; /* the first failure since trouble_clear() */
extern bool explaining;

/* Who gets the steps: an object without its braces' end, that is {"event":"step",… */
typedef void step_sink(const char *json, size_t size);
extern step_sink *explain_to;
extern const char *explain_who; /* "agent" or "container" */

void trouble_clear(void);
long trouble_set(long error, const char *step, const char *form, ...);
void trouble_json(struct text *to); /* {"errno":…,"step":…,"text":…} */

uint64_t step_start(void);
long step_done(uint64_t start, const char *call, const char *effect, long result, const char *form, ...);

#define STEP(call, effect, expression, ...)                                       \
	({                                                                        \
		uint64_t step_at = step_start();                                  \
		step_done(step_at, call, effect, (long)(expression), __VA_ARGS__); \
	})

/* As STEP; the surrounding function gives a failure back. */
#define TRY(call, effect, expression, ...)                                        \
	({                                                                        \
		long try_result = STEP(call, effect, expression, __VA_ARGS__);    \
		if (try_result < 0)                                               \
			return try_result;                                        \
		try_result;                                                       \
	})

/* A call that may fail with one error, which is then no failure. */
#define EXCEPT(error, expression) ({ long except_got = (long)(expression); except_got == -(error) ? 0 : except_got; })

#endif
