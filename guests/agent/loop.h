/* The agent's one loop: descriptors that are waited for, and who hears of them. Nothing in it blocks. */
#ifndef LOOP_H
#define LOOP_H

#include "base.h"

#include <linux/eventpoll.h>

struct watch {
	int fd; /* -1: not used */
	uint32_t events;
	void (*ready)(struct watch *watch, uint32_t events);
};

void loop_open(void);
long loop_add(struct watch *watch, int fd, uint32_t events, void (*ready)(struct watch *, uint32_t));
/* 0 events: not waited for at all, not even its end */
void loop_change(struct watch *watch, uint32_t events);
void loop_close(struct watch *watch); /* the descriptor too */
__attribute__((noreturn)) void loop_run(void);

#endif
