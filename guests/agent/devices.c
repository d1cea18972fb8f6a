/* Which devices a container may open or make: a program of eight instructions a rule, attached to its cgroup.
 * Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, "Device controller". */
#include "container.h"

#include <linux/bpf.h>

enum { INSTRUCTIONS = 1024, CHAR = 2, BLOCK = 1, MAKE = 1, READ = 2, WRITE = 4, ANY = -1 };

static struct bpf_insn program[INSTRUCTIONS];
static int used;

static void emit(uint8_t code, uint8_t to, uint8_t from, int16_t offset, int32_t value)
{
	if (used < INSTRUCTIONS)
		program[used++] = (struct bpf_insn){.code = code, .dst_reg = to & 0xf, .src_reg = from & 0xf, .off = offset, .imm = value};
}

/* r2 type, r3 access, r4 major, r5 minor */
static void begin(void)
{
	used = 0;
	emit(BPF_LDX | BPF_W | BPF_MEM, 2, 1, 0, 0);
	emit(BPF_ALU | BPF_MOV | BPF_X, 3, 2, 0, 0);
	emit(BPF_ALU | BPF_RSH | BPF_K, 3, 0, 0, 16);
	emit(BPF_ALU | BPF_AND | BPF_K, 2, 0, 0, 0xffff);
	emit(BPF_LDX | BPF_W | BPF_MEM, 4, 1, 4, 0);
	emit(BPF_LDX | BPF_W | BPF_MEM, 5, 1, 8, 0);
}

/* Ends the program with `allow` for this device, else goes to the next rule. A rule that allows must allow all that is wanted;
 * one that forbids, any of it. */
static void rule(bool allow, int type, int access, int64_t major, int64_t minor)
{
	int first = used;
	if (type)
		emit(BPF_JMP | BPF_JNE | BPF_K, 2, 0, 0, type);
	emit(BPF_ALU | BPF_MOV | BPF_X, 6, 3, 0, 0);
	emit(BPF_ALU | BPF_AND | BPF_K, 6, 0, 0, allow ? ~access & 7 : access);
	emit(BPF_JMP | (allow ? BPF_JNE : BPF_JEQ) | BPF_K, 6, 0, 0, 0);
	if (major >= 0)
		emit(BPF_JMP | BPF_JNE | BPF_K, 4, 0, 0, (int32_t)major);
	if (minor >= 0)
		emit(BPF_JMP | BPF_JNE | BPF_K, 5, 0, 0, (int32_t)minor);
	emit(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, allow);
	emit(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
	for (int n = first; n < used; n++)
		if (BPF_CLASS(program[n].code) == BPF_JMP && BPF_OP(program[n].code) != BPF_EXIT)
			program[n].off = (int16_t)(used - n - 1);
}

static int letters(const char *text)
{
	int found = 0;
	for (; *text; text++)
		found |= *text == 'r' ? READ : *text == 'w' ? WRITE : *text == 'm' ? MAKE : 0;
	return found;
}

/* What every container has: nodes without content, terminals of its own. */
static void usual(void)
{
	static const struct { int major, minor; } nodes[] = {{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}, {136, ANY}};
	for (size_t n = 0; n < COUNT(nodes); n++)
		rule(true, CHAR, MAKE | READ | WRITE, nodes[n].major, nodes[n].minor);
	rule(true, CHAR, MAKE, ANY, ANY); /* a node may be made, and not opened */
	rule(true, BLOCK, MAKE, ANY, ANY);
}

/* The last of the rules that fits counts, so they are asked from the end. */
static void given(const struct json *one)
{
	const struct json *next = json_next(one);
	if (next)
		given(next);
	const char *type = json_string(json_get(one, "type"), "a");
	rule(json_true(json_get(one, "allow")), *type == 'b' ? BLOCK : *type == 'c' || *type == 'u' ? CHAR : 0,
	     letters(json_string(json_get(one, "access"), "rwm")), json_number(json_get(one, "major"), ANY), json_number(json_get(one, "minor"), ANY));
}

static long load(void)
{
	union bpf_attr about = {.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE, .insns = (uintptr_t)program, .insn_cnt = (uint32_t)used, .license = (uintptr_t) "GPL"};
	return STEP("bpf", "a program that says which devices may be opened", SYS(bpf, BPF_PROG_LOAD, &about, sizeof about), "BPF_PROG_TYPE_CGROUP_DEVICE, %d instructions", used);
}

static bool is_usual(const struct json *rules)
{
	const struct json *one = json_first(rules);
	return !one || (!json_next(one) && !json_true(json_get(one, "allow")));
}

long devices_allow(int cgroup, const struct json *rules)
{
	static int usual_program = -1;
	bool is_kept = is_usual(rules);
	long fd = usual_program;
	if (!is_kept || fd < 0) {
		begin();
		usual();
		if (!is_kept && rules->count < 100)
			given(json_first(rules));
		emit(BPF_ALU64 | BPF_MOV | BPF_K, 0, 0, 0, 0);
		emit(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);
		fd = load();
	}
	if (fd < 0)
		return fd;
	union bpf_attr about = {.target_fd = (uint32_t)cgroup, .attach_bpf_fd = (uint32_t)fd, .attach_type = BPF_CGROUP_DEVICE};
	long failed = STEP("bpf", "from now on it decides for this cgroup", SYS(bpf, BPF_PROG_ATTACH, &about, sizeof about), "BPF_CGROUP_DEVICE");
	if (is_kept)
		usual_program = (int)fd;
	else
		SYS(close, fd);
	return failed;
}
