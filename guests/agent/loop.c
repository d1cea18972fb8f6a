#include "loop.h"

enum { BATCH = 32 };

static int epoll = -1;

void loop_open(void)
{
	epoll = (int)SYS(epoll_create1, EPOLL_CLOEXEC);
}

static long control(int operation, struct watch *watch, uint32_t events)
{
	struct epoll_event event = {.events = events, .data = (uintptr_t)watch};
	return SYS(epoll_ctl, epoll, operation, watch->fd, &event);
}

long loop_add(struct watch *watch, int fd, uint32_t events, void (*ready)(struct watch *, uint32_t))
{
	*watch = (struct watch){fd, events, ready};
	return events ? control(EPOLL_CTL_ADD, watch, events) : 0;
}

void loop_change(struct watch *watch, uint32_t events)
{
	if (watch->fd < 0 || events == watch->events)
		return;
	control(!events ? EPOLL_CTL_DEL : watch->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, watch, events);
	watch->events = events;
}

void loop_close(struct watch *watch)
{
	if (watch->fd < 0)
		return;
	loop_change(watch, 0); /* another process may still hold the same file open */
	SYS(close, watch->fd);
	watch->fd = -1;
}

void loop_run(void)
{
	struct epoll_event events[BATCH];
	for (;;) {
		long count = SYS(epoll_wait, epoll, events, BATCH, -1);
		for (long n = 0; n < count; n++) {
			struct watch *watch = (struct watch *)(uintptr_t)events[n].data;
			/* one that an earlier one of this batch has closed, or no longer waits for, hears nothing */
			uint32_t wanted = events[n].events & (watch->events | EPOLLERR | EPOLLHUP);
			if (watch->fd >= 0 && watch->events && wanted)
				watch->ready(watch, wanted);
		}
	}
}
