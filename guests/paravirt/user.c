/* The only door to the program's memory: its addresses are claims, looked up in its own page tables.
 *
 * The kernel never uses an address of the program as its own. It asks for the frame behind it, with the right
 * that it needs, and uses the frame where DIRECT shows it.
 */
#include "kernel.h"
#include "linux.h"

/* Move whole words: where ring 0 is emulated, each step of a string instruction costs the same. */
void copy(void *to, const void *from, uint64_t size)
{
    uint64_t words = size / 8, rest = size % 8;
    asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(rest) : : "memory");
}

void fill(void *to, int byte, uint64_t size)
{
    uint64_t word = 0x0101010101010101ul * (uint8_t)byte, words = size / 8, rest = size % 8;
    asm volatile("rep stosq" : "+D"(to), "+c"(words) : "a"(word) : "memory");
    asm volatile("rep stosb" : "+D"(to), "+c"(rest) : "a"(word) : "memory");
}

void *memcpy(void *to, const void *from, uint64_t size) /* the compiler calls these two by itself */
{
    copy(to, from, size);
    return to;
}

void *memset(void *to, int byte, uint64_t size)
{
    fill(to, byte, size);
    return to;
}

/* The pages found last, to read and to write: nearly always the next ones too. */
static struct {
    uint64_t page;
    char *bytes;
} found_last[2] = {{~0ul, 0}, {~0ul, 0}};

void user_forget(void)
{
    found_last[0].page = found_last[1].page = ~0ul;
}

static char *find_page(uint64_t page, int write)
{
    uint64_t needs = PRESENT | USER | (write ? WRITABLE : 0), *entry;
    if (page >= USER_END)
        return 0;
    entry = entry_of(page, 0);
    if (!entry || (*entry & needs) != needs) {
        if (area_fault(page, write ? PROT_WRITE : PROT_READ) != FAULT_OK)
            return 0;
        entry = entry_of(page, 0);
    }
    found_last[write].page = page;
    return found_last[write].bytes = direct(*entry & FRAME);
}

/* Where DIRECT shows the byte, if the program may read, or write, there; else NULL. */
static inline void *user_page(uint64_t address, int write)
{
    uint64_t page = address & ~(uint64_t)(PAGE - 1);
    char *bytes = page == found_last[write].page ? found_last[write].bytes : find_page(page, write);
    return bytes ? bytes + address % PAGE : 0;
}

void *user_bytes(uint64_t address, uint64_t *size, int write)
{
    char *first = user_page(address, write);
    uint64_t found = PAGE - address % PAGE;
    if (!first)
        return 0;
    while (found < *size && user_page(address + found, write) == first + found)
        found += PAGE;
    if (found < *size)
        *size = found;
    return first;
}

int user_read(void *to, uint64_t address, uint64_t size)
{
    for (uint64_t n = size; size; address += n, to = (char *)to + n, size -= n, n = size) {
        const void *from = size <= PAGE - address % PAGE ? user_page(address, 0) : user_bytes(address, &n, 0);
        if (!from)
            return 0;
        copy(to, from, n);
    }
    return 1;
}

int user_write(uint64_t address, const void *from, uint64_t size)
{
    for (uint64_t n = size; size; address += n, from = (const char *)from + n, size -= n, n = size) {
        void *to = size <= PAGE - address % PAGE ? user_page(address, 1) : user_bytes(address, &n, 1);
        if (!to)
            return 0;
        copy(to, from, n);
    }
    return 1;
}

int64_t user_string(char *to, uint64_t address, uint64_t size)
{
    for (uint64_t done = 0; done < size;) {
        const char *from = user_page(address + done, 0);
        uint64_t n = PAGE - (address + done) % PAGE;
        if (!from)
            return -EFAULT;
        for (; n && done < size; n--, done++)
            if (!(to[done] = *from++))
                return (int64_t)done;
    }
    return -ENAMETOOLONG;
}
