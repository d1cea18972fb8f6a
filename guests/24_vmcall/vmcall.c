/* The CPU's own instruction for a hypercall: VMCALL on Intel's, VMMCALL on AMD's.
 *
 * It always leaves the guest, but KVM answers it in the kernel: pykvm sees no exit. The numbers are KVM's
 * own, and so is its "no such call", -1000. Of the wrong vendor's instruction KVM makes the right one.
 */
#include "console.h"
#include "cpu.h"

#define NO_SUCH_CALL 0x1234

static long vmcall(long number)
{
    asm volatile("vmcall" : "+a"(number) : : "memory");
    return number;
}

static long vmmcall(long number)
{
    asm volatile("vmmcall" : "+a"(number) : : "memory");
    return number;
}

int main(void)
{
    struct cpuid kvm = cpuid(0x40000000, 0); /* who the hypervisor is, in twelve letters */
    char name[13] = {0};
    *(uint32_t *)&name[0] = kvm.ebx;
    *(uint32_t *)&name[4] = kvm.ecx;
    *(uint32_t *)&name[8] = kvm.edx;
    printf("hypervisor: %s\n", name);
    printf("VMCALL: %ld\n", vmcall(NO_SUCH_CALL));
    printf("VMMCALL: %ld\n", vmmcall(NO_SUCH_CALL));
    return 0;
}
