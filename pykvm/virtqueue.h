/* A split virtqueue, device side (virtio 1.2, section 2.7). Everything that the driver wrote is a claim. */
#ifndef PYKVM_VIRTQUEUE_H
#define PYKVM_VIRTQUEUE_H

#include <stdint.h>

#include "vcpu_run.h"

#define VQ_MOST 1024       /* entries of a queue */
#define VQ_FIRST_BYTES 64  /* of what a chain has to read: longer than any device's header */

/* What vq_pop() found. Behind VQ_CHAIN stand the broken rules; chain->where and ->what say more. */
enum vq_found {
    VQ_NONE = 0,
    VQ_CHAIN = 1,
    VQ_JUMP = 2,        /* the available index went from `where` to `what` */
    VQ_NO_ENTRY = 3,    /* descriptor `where` of `what` */
    VQ_INDIRECT = 4,    /* an indirect descriptor where none may be */
    VQ_TABLE_BYTES = 5, /* an indirect table of `what` bytes */
    VQ_PLACE = 6,       /* gpa `where` with `what` bytes is not memory, or not memory to write */
    VQ_LENGTH = 7,      /* a buffer of `where` bytes, `what` so far */
    VQ_ORDER = 8,       /* a buffer to read behind one to write */
    VQ_LOOP = 9,        /* more buffers than the queue has entries */
};

struct vq_piece {
    uint64_t gpa;
    uint8_t *host;
    uint64_t size;
};

/* One request: pieces to read and, behind them, pieces to write. */
struct vq_chain {
    uint32_t head;
    uint32_t readable, writable; /* how many pieces */
    uint32_t first_bytes;        /* how much of `first` is there */
    uint64_t readable_bytes, writable_bytes;
    uint64_t where, what;
    uint8_t first[VQ_FIRST_BYTES];
    uint32_t capacity;
    uint32_t reserved;
    struct vq_piece pieces[];
};

struct virtqueue {
    const struct guest_slot *slots;
    uint32_t slot_count;
    uint32_t size; /* a power of two up to VQ_MOST; 0: not ready */
    const uint8_t *table, *available;
    uint8_t *used;
    uint32_t use_indirect, use_events;
    uint16_t next;      /* of the available ring */
    uint16_t done;      /* of the used ring */
    uint16_t signalled; /* `done` at the last interrupt that was asked about */
};

/* Bytes that a driver sends, gathered for as long as more come soon: vq_gather(). */
struct vq_stream {
    uint8_t *bytes;
    uint64_t capacity, used;
    int32_t doorbell;      /* the eventfd that tells of more, or -1: do not wait */
    uint32_t patience_us;  /* how long to wait for more */
    uint32_t most_us;      /* how long in all */
};

int vq_pop(struct virtqueue *queue, struct vq_chain *chain);
int vq_waits(struct virtqueue *queue);
int vq_gather(struct virtqueue *queue, struct vq_chain *chain, struct vq_stream *stream);
void vq_push(struct virtqueue *queue, uint32_t head, uint32_t written);
int vq_is_idle(struct virtqueue *queue);
int vq_wants_interrupt(struct virtqueue *queue);
uint64_t chain_read(const struct vq_chain *chain, uint64_t at, uint8_t *to, uint64_t size);
uint64_t chain_write(const struct vq_chain *chain, uint64_t at, const uint8_t *from, uint64_t size);
int64_t chain_from_file(const struct vq_chain *chain, uint64_t at, uint64_t size, int fd, int64_t offset);
int64_t chain_to_file(const struct vq_chain *chain, uint64_t at, uint64_t size, int fd, int64_t offset);
int64_t chain_receive(const struct vq_chain *chain, uint64_t at, int fd);
int64_t chain_send(const struct vq_chain *chain, uint64_t at, int fd);

#endif
