/* What the host and the agent, process 1 of a guest that holds containers, say to each other.
 *
 * The agent listens on vsock port 1024. Each connection stands for itself; up to 32 at a time. A connection carries frames,
 * both ways, integers little-endian:
 *
 *     0       4      5        6      8       12
 *     ┌───────┬──────┬────────┬──────┬───────┬───────────────┐
 *     │ size  │ kind │ stream │ zero │ id    │ size bytes …  │
 *     └───────┴──────┴────────┴──────┴───────┴───────────────┘
 *
 *   HELLO    agent → host, the first frame: {"protocol":1,"agent":"1","kernel":"6.1.0-…","window":262144}
 *   REQUEST  host → agent: {"op":…}. The host chooses `id`, not 0, unique among what lives on this connection.
 *   ANSWER   agent → host: the one answer to a request: an object with what it asked for, or
 *            {"error":{"errno":2,"step":"execve","text":"execve /bin/x: no such file or directory (errno 2)"}}
 *   EVENT    agent → host: {"event":…} about the container, process or transfer that request `id` made
 *   DATA     bytes of a stream of request `id`, at most DATA_MOST, so that a frame is a packet of the vsock; an empty one is the end of that stream
 *   CREDIT   u32: so many more bytes of that stream may be sent. Each stream starts with a credit: OUT_WINDOW bytes for
 *            those from the agent, WINDOW for those to it. Who gets more than was allowed ends the connection.
 *   CLOSE    the receiver of a stream wants no more of it; the agent closes its end (a writer gets SIGPIPE)
 *
 * Bodies are JSON, except those of DATA and CREDIT. The agent's reader is strict: one object, no key twice, 64-bit
 * integers only, no \u0000, at most 32 deep and REQUEST_MOST bytes. A string's bytes need not be UTF-8: what is not,
 * travels as it is (Python: encode(errors="surrogateescape") of ensure_ascii=False text, and back). Unknown keys of
 * requests are errors, unknown keys of config.json are ignored.
 *
 * A connection that breaks ends nothing but itself: containers go on, their output is read and dropped, their
 * stdin is at its end, their exit status stays until `delete`. Processes made by `exec` without a container get SIGHUP.
 *
 * ---- Containers. NAME is [A-Za-z0-9][A-Za-z0-9_.-]{0,63}. ---------------------------------------------------------
 *
 * create   {"op":"create","name":NAME, "config":{…OCI config.json…}, "layers":[PARTNAME,…] from the bottom up,
 *           "upper":{"type":"tmpfs","size":BYTES} | {"type":"ext4","device":"vdb","dir":"DIR"},   default tmpfs, half of memory
 *           "rootfs":"TAG[/SUB]"      instead of layers and upper: a folder of a virtio-fs share is the root, written directly
 *           "seccomp":"HEX"           struct sock_filter[], 16 digits each; config.linux.seccomp itself is not looked at
 *           "network":{"mode":"none"} | {"mode":"host"} | {"mode":"bridge","bridge":"pykvm0","address":"10.88.0.2/16",
 *                     "gateway":"10.88.0.1"[,"mac":"52:54:…"]}       the gateway's address is the bridge's own; default none
 *           "runtime":{"program":"/usr/bin/crun","config":TEXT of config.json}   that makes the first process instead of the agent,
 *                     by create and start, from a bundle with the root r and the files f0, f1, … beside it; of `config` and the rest
 *                     then count the namespaces, the mappings, layers, upper, files, stdin and start, which it needs to have
 *           "files":[{"path":"/etc/hosts","text":…,"mode":420},…]   written to the root before the start, if they differ
 *           "init":true               our own process 1 in the container: it forwards signals and reaps
 *           "stdin":true              else /dev/null; a terminal always has it
 *           "start":true              `start` at once, which is `run`
 *           "explain":true            EVENT step for each step}
 *          Answer: {"pid":PID in the guest,"cgroup":"/pykvm/NAME","at_ns":MONOTONIC of the request}, with start only after execve has succeeded; else the error
 *          (step "execve" with errno ENOENT or EACCES: 127, 126) and nothing is left of the container.
 *          Streams of its id: 0 stdin, 1 stdout or the terminal, 2 stderr.
 *          Of config.json are taken: process {terminal, consoleSize, user{uid,gid,umask,additionalGids}, args, env, cwd, capabilities,
 *          rlimits, noNewPrivileges, oomScoreAdj}, root {readonly}, hostname, domainname, mounts [{destination, type, source, options}],
 *          linux {namespaces, uidMappings, gidMappings, devices, cgroupsPath (not taken), resources (as `update`; also devices: ignored),
 *          sysctl, maskedPaths, readonlyPaths, rootfsPropagation (not taken)}.
 *          A namespace that is not named is the guest's; {"type":"time"} too; one with "path", in the guest, is
 *          entered. mounts: type "bind" has a "source" in the guest, type "virtiofs"
 *          a source "TAG[/SUB]" on a share; options ro, rw, nosuid, nodev, noexec, relatime, noatime, strictatime, bind, rbind,
 *          private …; the rest goes to the file system as data.
 * start    {"op":"start","name":NAME}: {"pid":PID}
 * exec     {"op":"exec","name":NAME,"process":{as config.process},"seccomp":"HEX","stdin":true}: {"pid":PID}.
 *          Everything of the container again: namespaces, cgroup, seccomp, capabilities, ids. Without "name" a process of the guest
 *          itself, with all rights. Streams as create's.
 * signal   {"op":"signal","name":NAME,"signal":15[,"pid":PID of an exec][,"all":true: cgroup.kill with 9, else each process]}: {}
 * resize   {"op":"resize","name":NAME[,"pid":PID],"rows":24,"columns":80}: {}
 * wait     {"op":"wait","name":NAME}: answered when it has ended, with what the exit event says
 * pause, unpause   {"op":…,"name":NAME}: {}     cgroup.freeze, answered when it holds
 * update   {"op":"update","name":NAME,"resources":{memory{limit,swap,reservation}, cpu{shares,quota,period,cpus,mems},
 *           pids{limit}, blockIO{weight, throttleReadBpsDevice[{major,minor,rate} or {device:"vdb",rate}], …WriteBps…, …ReadIOPS…, …WriteIOPS…}, unified{FILE:TEXT}}}: {}
 *          As in OCI; swap is memory + swap; -1 is no limit.
 * stats    {"op":"stats","name":NAME}: {"at_ns":MONOTONIC,"files":{"cpu.stat":TEXT,"memory.current":TEXT,…,"net.dev":TEXT}}: the kernel's own text
 * top      {"op":"top","name":NAME}: {"processes":[{"pid":PID,"stat":TEXT,"status":TEXT,"cmdline":TEXT with \u0000},…]}: of /proc/PID
 * info     {"op":"info","name":NAME}: {"state":STATE,"pid":PID,"namespaces":{"mnt":INODE,…},"guest":{"mnt":INODE,…},"cgroup":"/pykvm/NAME",
 *           "cgroups":TEXT of /proc/PID/cgroup,"files":{as stats, limits too},"mounts":TEXT of /proc/PID/mountinfo,"process":TEXT of /proc/PID/status,
 *           "uid_map":TEXT,"gid_map":TEXT,"rootfs":PATH,"upper":PATH,"layers":[{"name":PARTNAME,"path":PATH,"device":"vda1"},…]}; STATE is created, running,
 *          paused or stopped; without "name" of the guest itself: namespaces, cgroup files of the root, mounts, meminfo, uptime
 * list     {"op":"list"}: {"containers":[{"name","state","pid","status" if stopped},…]}
 * which    {"op":"which","name":NAME,"path":"/etc/passwd"}: {"upper":KIND,"layers":[KIND,…] from the bottom up}; KIND is absent, file,
 *          directory, opaque (a directory that hides those below), whiteout, link or other: what that layer says of exactly this path
 * delete   {"op":"delete","name":NAME[,"force":true: kill it first]}: {}
 *
 * ---- Files. Tars are POSIX pax, with SCHILY.xattr.* and ids as the container has them. Stream 1 is from the agent, 0 to it. ---
 *
 * diff     {"op":"diff","name":NAME[,"content":false: files without their bytes]}: {} and then the upper as an OCI layer: .wh.NAME, .wh..wh..opq
 * export   {"op":"export","name":NAME}: {} and then all of the root, without what is mounted in it
 * copy_out {"op":"copy_out","name":NAME,"path":"/etc"[,"follow":true]}: {} and then this file or folder, named by the last part of its path
 *          After the answer comes the tar on stream 1; then EVENT end {"event":"end"[,"error":{…}]}.
 * copy_in  {"op":"copy_in","name":NAME,"path":"/tmp"}: {} and then the agent takes a tar on stream 0 up to its end (an empty DATA) and unpacks
 *          it in that folder, which is there; then EVENT end. The names in it never lead out of the container's root.
 * stat     {"op":"stat","name":NAME,"path":"/etc"[,"follow":true]}: {"mode","size","uid","gid","mtime","target" of a symlink,"path" resolved}
 *
 * ---- The guest ----------------------------------------------------------------------------------------------------
 *
 * rescan   {"op":"rescan"}: {"layers":[PARTNAME,…]}: the partition tables (GPT) of all disks read again, also of one that has grown while its
 *          layers are in use: what can be named as a layer
 * dial     {"op":"dial","address":"10.88.0.2","port":80}: {} and streams 0 and 1 are a TCP connection, from the guest's network namespace
 * shutdown {"op":"shutdown"}: {} and then all containers are killed, file systems written, and the guest powered off
 *
 * ---- Events -------------------------------------------------------------------------------------------------------
 *
 * exit     {"event":"exit","status":137[,"signal":9],"oom_kills":1}     of create's or exec's id; status is 128 + signal after one.
 *          The streams' ends come by themselves, before or after.
 * oom      {"event":"oom","kills":1}     the kernel killed a process of the container for memory; so many until now
 * step     {"event":"step","n":1,"who":"agent"|"container","call":"mount","detail":"overlay → /run/pykvm/…/root lowerdir=…","effect":"…","at_ns":MONOTONIC,"ns":TAKEN,"result":0}
 *          result is the syscall's, -errno if it failed
 * end      {"event":"end"[,"error":{…}]}     of a tar
 */
#ifndef PROTOCOL_H
#define PROTOCOL_H

#include <stdint.h>

#define AGENT_VERSION "1"
enum { AGENT_PORT = 1024, PROTOCOL = 1 };
enum kind { HELLO = 'H', REQUEST = 'R', ANSWER = 'A', EVENT = 'E', DATA = 'D', CREDIT = 'W', CLOSE = 'C' };
enum { WINDOW = 262144, OUT_WINDOW = 1048576, DATA_MOST = 65524, REQUEST_MOST = 1 << 20, ANSWER_MOST = 1 << 20 };
enum { STREAM_IN = 0, STREAM_OUT = 1, STREAM_ERR = 2, STREAMS = 3 };

struct frame {
	uint32_t size;
	uint8_t kind, stream;
	uint16_t zero;
	uint32_t id;
};
_Static_assert(sizeof(struct frame) == 12, "as drawn");

#endif
