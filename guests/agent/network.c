/* Networks of containers, by rtnetlink: one bridge in the guest, for each container a pair of ends of a cable (veth). */
#include "container.h"

#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>

enum { AF_INET = 2, AF_NETLINK = 16, SOCK_DGRAM = 2, SOCK_RAW = 3, SIOCGIFINDEX = 0x8933, SOCK_CLOEXEC = O_CLOEXEC, UP = 1, LOOPBACK = 1, BYTES = 1024 };

/* Requests one behind the other; each is acknowledged. */
static struct { _Alignas(4) uint8_t bytes[BYTES]; size_t used; int count; } batch;

static void *add(size_t size)
{
	void *at = batch.bytes + batch.used;
	size_t whole = (size + 3) & ~(size_t)3;
	if (batch.used + whole > BYTES)
		return batch.bytes; /* cannot be: what is asked for is short */
	memset(at, 0, whole);
	batch.used += whole;
	return at;
}

static struct nlmsghdr *begin(uint16_t type, uint16_t flags, const void *body, size_t size)
{
	struct nlmsghdr *head = add(sizeof *head);
	head->nlmsg_type = type;
	head->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags);
	memcpy(add(size), body, size);
	batch.count++;
	return head;
}

static void end(struct nlmsghdr *head)
{
	head->nlmsg_len = (uint32_t)(batch.bytes + batch.used - (uint8_t *)head);
}

static struct rtattr *attribute(uint16_t type, const void *value, size_t size)
{
	struct rtattr *one = add(sizeof *one + size);
	one->rta_type = type;
	one->rta_len = (uint16_t)(sizeof *one + size);
	memcpy(one + 1, value, size);
	return one;
}

static struct rtattr *text_attribute(uint16_t type, const char *value)
{
	return attribute(type, value, strlen(value) + 1);
}

static struct rtattr *open_nest(uint16_t type)
{
	return attribute(type, "", 0);
}

static void close_nest(struct rtattr *nest)
{
	nest->rta_len = (uint16_t)(batch.bytes + batch.used - (uint8_t *)nest);
}

/* All of the batch; the first error, except that things are there already. */
static long talk(const char *effect, const char *detail)
{
	static _Alignas(4) uint8_t answer[8192];
	uint64_t start = step_start();
	long fd = SYS(socket, AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), failed = fd, got;
	if (fd >= 0)
		failed = SYS(sendto, fd, batch.bytes, batch.used, 0, 0, 0);
	while (failed >= 0 && batch.count > 0 && (got = SYS(read, fd, answer, sizeof answer)) > 0)
		for (long at = 0; at + (long)sizeof(struct nlmsghdr) <= got;) {
			struct nlmsghdr *head = (struct nlmsghdr *)(answer + at);
			int error = *(int *)(head + 1);
			if (head->nlmsg_type == NLMSG_ERROR && error && error != -EEXIST && failed >= 0)
				failed = error;
			batch.count--;
			at += (head->nlmsg_len + 3) & ~3u;
			if (!head->nlmsg_len)
				break;
		}
	if (fd >= 0)
		SYS(close, fd);
	batch.used = 0;
	batch.count = 0;
	return step_done(start, "rtnetlink", effect, failed < 0 ? failed : 0, "%s", detail);
}

static void add_address(int index, uint32_t address, int prefix)
{
	struct ifaddrmsg body = {.ifa_family = AF_INET, .ifa_prefixlen = (uint8_t)prefix, .ifa_index = (uint32_t)index};
	struct nlmsghdr *head = begin(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body, sizeof body);
	attribute(IFA_LOCAL, &address, sizeof address);
	attribute(IFA_ADDRESS, &address, sizeof address);
	end(head);
}

static void set_up(int index)
{
	struct ifinfomsg body = {.ifi_index = index, .ifi_flags = UP, .ifi_change = UP};
	end(begin(RTM_NEWLINK, 0, &body, sizeof body));
}

static long index_of(const char *name)
{
	char path[96], text[32];
	long got = read_file(AT_FDCWD, format(path, sizeof path, "/sys/class/net/%s/ifindex", name), text, sizeof text);
	return got <= 0 ? trouble_set(-ENODEV, "network", "there is no %s", name) : (long)number_of(text);
}

/* ---- the plan --------------------------------------------------------------------------------------------- */

/* "10.88.0.2/16" in network order; the prefix is 32 without one. */
bool parse_address(const char *text, uint32_t *address, int *prefix)
{
	uint8_t bytes[4];
	for (int n = 0; n < 4; n++) {
		int64_t value = number_of(text);
		if (value < 0 || value > 255)
			return false;
		bytes[n] = (uint8_t)value;
		while (*text >= '0' && *text <= '9')
			text++;
		if (n < 3 && *text++ != '.')
			return false;
	}
	memcpy(address, bytes, 4);
	*prefix = 32;
	if (*text == '/')
		*prefix = (int)number_of(text + 1);
	else if (*text)
		return false;
	return *prefix >= 0 && *prefix <= 32;
}

static bool parse_mac(const char *text, uint8_t mac[6])
{
	for (int n = 0; n < 12; n++) {
		int c = *text++ | 32, digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
		if (digit < 0)
			return false;
		mac[n / 2] = (uint8_t)(n & 1 ? mac[n / 2] << 4 | digit : digit);
		if (n & 1 && n < 11 && *text++ != ':')
			return false;
	}
	return !*text;
}

long network_read(struct network_plan *plan, const struct json *json)
{
	const char *mode = json_string(json_get(json, "mode"), "none"), *mac = json_string(json_get(json, "mac"), NULL);
	int ignored;
	memset(plan, 0, sizeof *plan);
	plan->bridge = json_string(json_get(json, "bridge"), "pykvm0");
	if (same(mode, "none") || same(mode, "host")) {
		plan->kind = same(mode, "host") ? NET_HOST : NET_NONE;
		return 0;
	}
	plan->kind = NET_BRIDGE;
	plan->has_mac = mac != NULL;
	if (!same(mode, "bridge") || strlen(plan->bridge) > 15 || !*plan->bridge ||
	    !parse_address(json_string(json_get(json, "address"), ""), &plan->address, &plan->prefix) ||
	    !parse_address(json_string(json_get(json, "gateway"), ""), &plan->gateway, &ignored) || (mac && !parse_mac(mac, plan->mac)))
		return trouble_set(-EINVAL, "network", "none, host, or bridge with a bridge's name, an address/prefix and a gateway");
	return 0;
}

/* ---- the guest's side ------------------------------------------------------------------------------------- */

static long bridge_index(const struct network_plan *plan)
{
	struct ifinfomsg body = {.ifi_flags = UP, .ifi_change = UP};
	char path[64];
	if (SYS(access, format(path, sizeof path, "/sys/class/net/%s", plan->bridge), 0) >= 0)
		return index_of(plan->bridge);
	struct nlmsghdr *head = begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body, sizeof body);
	text_attribute(IFLA_IFNAME, plan->bridge);
	struct rtattr *about = open_nest(IFLA_LINKINFO);
	text_attribute(IFLA_INFO_KIND, "bridge");
	close_nest(about);
	end(head);
	long failed = talk("a switch in the guest's kernel", plan->bridge), index = failed < 0 ? failed : index_of(plan->bridge);
	if (index < 0)
		return index;
	add_address((int)index, plan->gateway, plan->prefix);
	failed = talk("its address is the containers' gateway", plan->bridge);
	return failed < 0 ? failed : index;
}

long network_attach(const struct network_plan *plan, int pid, int number)
{
	struct ifinfomsg body = {.ifi_flags = UP, .ifi_change = UP};
	char name[16];
	long bridge;
	if (plan->kind != NET_BRIDGE)
		return 0;
	bridge = bridge_index(plan);
	if (bridge < 0)
		return bridge;
	format(name, sizeof name, "veth%d", number);
	struct nlmsghdr *head = begin(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body, sizeof body);
	text_attribute(IFLA_IFNAME, name);
	attribute(IFLA_MASTER, &(uint32_t){(uint32_t)bridge}, 4);
	struct rtattr *about = open_nest(IFLA_LINKINFO);
	text_attribute(IFLA_INFO_KIND, "veth");
	struct rtattr *data = open_nest(IFLA_INFO_DATA), *peer = open_nest(VETH_INFO_PEER);
	add(sizeof body); /* not up: its other end is not there yet */
	text_attribute(IFLA_IFNAME, "eth0");
	attribute(IFLA_NET_NS_PID, &(uint32_t){(uint32_t)pid}, 4);
	if (plan->has_mac)
		attribute(IFLA_ADDRESS, plan->mac, 6);
	close_nest(peer);
	close_nest(data);
	close_nest(about);
	end(head);
	return talk("a cable: one end in the bridge, the other as eth0 in the container", name);
}

/* ---- the container's side --------------------------------------------------------------------------------- */

long network_inside(const struct network_plan *plan)
{
	if (plan->kind == NET_HOST)
		return 0;
	set_up(LOOPBACK);
	if (plan->kind == NET_BRIDGE) {
		struct rtmsg route = {.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_BOOT, .rtm_type = RTN_UNICAST};
		struct { char name[16]; int index; uint8_t rest[20]; } request = {.name = "eth0"};
		long fd = SYS(socket, AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), got = fd < 0 ? fd : SYS(ioctl, fd, SIOCGIFINDEX, &request);
		if (got < 0)
			return trouble_set(got, "network", "eth0 in the container");
		SYS(close, fd);
		add_address(request.index, plan->address, plan->prefix);
		set_up(request.index);
		struct nlmsghdr *head = begin(RTM_NEWROUTE, NLM_F_CREATE, &route, sizeof route);
		attribute(RTA_GATEWAY, &plan->gateway, 4);
		end(head);
	}
	return talk(plan->kind == NET_BRIDGE ? "lo up; eth0's address, and the way out" : "lo up; there is no other device", "inside");
}
