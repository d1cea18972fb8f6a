#include "connection.h"

#include <linux/mman.h>

enum { HEAD = sizeof(struct frame), IN_BYTES = REQUEST_MOST + HEAD + 1, OUT_BYTES = 2 * ANSWER_MOST };
enum { FULL = 4 * DATA_MOST }; /* streams wait while so much is unsent */
enum { AF_VSOCK = 40, SOCK_STREAM = 1, SOCK_CLOEXEC = O_CLOEXEC, SOCK_NONBLOCK = O_NONBLOCK, MSG_NOSIGNAL = 0x4000 };
enum { CID_ANY = -1, CID_HOST = 2, BACKLOG = 16 };

struct vsock_address {
	uint16_t family, zero;
	uint32_t port, cid;
	uint8_t flags, rest[3];
};

static struct watch listener;
static struct connection connections[CONNECTIONS];
static struct stream streams[STREAMS_MOST];
static uint64_t serial;

static void *memory(size_t size)
{
	long at = SYS(mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return at < 0 && at > -4096 ? NULL : (void *)at;
}

static void arrange(struct stream *stream);

/* ---- connections ------------------------------------------------------------------------------------------ */

static void disconnect(struct connection *connection)
{
	if (connection->watch.fd < 0)
		return;
	loop_close(&connection->watch);
	SYS(munmap, connection->in.bytes, IN_BYTES);
	SYS(munmap, connection->out.bytes, OUT_BYTES);
	for (struct stream *stream = streams; stream < streams + STREAMS_MOST; stream++)
		if (stream->watch.ready && stream->connection == connection) {
			stream->connection = NULL;
			if (stream->is_input && !stream->is_terminal)
				stream_close(stream);
			else
				arrange(stream);
		}
	on_disconnect(connection);
}

static void arrange_all(struct connection *connection)
{
	for (struct stream *stream = streams; stream < streams + STREAMS_MOST; stream++)
		if (stream->watch.ready && stream->connection == connection && !stream->is_input)
			arrange(stream);
}

static void flush(struct connection *connection)
{
	size_t done = 0;
	bool was_full = connection->out.used >= FULL;
	while (done < connection->out.used) {
		long sent = SYS(sendto, connection->watch.fd, connection->out.bytes + done, connection->out.used - done,
				MSG_NOSIGNAL, 0, 0);
		if (sent == -EAGAIN || sent == -EINTR)
			break;
		if (sent < 0) {
			disconnect(connection);
			return;
		}
		done += (size_t)sent;
	}
	connection->out.used -= done;
	if (done && connection->out.used)
		memmove(connection->out.bytes, connection->out.bytes + done, connection->out.used);
	loop_change(&connection->watch, connection->out.used ? EPOLLIN | EPOLLOUT : EPOLLIN);
	if (was_full && connection->out.used < FULL)
		arrange_all(connection);
}

/* Room for a frame's body behind what waits, or NULL; put() makes it a frame. */
static uint8_t *room(struct connection *connection, size_t size)
{
	bool fits = OUT_BYTES - connection->out.used >= HEAD + size;
	return fits ? connection->out.bytes + connection->out.used + HEAD : NULL;
}

static void put(struct connection *connection, enum kind kind, uint8_t stream, uint32_t id, size_t size)
{
	struct frame frame = {(uint32_t)size, (uint8_t)kind, stream, 0, id};
	memcpy(connection->out.bytes + connection->out.used, &frame, HEAD);
	connection->out.used += HEAD + size;
	if (connection->watch.events & EPOLLOUT)
		return; /* it goes when what is before it has gone */
	flush(connection);
}

static void send_frame(struct connection *connection, enum kind kind, uint8_t stream, uint32_t id, const void *body, size_t size)
{
	if (!connection || connection->watch.fd < 0)
		return;
	uint8_t *at = room(connection, size);
	if (!at) { /* a host that asks and never listens */
		disconnect(connection);
		return;
	}
	memcpy(at, body, size);
	put(connection, kind, stream, id, size);
}

void send_json(struct connection *connection, enum kind kind, uint32_t id, const char *json, size_t size)
{
	send_frame(connection, kind, 0, id, json, size);
}

/* ---- streams ---------------------------------------------------------------------------------------------- */

/* Wait for what the stream can do next. */
static void arrange(struct stream *stream)
{
	uint32_t events = 0;
	if (stream->is_input)
		events = stream->held_bytes ? EPOLLOUT : 0;
	else if (!stream->connection || (stream->credit && stream->connection->out.used < FULL))
		events = EPOLLIN;
	loop_change(&stream->watch, events);
}

static struct stream *stream_new(struct connection *connection, uint32_t id, uint8_t number, int fd, bool is_input)
{
	for (struct stream *stream = streams; stream < streams + STREAMS_MOST; stream++)
		if (!stream->watch.ready) {
			*stream = (struct stream){.connection = connection, .id = id, .number = number, .is_input = is_input};
			stream->credit = is_input ? WINDOW : OUT_WINDOW;
			return stream;
		}
	SYS(close, fd);
	return NULL;
}

void stream_close(struct stream *stream)
{
	if (!stream->watch.ready)
		return;
	if (stream->is_socket) /* the other direction has a descriptor of its own */
		SYS(shutdown, stream->watch.fd, 1 /* SHUT_WR */);
	loop_close(&stream->watch);
	if (stream->held)
		SYS(munmap, stream->held, WINDOW);
	if (!stream->is_input && !stream->ended)
		send_frame(stream->connection, DATA, stream->number, stream->id, "", 0);
	stream->watch.ready = NULL;
	if (stream->gone)
		*stream->gone = true;
}

static void output_ready(struct watch *watch, uint32_t events)
{
	struct stream *stream = (struct stream *)watch;
	static uint8_t dropped[DATA_MOST];
	struct connection *connection = stream->connection;
	size_t most = connection && stream->credit < DATA_MOST ? stream->credit : DATA_MOST;
	uint8_t *to = connection ? room(connection, most) : dropped;
	long got;
	(void)events;
	if (!to)
		return arrange(stream);
	got = SYS(read, watch->fd, to, most);
	if (got == -EAGAIN || got == -EINTR)
		return;
	if (got <= 0) { /* a terminal says EIO when nobody has it open */
		stream_close(stream);
		return;
	}
	if (!connection)
		return;
	stream->credit -= (uint32_t)got;
	put(connection, DATA, stream->number, stream->id, (size_t)got);
	if (stream->watch.ready)
		arrange(stream);
}

struct stream *stream_out(struct connection *connection, uint32_t id, uint8_t number, int fd)
{
	struct stream *stream = stream_new(connection, id, number, fd, false);
	if (stream)
		loop_add(&stream->watch, fd, EPOLLIN, output_ready);
	return stream;
}

/* Bytes that the descriptor took: the host may send as many again. */
static void took(struct stream *stream, uint32_t size)
{
	uint32_t more = stream->taken += size;
	if (more < WINDOW / 4)
		return; /* a frame for each piece would cost as much as the piece */
	stream->taken = 0;
	stream->credit += more;
	send_frame(stream->connection, CREDIT, stream->number, stream->id, &more, sizeof more);
}

static void input_ready(struct watch *watch, uint32_t events)
{
	struct stream *stream = (struct stream *)watch;
	long done = stream->held_bytes ? SYS(write, watch->fd, stream->held, stream->held_bytes) : 0;
	(void)events;
	if (done == -EAGAIN || done == -EINTR)
		return arrange(stream);
	if (done < 0) { /* nobody reads it any more: what still comes is dropped */
		done = stream->held_bytes;
		stream->ended = !stream->is_terminal;
	}
	stream->held_bytes -= (uint32_t)done;
	memmove(stream->held, stream->held + done, stream->held_bytes);
	took(stream, (uint32_t)done);
	if (!stream->watch.ready)
		return;
	if (stream->ended && !stream->held_bytes)
		stream_close(stream);
	else
		arrange(stream);
}

struct stream *stream_in(struct connection *connection, uint32_t id, int fd)
{
	struct stream *stream = stream_new(connection, id, STREAM_IN, fd, true);
	if (stream)
		loop_add(&stream->watch, fd, 0, input_ready);
	return stream;
}

static struct stream *stream_find(const struct connection *connection, uint32_t id, uint8_t number)
{
	for (struct stream *stream = streams; stream < streams + STREAMS_MOST; stream++)
		if (stream->watch.ready && stream->connection == connection && stream->id == id && stream->number == number)
			return stream;
	return NULL;
}

bool id_is_used(const struct connection *connection, uint32_t id)
{
	for (uint8_t number = 0; number < STREAMS; number++)
		if (stream_find(connection, id, number))
			return true;
	return false;
}

/* ---- frames of the host ----------------------------------------------------------------------------------- */

/* False: the host broke the rules. What is for a stream that has ended is dropped: it was under way. */
static bool on_data(struct connection *connection, const struct frame *frame, const uint8_t *body)
{
	struct stream *stream = stream_find(connection, frame->id, STREAM_IN);
	if (frame->stream != STREAM_IN)
		return false;
	if (!stream || !stream->is_input)
		return true;
	if (!frame->size) {
		if (stream->is_terminal)
			return true; /* a terminal's input ends by a key */
		stream->ended = true;
		if (!stream->held_bytes)
			stream_close(stream);
		return true;
	}
	if (frame->size > stream->credit || stream->ended)
		return false;
	if (!stream->held && !(stream->held = memory(WINDOW)))
		return false;
	stream->credit -= frame->size;
	memcpy(stream->held + stream->held_bytes, body, frame->size);
	stream->held_bytes += frame->size;
	input_ready(&stream->watch, EPOLLOUT);
	return true;
}

static bool on_frame(struct connection *connection, const struct frame *frame, uint8_t *body)
{
	struct stream *stream = stream_find(connection, frame->id, frame->stream);
	uint32_t more;
	switch (frame->kind) {
	case REQUEST:
		if (!frame->id)
			return false;
		on_request(connection, frame->id, (char *)body, frame->size);
		return true;
	case DATA:
		return on_data(connection, frame, body);
	case CREDIT:
		if (frame->size != sizeof more)
			return false;
		memcpy(&more, body, sizeof more);
		if (!stream || stream->is_input)
			return true;
		if (__builtin_add_overflow(stream->credit, more, &stream->credit))
			return false;
		arrange(stream);
		return true;
	case CLOSE:
		if (stream && !stream->is_input)
			stream_close(stream);
		return true;
	default:
		return false;
	}
}

static size_t most_of(uint8_t kind)
{
	return kind == REQUEST ? REQUEST_MOST : kind == DATA ? DATA_MOST : kind == CREDIT ? sizeof(uint32_t) : 0;
}

static void take_frames(struct connection *connection)
{
	uint64_t mine = connection->serial;
	size_t at = 0;
	struct frame frame;
	while (connection->in.used - at >= HEAD) {
		memcpy(&frame, connection->in.bytes + at, HEAD);
		bool is_right = frame.size <= most_of(frame.kind) && frame.stream < STREAMS && !frame.zero;
		if (is_right && connection->in.used - at < HEAD + frame.size)
			break;
		uint8_t *body = connection->in.bytes + at + HEAD;
		uint8_t behind = is_right ? body[frame.size] : 0; /* a text in it gets an end there */
		is_right = is_right && on_frame(connection, &frame, body);
		if (connection->watch.fd < 0 || connection->serial != mine)
			return; /* it ended meanwhile */
		if (!is_right) {
			say("a frame that breaks the protocol: kind %d, %d bytes", frame.kind, (int)frame.size);
			disconnect(connection);
			return;
		}
		body[frame.size] = behind;
		at += HEAD + frame.size;
	}
	connection->in.used -= at;
	memmove(connection->in.bytes, connection->in.bytes + at, connection->in.used);
}

static void connection_ready(struct watch *watch, uint32_t events)
{
	struct connection *connection = (struct connection *)watch;
	uint64_t mine = connection->serial;
	if (events & EPOLLOUT)
		flush(connection);
	if (watch->fd < 0 || connection->serial != mine || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		return;
	long got = SYS(read, watch->fd, connection->in.bytes + connection->in.used, IN_BYTES - 1 - connection->in.used);
	if (got == -EAGAIN || got == -EINTR)
		return;
	if (got <= 0) {
		disconnect(connection);
		return;
	}
	connection->in.used += (size_t)got;
	take_frames(connection);
}

static void hello(struct connection *connection)
{
	char json[256], release[80];
	struct text text = TEXT(json);
	long size = read_file(AT_FDCWD, "/proc/sys/kernel/osrelease", release, sizeof release);
	if (size > 0)
		release[size - 1] = 0;
	text_format(&text, "{\"protocol\":%d,\"agent\":%j,\"kernel\":%j,\"window\":%d}", PROTOCOL, AGENT_VERSION, release, WINDOW);
	send_frame(connection, HELLO, 0, 0, json, text.used);
}

static void accept_host(struct watch *watch, uint32_t events)
{
	struct vsock_address from = {0};
	uint32_t size = sizeof from;
	int fd = (int)SYS(accept4, watch->fd, &from, &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
	(void)events;
	if (fd < 0)
		return;
	for (struct connection *one = connections; one < connections + CONNECTIONS; one++)
		if (one->watch.fd < 0 && from.cid == CID_HOST) { /* else a program of the guest, perhaps in a container */
			one->in.bytes = memory(IN_BYTES);
			one->out.bytes = memory(OUT_BYTES);
			if (!one->in.bytes || !one->out.bytes)
				break;
			one->in.used = one->out.used = 0;
			one->serial = ++serial;
			loop_add(&one->watch, fd, EPOLLIN, connection_ready);
			hello(one);
			return;
		}
	SYS(close, fd);
}

long listen_for_host(uint32_t port)
{
	struct vsock_address address = {.family = AF_VSOCK, .port = port, .cid = (uint32_t)CID_ANY};
	long fd = SYS(socket, AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), failed;
	if (fd < 0)
		return fd;
	for (struct connection *one = connections; one < connections + CONNECTIONS; one++)
		one->watch.fd = -1;
	failed = SYS(bind, fd, &address, sizeof address);
	if (failed >= 0)
		failed = SYS(listen, fd, BACKLOG);
	return failed < 0 ? failed : loop_add(&listener, (int)fd, EPOLLIN, accept_host);
}
