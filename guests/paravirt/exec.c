/* The program: an ELF file into areas, and the stack that its first instruction finds (System V ABI, 3.4.1).
 *
 * pykvm has checked the file (a static ELF64 program, its segments inside the file and the lower half), so
 * that its user gets a good message; what is checked again here keeps the kernel whole.
 */
#include "cpu.h"
#include "kernel.h"
#include "linux.h"

#define PIE_BASE 0x555555400000ul /* aligned for every segment that linkers make */
#define STACK_BYTES (8ul << 20)
#define HWCAP2_FSGSBASE 2u
#define AUXV_PAIRS 18

uint64_t exec_base;

static unsigned prot_of(unsigned flags)
{
    return (flags & PF_R ? PROT_READ : 0) | (flags & PF_W ? PROT_WRITE : 0) | (flags & PF_X ? PROT_EXEC : 0);
}

static int load_segment(const Elf64_Phdr *segment)
{
    uint64_t before = segment->p_vaddr % PAGE, start = exec_base + segment->p_vaddr - before;
    uint64_t end = (exec_base + segment->p_vaddr + segment->p_memsz + PAGE - 1) & ~(uint64_t)(PAGE - 1);
    uint64_t file_bytes = segment->p_filesz ? before + segment->p_filesz : 0;
    unsigned flags = segment->p_memsz > segment->p_filesz ? AREA_COPY : 0; /* zeros share its last page */
    uint64_t file = file_bytes ? boot->program + segment->p_offset - before : 0;
    if (segment->p_offset + segment->p_filesz > boot->program_bytes || end > USER_END || start >= end)
        return -ENOEXEC;
    return area_map(start, end, prot_of(segment->p_flags), flags, file, file_bytes);
}

/* ---- the first stack, from its end downwards */

struct stack {
    uint64_t at;
    int failed;
};

static void push_bytes(struct stack *stack, const void *from, uint64_t bytes)
{
    stack->at -= bytes;
    stack->failed |= !user_write(stack->at, from, bytes);
}

/* The pointers to `count` strings, `offset` has where each is behind `strings`, and a NULL. */
static void push_pointers(struct stack *stack, const uint32_t *offset, uint64_t count, uint64_t strings)
{
    uint64_t words[64], room = 63;
    words[63] = 0;
    while (count--) {
        words[--room] = strings + offset[count];
        if (!room) {
            push_bytes(stack, words, sizeof words);
            room = 64;
        }
    }
    push_bytes(stack, words + room, (64 - room) * sizeof *words);
}

static void push_auxv(struct stack *stack, const Elf64_Ehdr *elf, uint64_t headers, uint64_t name, uint64_t random)
{
    uint32_t has_fsgsbase = cpuid(0, 0).eax >= 7 ? cpuid(7, 0).ebx & 1 : 0;
    const uint64_t auxv[AUXV_PAIRS][2] = {
        {AT_PHDR, headers},
        {AT_PHENT, elf->e_phentsize},
        {AT_PHNUM, elf->e_phnum},
        {AT_PAGESZ, PAGE},
        {AT_BASE, 0},
        {AT_FLAGS, 0},
        {AT_ENTRY, exec_base + elf->e_entry},
        {AT_HWCAP, cpuid(1, 0).edx},
        {AT_HWCAP2, has_fsgsbase ? HWCAP2_FSGSBASE : 0},
        {AT_CLKTCK, 100},
        {AT_UID, 0},
        {AT_EUID, 0},
        {AT_GID, 0},
        {AT_EGID, 0},
        {AT_SECURE, 0},
        {AT_RANDOM, random},
        {AT_EXECFN, name},
        {AT_NULL, 0},
    };
    push_bytes(stack, auxv, sizeof auxv);
}

static uint64_t build_stack(const Elf64_Ehdr *elf, uint64_t headers)
{
    struct stack stack = {USER_END - 8, 0};
    const uint32_t *offset = direct(boot->string_at);
    uint64_t strings, random, argc = boot->argc, words = argc + 1 + boot->envc + 1 + 1;
    push_bytes(&stack, direct(boot->strings), boot->strings_bytes);
    strings = stack.at;
    stack.at &= ~15ul;
    push_bytes(&stack, boot->random, 16);
    random = stack.at;
    stack.at -= words % 2 * 8; /* RSP is a multiple of 16 at the entry */
    push_auxv(&stack, elf, headers, strings, random);
    push_pointers(&stack, offset + argc, boot->envc, strings);
    push_pointers(&stack, offset, argc, strings);
    push_bytes(&stack, &argc, sizeof argc);
    return stack.failed ? 0 : stack.at;
}

int exec_load(struct start *start)
{
    const Elf64_Ehdr *elf = direct(boot->program);
    const Elf64_Phdr *segment = direct(boot->program + elf->e_phoff);
    uint64_t headers = 0, end = 0;
    unsigned stack = PROT_READ | PROT_WRITE;
    exec_base = elf->e_type == ET_DYN ? PIE_BASE : 0;
    for (unsigned i = 0; i < elf->e_phnum; i++, segment++) {
        if (segment->p_type == PT_PHDR)
            headers = exec_base + segment->p_vaddr;
        if (segment->p_type == PT_GNU_STACK && segment->p_flags & PF_X)
            stack |= PROT_EXEC;
        if (segment->p_type != PT_LOAD || !segment->p_memsz)
            continue;
        if (load_segment(segment))
            return -ENOEXEC;
        if (!headers && elf->e_phoff >= segment->p_offset && elf->e_phoff < segment->p_offset + segment->p_filesz)
            headers = exec_base + segment->p_vaddr + elf->e_phoff - segment->p_offset;
        if (exec_base + segment->p_vaddr + segment->p_memsz > end)
            end = exec_base + segment->p_vaddr + segment->p_memsz;
    }
    heap_init(end);
    if (area_map(USER_END - STACK_BYTES, USER_END, stack, AREA_STACK, 0, 0))
        return -ENOMEM;
    start->rip = exec_base + elf->e_entry;
    start->rsp = build_stack(elf, headers);
    return start->rsp ? 0 : -ENOMEM;
}
