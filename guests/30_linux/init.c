/* Process 1 of a Linux system, and its only one: it says what it runs on, and switches off. */
enum { SYS_WRITE = 1, SYS_UNAME = 63, SYS_REBOOT = 169, FIELD = 65 };

static long ask(long number, long a, long b, long c)
{
    asm volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return number;
}

static void print(const char *text)
{
    long length = 0;
    while (text[length])
        length++;
    ask(SYS_WRITE, 1, (long)text, length);
}

void begin(void)
{
    static char names[6][FIELD]; /* struct utsname: system, node, release, version, machine, domain */
    ask(SYS_UNAME, (long)names, 0, 0);
    print("process 1 runs on ");
    print(names[0]);
    print(" ");
    print(names[2]);
    print("\n");
    ask(SYS_REBOOT, 0xfee1dead, 672274793, 0x4321fedc); /* LINUX_REBOOT_CMD_POWER_OFF */
}

asm(".globl _start\n_start: and $-16, %rsp\n call begin\n ud2");
