/* The virtqueue's C with drivers that mean harm: wild descriptors, tables, indices, and rings that change meanwhile.
 *
 *     virtqueue_harness hostile|changing SEED SECONDS|COUNTn
 *
 * Compiled together with it and with sanitizers, by test_virtqueue_sanitized.py. Guest memory lies in allocations of
 * exactly its size, so that a step beside it is seen. COUNT is so many queues, "600s" so many seconds of them. Prints
 * how many chains were looked at, or what it found wrong, and ends with status 1. */
#define _GNU_SOURCE
#include <linux/kvm.h>

#include "guest_bytes.c"
#include "virtqueue.c"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define LOW_BYTES 0x10000u
#define HIGH_GPA 0x100000u
#define HIGH_BYTES 0x3000u
#define ROM_BYTES 0x1000u
#define TABLE 0x0u
#define AVAILABLE 0x5000u
#define USED 0x8000u

#define CHECK(condition, ...)                                       \
    do {                                                            \
        if (!(condition)) {                                         \
            fprintf(stderr, "line %d: %s: ", __LINE__, #condition); \
            fprintf(stderr, __VA_ARGS__);                           \
            fputc('\n', stderr);                                    \
            exit(1);                                                \
        }                                                           \
    } while (0)

static struct guest_slot slots[3];
static int is_done, file;
static _Thread_local uint64_t dice = 1;
static uint64_t chains, refused;

static uint64_t roll(void)
{
    dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17; /* xorshift64 */
    return dice;
}

static uint64_t below(uint64_t limit)
{
    return roll() % limit;
}

static uint64_t hostile_gpa(void)
{
    static const uint64_t edges[] = {0, LOW_BYTES, HIGH_GPA, HIGH_GPA + HIGH_BYTES, 1ull << 32, ~0ull, TABLE, USED};
    uint64_t edge = edges[below(sizeof edges / sizeof *edges)];
    return below(4) ? below(LOW_BYTES) : edge + below(9) - 4;
}

static uint32_t hostile_size(void)
{
    static const uint32_t edges[] = {0, 1, 16, 4096, LOW_BYTES, 0xffffffffu, 0x80000000u};
    return below(3) ? (uint32_t)below(200) : edges[below(sizeof edges / sizeof *edges)];
}

static void scribble(uint32_t size)
{
    struct descriptor from = {hostile_gpa(), hostile_size(), (uint16_t)(below(4) ? below(4) : below(65536)),
                              (uint16_t)(below(5) ? below(size) : below(65536))};
    uint32_t where = (uint32_t)(below(3) ? below(size) * sizeof from : below(LOW_BYTES - sizeof from));
    memcpy(slots[0].host + where, &from, sizeof from);
    if (!below(4))
        store16(slots[0].host + AVAILABLE + 4 + 2 * below(size), (uint16_t)(below(4) ? below(size) : below(65536)));
    if (!below(8))
        store16(slots[0].host + AVAILABLE + 2, (uint16_t)(load16(slots[0].host + AVAILABLE + 2) + below(4)));
    if (!below(256))
        store16(slots[0].host + AVAILABLE + 2, (uint16_t)roll());
}

static void check(const struct virtqueue *queue, const struct vq_chain *chain)
{
    uint64_t readable = 0, writable = 0;
    uint32_t count = chain->readable + chain->writable;
    CHECK(count && count <= queue->size && count <= chain->capacity, "%u pieces", count);
    for (uint32_t i = 0; i < count; i++) {
        const struct vq_piece *piece = &chain->pieces[i];
        const struct guest_slot *slot = slots;
        while (slot < slots + 3 && !(piece->host >= slot->host && piece->host < slot->host + slot->size))
            slot++;
        CHECK(slot < slots + 3, "piece %u is nowhere", i);
        CHECK(piece->size && piece->size <= slot->size - (uint64_t)(piece->host - slot->host), "piece %u", i);
        CHECK(piece->gpa - slot->gpa == (uint64_t)(piece->host - slot->host), "piece %u is elsewhere", i);
        CHECK(i < chain->readable || !slot->read_only, "piece %u would be written in ROM", i);
        *(i < chain->readable ? &readable : &writable) += piece->size;
    }
    CHECK(readable == chain->readable_bytes && writable == chain->writable_bytes, "sums");
}

/* Everything a device may do with a chain. */
static void use(struct virtqueue *queue, struct vq_chain *chain)
{
    static uint8_t bytes[LOW_BYTES * 2];
    uint64_t at = below(300), size = below(sizeof bytes);
    uint64_t read = chain->readable_bytes > at ? chain->readable_bytes - at : 0;
    uint64_t room = chain->writable_bytes > at ? chain->writable_bytes - at : 0;
    uint64_t asked = below(5000);
    int64_t moved;
    CHECK(chain_read(chain, at, bytes, size) == (read < size ? read : size), "chain_read");
    CHECK(chain_write(chain, at, bytes, size) == (room < size ? room : size), "chain_write");
    CHECK(chain->first_bytes <= VQ_FIRST_BYTES, "first");
    moved = chain_from_file(chain, at, asked, file, 0);
    CHECK(moved == (asked <= room ? (int64_t)asked : -ENODATA), "from file %lld", (long long)moved);
    moved = chain_to_file(chain, at, asked, file, 0);
    CHECK(moved == (asked <= read ? (int64_t)asked : -ENODATA), "to file %lld", (long long)moved);
    vq_push(queue, chain->head, (uint32_t)below(100));
}

static void *change(void *size)
{
    dice = (uint64_t)(uintptr_t)size * 77777 + 1;
    while (!__atomic_load_n(&is_done, __ATOMIC_RELAXED))
        scribble(*(uint32_t *)size);
    return NULL;
}

static void one_queue(struct vq_chain *chain, uint32_t steps)
{
    struct virtqueue queue = {.slots = slots, .slot_count = 3, .size = 1u << below(9)};
    queue.table = slots[0].host + TABLE;
    queue.available = slots[0].host + AVAILABLE;
    queue.used = slots[0].host + USED;
    queue.use_indirect = below(2);
    queue.use_events = below(2);
    chain->capacity = below(4) ? 256 : queue.size;
    store16(slots[0].host + AVAILABLE + 2, 0);
    for (uint32_t step = 0; step < steps; step++) {
        int found, most = 300;
        for (int i = 0; i < 6; i++)
            scribble(queue.size);
        if (!below(4)) {
            static uint8_t bytes[512];
            struct vq_stream stream = {bytes, below(2) ? sizeof bytes : below(64), 0, -1, 0, 1000};
            found = vq_gather(&queue, chain, &stream);
            CHECK(stream.used <= stream.capacity, "%llu gathered", (unsigned long long)stream.used);
            if (found == VQ_CHAIN) {
                check(&queue, chain);
                use(&queue, chain);
            }
        }
        while (most-- && (found = vq_pop(&queue, chain)) == VQ_CHAIN) {
            check(&queue, chain);
            use(&queue, chain);
            chains++;
        }
        CHECK(found >= VQ_NONE && found <= VQ_LOOP, "found %d", found);
        if (found > VQ_CHAIN) { /* the device would wait for a reset */
            refused++;
            queue.next = load16(slots[0].host + AVAILABLE + 2);
        }
        vq_is_idle(&queue);
        vq_wants_interrupt(&queue);
    }
}

int main(int count, char **words)
{
    static uint8_t zeros[8192];
    int is_changing = count == 4 && !strcmp(words[1], "changing");
    long wanted = count == 4 ? atol(words[3]) : 0, done = 0;
    int is_timed = count == 4 && words[3][strlen(words[3]) - 1] == 's';
    time_t end = time(NULL) + wanted;
    struct vq_chain *chain = calloc(1, sizeof *chain + 256 * sizeof *chain->pieces);
    pthread_t other;
    uint32_t size = 256;
    CHECK(count == 4, "see the first lines of this file");
    dice = (uint64_t)atol(words[2]) * 0x9e3779b97f4a7c15ull + 1;
    slots[0] = (struct guest_slot){0, LOW_BYTES, calloc(1, LOW_BYTES), 0};
    slots[1] = (struct guest_slot){LOW_BYTES, ROM_BYTES, calloc(1, ROM_BYTES), 1};
    slots[2] = (struct guest_slot){HIGH_GPA, HIGH_BYTES, calloc(1, HIGH_BYTES), 0};
    file = memfd_create("file", 0);
    CHECK(file >= 0 && write(file, zeros, sizeof zeros) == sizeof zeros, "no file");
    if (is_changing)
        pthread_create(&other, NULL, change, &size);
    for (; is_timed ? time(NULL) < end : done < wanted; done++)
        one_queue(chain, 50);
    __atomic_store_n(&is_done, 1, __ATOMIC_RELAXED);
    if (is_changing)
        pthread_join(other, NULL);
    printf("%ld queues, %llu chains served, %llu refused\n", done, (unsigned long long)chains, (unsigned long long)refused);
    for (int i = 0; i < 3; i++)
        free(slots[i].host);
    free(chain);
    return 0;
}
