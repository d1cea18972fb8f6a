/* The floor: the least C that does what pykvm does, against which pykvm's figures are read.
 *
 *     floor run   GUEST          one run: ns inside the KVM_RUN loop, and exits
 *     floor whole GUEST COUNT    COUNT times the whole way: open, create, load, run, tear down; ns of each
 *
 * GUEST is a file made by tests/bench/floor.py: a start state and the bytes of guest memory. The
 * guest writes to one port and ends with a write to EXIT_PORT.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EXIT_PORT 0x500
#define TSS 0xfeffd000u
#define IDENTITY_MAP 0xfeffc000ull
#define CPUID_ROWS 256
#define CONSOLE_BYTES (1 << 16)

struct start {
    uint64_t memory_bytes, pieces;
    struct kvm_regs regs;
    struct kvm_sregs sregs;
};

struct piece {
    uint64_t gpa, size;
};

struct vm {
    int kvm, vm, vcpu;
    size_t run_bytes;
    struct kvm_run *run;
    uint8_t *memory;
};

static uint8_t console[CONSOLE_BYTES];

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int check(int result, const char *what)
{
    if (result < 0) {
        perror(what);
        exit(1);
    }
    return result;
}

static void load(struct vm *vm, const struct start *start)
{
    const uint8_t *at = (const uint8_t *)(start + 1);
    for (uint64_t i = 0; i < start->pieces; i++) {
        struct piece piece;
        memcpy(&piece, at, sizeof piece);
        memcpy(vm->memory + piece.gpa, at + sizeof piece, piece.size);
        at += sizeof piece + piece.size;
    }
}

static void set_cpuid(struct vm *vm)
{
    static struct {
        struct kvm_cpuid2 head;
        struct kvm_cpuid_entry2 rows[CPUID_ROWS];
    } cpuid;
    cpuid.head.nent = CPUID_ROWS;
    check(ioctl(vm->kvm, KVM_GET_SUPPORTED_CPUID, &cpuid), "KVM_GET_SUPPORTED_CPUID");
    check(ioctl(vm->vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
}

static struct vm create(const struct start *start)
{
    struct vm vm;
    uint64_t identity = IDENTITY_MAP;
    struct kvm_userspace_memory_region region = {.memory_size = start->memory_bytes};
    struct kvm_sregs sregs;
    vm.kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    check(ioctl(vm.kvm, KVM_GET_API_VERSION, 0), "KVM_GET_API_VERSION");
    vm.run_bytes = (size_t)check(ioctl(vm.kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
    vm.memory = mmap(NULL, start->memory_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    vm.vm = check(ioctl(vm.kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    region.userspace_addr = (uintptr_t)vm.memory;
    check(ioctl(vm.vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    check(ioctl(vm.vm, KVM_SET_TSS_ADDR, TSS), "KVM_SET_TSS_ADDR");
    check(ioctl(vm.vm, KVM_SET_IDENTITY_MAP_ADDR, &identity), "KVM_SET_IDENTITY_MAP_ADDR");
    vm.vcpu = check(ioctl(vm.vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    vm.run = mmap(NULL, vm.run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vm.vcpu, 0);
    set_cpuid(&vm);
    load(&vm, start);
    check(ioctl(vm.vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    check(ioctl(vm.vcpu, KVM_SET_SREGS, &start->sregs), "KVM_SET_SREGS");
    check(ioctl(vm.vcpu, KVM_SET_REGS, &start->regs), "KVM_SET_REGS");
    return vm;
}

static uint64_t run(struct vm *vm)
{
    uint64_t exits = 0, at = 0;
    for (;;) {
        check(ioctl(vm->vcpu, KVM_RUN, 0), "KVM_RUN");
        exits++;
        if (vm->run->exit_reason != KVM_EXIT_IO) {
            fprintf(stderr, "floor: exit reason %u\n", vm->run->exit_reason);
            exit(1);
        }
        if (vm->run->io.port == EXIT_PORT)
            return exits;
        console[at++ % CONSOLE_BYTES] = *((uint8_t *)vm->run + vm->run->io.data_offset);
    }
}

static void destroy(struct vm *vm, const struct start *start)
{
    munmap(vm->run, vm->run_bytes);
    close(vm->vcpu);
    close(vm->vm);
    munmap(vm->memory, start->memory_bytes);
    close(vm->kvm);
}

static struct start *read_guest(const char *path)
{
    struct stat about;
    int fd = check(open(path, O_RDONLY), path);
    check(fstat(fd, &about), path);
    struct start *start = malloc((size_t)about.st_size);
    if (!start || read(fd, start, (size_t)about.st_size) != about.st_size)
        check(-1, path);
    close(fd);
    return start;
}

int main(int count, char **arguments)
{
    if (count < 3)
        return 2;
    struct start *start = read_guest(arguments[2]);
    int times = count > 3 ? atoi(arguments[3]) : 1, whole = !strcmp(arguments[1], "whole");
    for (int i = 0; i < times; i++) {
        uint64_t began = now_ns(), ran, exits;
        struct vm vm = create(start);
        ran = now_ns();
        exits = run(&vm);
        ran = now_ns() - ran;
        destroy(&vm, start);
        printf("%llu %llu\n", (unsigned long long)(whole ? now_ns() - began : ran), (unsigned long long)exits);
    }
    return 0;
}
