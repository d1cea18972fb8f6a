/* Containers, the processes in them, and what both are made of. */
#ifndef CONTAINER_H
#define CONTAINER_H

#include "connection.h"
#include "json.h"
#include "step.h"
#include "tar.h"

#include <linux/sched.h>

enum { CONTAINERS = 128, PROCESSES = 512, LAYERS_MOST = 128, WAITERS = 256 };
#define RUN "/run/pykvm"
#define CGROUPS "/sys/fs/cgroup"

enum state { UNUSED, CREATING, CREATED, RUNNING, STOPPED };

struct process;

struct container {
	enum state state;
	bool paused, remove; /* remove: delete it as soon as it has ended */
	char name[NAME_MOST + 1];
	struct process *init;
	int pid, pidfd, cgroup;
	uint64_t namespaces; /* CLONE_NEW… that are its own */
	int layers[LAYERS_MOST], layer_count;
	char rootfs[64], upper[PATH_MOST];
	struct maps maps;
	struct watch oom;
	int64_t oom_told;
	int status, signal, oom_kills; /* once stopped */
	struct connection *owner;      /* who made it: hears events as `owner_id` */
	uint32_t owner_id;
	uint64_t asked_ns; /* when its start had been asked for */
};

/* Whom an answer goes to; `connection` is NULL when it has gone. */
struct asker { struct connection *connection; uint32_t id; };

enum role { FIRST, EXECUTED, HELPER };

struct process {
	bool used, failed, begins, executed, exited, gated; /* begins: nothing but execve is between it and its program */
	enum role role;
	int pid, wait_status;
	struct container *container;   /* NULL: a process of the guest */
	struct watch status;           /* messages of the process until it executes its program */
	struct asker owner, waiting;   /* who hears its events; whose answer depends on it */
	bool has_terminal;
	struct stream *terminal_in, *terminal_out;
	bool input_gone, output_gone;
	char failure[768];             /* trouble's JSON */
};

/* container.c */
struct container *container_find(const char *name);
extern struct container containers[CONTAINERS];
void container_create(struct asker asker, const struct json *request);
void container_start(struct asker asker, struct container *container);
void container_exec(struct asker asker, struct container *container, const struct json *request);
void container_delete(struct asker asker, struct container *container, bool force);
void container_wait(struct asker asker, struct container *container);
void container_ended(struct container *container, int wait_status);
void container_forget(struct container *container);
const char *container_state(const struct container *container);
long signal_all(struct container *container, int number);

/* process.c */
struct spawn {
	enum role role;
	struct container *container;
	struct asker owner;
	uint64_t flags;
	int cgroup; /* -1: the agent's own */
	int keep;   /* a descriptor that the child has as KEPT_FD, or -1 */
	bool input, output, error, terminal, explain;
	void (*body)(const void *argument) __attribute__((noreturn));
	const void *argument;
	int *pidfd; /* filled when asked for */
};
extern struct process processes[PROCESSES];
struct process *spawn(const struct spawn *how);
struct process *process_find(const struct container *container, int pid);
long process_go(struct process *process);
void reap(void);
void resize(const struct process *process, int rows, int columns);
__attribute__((noreturn)) void give_up(void);            /* in a child: tell the trouble and end */
void tell_ready(void);                                   /* in a child: ready; waits to be let go on */
void tell_begin(void);
void tell_pid(int pid);
long tell_terminal(int fd);
enum { STATUS_FD = 3, KEPT_FD = 4 };

/* request.c */
extern char answer_bytes[ANSWER_MOST];
extern uint64_t request_ns; /* when the request had come that is being answered */
void answer(struct asker asker, const struct text *json);
void answer_empty(struct asker asker);
void answer_trouble(struct asker asker);
void answer_error(struct asker asker, long error, const char *step, const char *form, ...);
void event(struct asker asker, const struct text *json);

/* root.c: layers and the union of them */
long maps_write(int pid, const struct maps *maps);
long root_make(struct container *container, const struct json *request);
long files_write(const struct container *container, const struct json *files);
void root_remove(const struct container *container);
long layers_scan(struct text *names);
const char *layer_name(int layer), *layer_path(int layer), *layer_device(int layer);
long shares_mount(const struct json *mounts);
long share_path(const char *text, char *path); /* "TAG/SUB" → a descriptor of it */

/* cgroup.c */
long cgroup_start(void);
long cgroup_make(struct container *container, const struct json *resources); /* NULL: others limit it */
long cgroup_apply(int cgroup, const struct json *resources);
void cgroup_remove(struct container *container);
long cgroup_freeze(struct container *container, bool frozen);
int64_t cgroup_oom_kills(const struct container *container);

/* devices.c */
long devices_allow(int cgroup, const struct json *rules);

/* network.c */
enum network { NET_NONE, NET_HOST, NET_BRIDGE };
struct network_plan { enum network kind; const char *bridge; uint32_t address, gateway; int prefix; uint8_t mac[6]; bool has_mac; };
bool parse_address(const char *text, uint32_t *address, int *prefix);
long network_read(struct network_plan *plan, const struct json *json);
long network_attach(const struct network_plan *plan, int pid, int index); /* the guest's side */
long network_inside(const struct network_plan *plan);                    /* the container's side */

/* mounts.c, in the container's process */
long mounts_make(const struct container *container, const struct json *config, bool terminal);
long mounts_mask(const struct json *config);
long terminal_take(int master, const struct json *size);
long mounts_files(const struct container *container, const struct json *files);
long root_enter(void);

/* rights.c, in the container's process */
extern int own_program; /* a descriptor of the agent's program, for its inner init */
long rights_early(const struct json *process);                     /* limits, oom_score_adj */
long rights_late(const struct json *process, const char *seccomp); /* no way back from these */
/* Whether there is a program to start, before it is started: 0, or a trouble. One of a place below its cwd is believed. */
long program_look(const struct json *process);
__attribute__((noreturn)) void run_program(const struct json *process, bool with_init);
__attribute__((noreturn)) void inner_init(char **arguments, char **environment);

/* child.c */
struct first_plan { struct container *container; const struct json *request; struct network_plan network; };
struct exec_plan { struct container *container; const struct json *request; };
__attribute__((noreturn)) void first_body(const void *plan);
__attribute__((noreturn)) void exec_body(const void *plan);

/* runtime.c: another runtime instead of child.c */
long runtime_check(const struct json *request);
long runtime_bundle(const struct container *container, const struct json *request);
__attribute__((noreturn)) void runtime_body(const void *plan);

/* inspect.c and files.c: requests about a container */
void ask_stats(struct asker asker, struct container *container);
void ask_top(struct asker asker, struct container *container);
void ask_info(struct asker asker, struct container *container);
void ask_which(struct asker asker, struct container *container, const char *path);
void ask_list(struct asker asker);
void ask_tar(struct asker asker, struct container *container, const struct json *request, const char *operation);
void ask_stat(struct asker asker, struct container *container, const struct json *request);
void dials_forget(const struct connection *connection);
void ask_dial(struct asker asker, const struct json *request);
int container_root(const struct container *container); /* a descriptor of what it sees as / */

#endif
