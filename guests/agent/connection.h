/* Connections of the host, and the streams between them and the guest's descriptors. See protocol.h. */
#ifndef CONNECTION_H
#define CONNECTION_H

#include "loop.h"
#include "protocol.h"

enum { CONNECTIONS = 32, STREAMS_MOST = 768 };

struct connection {
	struct watch watch;
	struct { uint8_t *bytes; size_t used; } in, out;
	uint64_t serial; /* tells it from one that had its place before */
};

struct stream {
	struct watch watch;
	struct connection *connection; /* NULL: nobody listens any more */
	uint32_t id, credit;
	uint8_t number;
	bool is_input, is_terminal, is_socket, ended; /* input: from the host to `watch` */
	bool *gone;                        /* told when the stream has been closed */
	uint8_t *held;                     /* of an input: what the descriptor does not take yet */
	uint32_t held_bytes, taken;        /* taken: bytes that the host has not been given credit for */
};

/* Told of each whole request, of streams that nobody knows, and of a connection that ends. The agent provides them. */
void on_request(struct connection *connection, uint32_t id, char *body, size_t size);
void on_disconnect(struct connection *connection);

long listen_for_host(uint32_t port);
/* A JSON frame. A connection that is over, or NULL, drops it. */
void send_json(struct connection *connection, enum kind kind, uint32_t id, const char *json, size_t size);

/* Streams take over `fd`. NULL, and the descriptor closed, when there are too many. */
struct stream *stream_out(struct connection *connection, uint32_t id, uint8_t number, int fd);
struct stream *stream_in(struct connection *connection, uint32_t id, int fd);
void stream_close(struct stream *stream);
bool id_is_used(const struct connection *connection, uint32_t id);

#endif
