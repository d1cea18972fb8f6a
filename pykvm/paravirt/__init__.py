"""Static Linux programs in a guest: the host's half of the paravirtual kernel in guests/paravirt.

::

    program   checks the ELF file, its arguments and environment
    files     the read-only file set
    boot_info puts kernel, program and files into guest memory (guests/include/paravirt_boot.h)
    guest     Paravirt: what the kernel asks for beyond the common hypercalls, while it runs
    syscall_ring   its records of system calls: SyscallRing, SyscallRecord
    fault     why a program was killed

Machine.load_program() is the way in.
"""
