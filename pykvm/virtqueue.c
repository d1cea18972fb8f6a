/* A split virtqueue, device side: chains of checked buffers out of the rings, used buffers back into them, and
 * file contents into and out of a chain. No policy, no allocation.
 *
 * The driver may change everything while we look: each descriptor is copied once, and the copy is checked. One
 * thread at a time uses a queue. Source: virtio 1.2, section 2.7; 2.7.5.3 (indirect), 2.7.10 (event index).
 */
#define _GNU_SOURCE
#include "virtqueue.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FLAG_NEXT 1
#define FLAG_WRITE 2
#define FLAG_INDIRECT 4
#define NO_INTERRUPT 1
#define CHAIN_BYTES_MOST (1ull << 32) /* 2.7.4 */
#define IOV_MOST 256

struct descriptor {
    uint64_t gpa;
    uint32_t size;
    uint16_t flags, next;
};

struct used {
    uint32_t head, written;
};

static uint16_t load16(const uint8_t *at)
{
    return __atomic_load_n((const uint16_t *)(const void *)at, __ATOMIC_ACQUIRE);
}

static void store16(uint8_t *at, uint16_t value)
{
    __atomic_store_n((uint16_t *)(void *)at, value, __ATOMIC_RELEASE);
}

/* ---- chains out ---------------------------------------------------------------------------------- */

static int broken(struct vq_chain *chain, enum vq_found rule, uint64_t where, uint64_t what)
{
    chain->where = where;
    chain->what = what;
    return (int)rule;
}

static int add_piece(const struct virtqueue *queue, struct vq_chain *chain, const struct descriptor *from)
{
    int is_written = from->flags & FLAG_WRITE;
    uint32_t count = chain->readable + chain->writable;
    uint64_t total = chain->readable_bytes + chain->writable_bytes + from->size;
    uint8_t *host;
    if (!from->size || total > CHAIN_BYTES_MOST)
        return broken(chain, VQ_LENGTH, from->size, total);
    if (count >= chain->capacity || count >= queue->size)
        return broken(chain, VQ_LOOP, 0, 0);
    if (chain->writable && !is_written)
        return broken(chain, VQ_ORDER, 0, 0);
    host = slot_bytes(queue->slots, queue->slot_count, from->gpa, from->size, is_written);
    if (!host)
        return broken(chain, VQ_PLACE, from->gpa, from->size);
    chain->pieces[count] = (struct vq_piece){from->gpa, host, from->size};
    if (is_written) {
        chain->writable++;
        chain->writable_bytes += from->size;
    } else {
        chain->readable++;
        chain->readable_bytes += from->size;
    }
    return VQ_CHAIN;
}

static int walk(const struct virtqueue *queue, struct vq_chain *chain)
{
    const uint8_t *table = queue->table;
    uint32_t entries = queue->size, at = chain->head, is_inner = 0;
    for (uint32_t steps = 0; steps <= queue->size; steps++) { /* one more: for the descriptor of a table */
        struct descriptor from;
        int found;
        if (at >= entries)
            return broken(chain, VQ_NO_ENTRY, at, entries);
        memcpy(&from, table + sizeof from * at, sizeof from);
        __atomic_signal_fence(__ATOMIC_SEQ_CST); /* from here on only the copy counts */
        if (from.flags & FLAG_INDIRECT) {
            if (is_inner || !queue->use_indirect || from.flags & FLAG_NEXT)
                return broken(chain, VQ_INDIRECT, 0, 0);
            if (!from.size || from.size % sizeof from || from.size / sizeof from > queue->size)
                return broken(chain, VQ_TABLE_BYTES, 0, from.size);
            table = slot_bytes(queue->slots, queue->slot_count, from.gpa, from.size, 0);
            if (!table)
                return broken(chain, VQ_PLACE, from.gpa, from.size);
            entries = from.size / sizeof from;
            at = 0;
            is_inner = 1;
            continue;
        }
        if ((found = add_piece(queue, chain, &from)) != VQ_CHAIN)
            return found;
        if (!(from.flags & FLAG_NEXT))
            return VQ_CHAIN;
        at = from.next;
    }
    return broken(chain, VQ_LOOP, 0, 0);
}

/* How many heads the driver has made available; more than the queue's size if its index jumped. */
int vq_waits(struct virtqueue *queue)
{
    return queue->size ? (uint16_t)(load16(queue->available + 2) - queue->next) : 0;
}

/* The next chain into `chain`: enum vq_found. */
int vq_pop(struct virtqueue *queue, struct vq_chain *chain)
{
    int waiting = vq_waits(queue), found;
    if (!waiting)
        return VQ_NONE;
    if ((uint32_t)waiting > queue->size)
        return broken(chain, VQ_JUMP, queue->next, (uint16_t)(queue->next + waiting));
    chain->head = load16(queue->available + 4 + 2 * (queue->next & (queue->size - 1)));
    chain->readable = chain->writable = 0;
    chain->readable_bytes = chain->writable_bytes = 0;
    if ((found = walk(queue, chain)) != VQ_CHAIN)
        return found;
    chain->first_bytes = (uint32_t)chain_read(chain, 0, chain->first, VQ_FIRST_BYTES);
    queue->next++;
    return VQ_CHAIN;
}

/* ---- used buffers back, and who wants to hear of what ----------------------------------------------- */

void vq_push(struct virtqueue *queue, uint32_t head, uint32_t written)
{
    struct used entry = {head, written};
    if (!queue->size)
        return;
    memcpy(queue->used + 4 + sizeof entry * (queue->done & (queue->size - 1)), &entry, sizeof entry);
    store16(queue->used + 2, ++queue->done);
}

/* Ask to be notified of the next request; whether there is none yet. */
int vq_is_idle(struct virtqueue *queue)
{
    if (!queue->size)
        return 1;
    if (queue->use_events) {
        store16(queue->used + 4 + sizeof(struct used) * queue->size, queue->next);
        __atomic_thread_fence(__ATOMIC_SEQ_CST); /* it is seen before we look */
    }
    return !vq_waits(queue);
}

/* Whether the driver wants to hear of what was pushed since this was asked last. */
int vq_wants_interrupt(struct virtqueue *queue)
{
    uint16_t before = queue->signalled, event;
    queue->signalled = queue->done;
    if (!queue->size || before == queue->done)
        return 0;
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* the used index is seen before we look */
    if (!queue->use_events)
        return !(load16(queue->available) & NO_INTERRUPT);
    event = load16(queue->available + 4 + 2 * queue->size);
    return (uint16_t)(queue->done - event - 1) < (uint16_t)(queue->done - before);
}

/* ---- a stream of bytes ------------------------------------------------------------------------------- */

static uint64_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

/* Whether the doorbell rings in time; it is taken note of. */
static int rings(int doorbell, uint32_t patience_us)
{
    struct pollfd wait = {.fd = doorbell, .events = POLLIN};
    struct timespec patience = {patience_us / 1000000, patience_us % 1000000 * 1000};
    uint64_t count;
    if (ppoll(&wait, 1, &patience, NULL) <= 0)
        return 0;
    (void)!read(doorbell, &count, sizeof count);
    return 1;
}

/* Gather what the driver sends, used at once: a console's driver waits for each piece before it sends another.
 * VQ_NONE: that was all for now. VQ_CHAIN: `chain` is larger than the room, and the caller's to use. */
int vq_gather(struct virtqueue *queue, struct vq_chain *chain, struct vq_stream *stream)
{
    uint64_t start = now_us();
    stream->used = 0;
    for (;;) {
        int found = vq_pop(queue, chain);
        if (found == VQ_CHAIN) {
            if (chain->readable_bytes > stream->capacity - stream->used) {
                if (!stream->used)
                    return found;
                queue->next--; /* it comes again */
                return VQ_NONE;
            }
            stream->used += chain_read(chain, 0, stream->bytes + stream->used, chain->readable_bytes);
            vq_push(queue, chain->head, 0);
            if (stream->used > stream->capacity / 2)
                return VQ_NONE;
        } else if (found != VQ_NONE) {
            return found;
        } else if (vq_is_idle(queue)) {
            if (!stream->used || stream->doorbell < 0 || !rings(stream->doorbell, stream->patience_us))
                return VQ_NONE;
        }
        if (now_us() - start > stream->most_us)
            return VQ_NONE;
    }
}

/* ---- what is in a chain ------------------------------------------------------------------------------ */

/* Copy up to `size` bytes from offset `at` of what can be read; how many there were. */
uint64_t chain_read(const struct vq_chain *chain, uint64_t at, uint8_t *to, uint64_t size)
{
    uint64_t done = 0;
    for (uint32_t i = 0; i < chain->readable && done < size; i++) {
        const struct vq_piece *piece = &chain->pieces[i];
        uint64_t step;
        if (at >= piece->size) {
            at -= piece->size;
            continue;
        }
        step = piece->size - at < size - done ? piece->size - at : size - done;
        memcpy(to + done, piece->host + at, step);
        done += step;
        at = 0;
    }
    return done;
}

/* Copy up to `size` bytes to offset `at` of what can be written; how many had room. */
uint64_t chain_write(const struct vq_chain *chain, uint64_t at, const uint8_t *from, uint64_t size)
{
    uint64_t done = 0;
    for (uint32_t i = 0; i < chain->writable && done < size; i++) {
        const struct vq_piece *piece = &chain->pieces[chain->readable + i];
        uint64_t step;
        if (at >= piece->size) {
            at -= piece->size;
            continue;
        }
        step = piece->size - at < size - done ? piece->size - at : size - done;
        memcpy(piece->host + at, from + done, step);
        done += step;
        at = 0;
    }
    return done;
}

/* Up to IOV_MOST vectors for `size` bytes from offset `at` of `count` pieces: how many. */
static int vectors(const struct vq_piece *pieces, uint32_t count, uint64_t at, uint64_t size, struct iovec *out)
{
    int used = 0;
    for (uint32_t i = 0; i < count && size && used < IOV_MOST; i++) {
        uint64_t step;
        if (at >= pieces[i].size) {
            at -= pieces[i].size;
            continue;
        }
        step = pieces[i].size - at < size ? pieces[i].size - at : size;
        out[used++] = (struct iovec){pieces[i].host + at, step};
        size -= step;
        at = 0;
    }
    return used;
}

/* Move all of `size` bytes: `size`, or -errno; ENODATA where the file or the chain ends before that. */
static int64_t move(const struct vq_piece *pieces, uint32_t count, uint64_t at, uint64_t size, int fd,
                    int64_t offset, ssize_t (*step)(int, const struct iovec *, int, off_t))
{
    uint64_t done = 0;
    while (done < size) {
        struct iovec some[IOV_MOST];
        int used = vectors(pieces, count, at + done, size - done, some);
        ssize_t moved = used ? step(fd, some, used, offset + (int64_t)done) : 0;
        if (moved < 0 && errno == EINTR)
            continue;
        if (moved <= 0)
            return moved ? -errno : -ENODATA;
        done += (uint64_t)moved;
    }
    return (int64_t)done;
}

/* Fill `size` bytes from offset `at` of what can be written from the file: `size`, or -errno. */
int64_t chain_from_file(const struct vq_chain *chain, uint64_t at, uint64_t size, int fd, int64_t offset)
{
    return move(chain->pieces + chain->readable, chain->writable, at, size, fd, offset, preadv);
}

/* Put `size` bytes from offset `at` of what can be read into the file: `size`, or -errno. */
int64_t chain_to_file(const struct vq_chain *chain, uint64_t at, uint64_t size, int fd, int64_t offset)
{
    return move(chain->pieces, chain->readable, at, size, fd, offset, pwritev);
}

/* One frame into what can be written, from offset `at` on: its size, 0 at the end of a stream, or -errno. A size
 * above what there was room for: the rest of the frame is lost. */
int64_t chain_receive(const struct vq_chain *chain, uint64_t at, int fd)
{
    struct iovec some[IOV_MOST + 1];
    int used = vectors(chain->pieces + chain->readable, chain->writable, at, ~0ull, some);
    uint8_t beyond;
    ssize_t moved;
    some[used++] = (struct iovec){&beyond, 1};
    moved = readv(fd, some, used);
    return moved < 0 ? -errno : moved;
}

/* One frame out of all that can be read, from offset `at` on: its size, or -errno. */
int64_t chain_send(const struct vq_chain *chain, uint64_t at, int fd)
{
    struct iovec some[IOV_MOST];
    int used = vectors(chain->pieces, chain->readable, at, ~0ull, some);
    ssize_t moved;
    if (used == IOV_MOST)
        return -EMSGSIZE;
    moved = writev(fd, some, used);
    return moved < 0 ? -errno : moved;
}
