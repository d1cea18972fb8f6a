/* A program in a Linux guest that connects to port 80 of the host by vsock, says "from the guest", and prints
 * what it is answered until the end. It uses no library. */
enum { READ = 0, WRITE = 1, SOCKET = 41, CONNECT = 42, EXIT = 60 };
enum { AF_VSOCK = 40, SOCK_STREAM = 1, HOST = 2 };

static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

__attribute__((used)) static void start(void)
{
    struct { unsigned short family, reserved; unsigned int port, cid; unsigned char rest[4]; } address = {
        AF_VSOCK, 0, 80, HOST, {0}};
    static const char text[] = "from the guest";
    char answer[256];
    long fd = call(SOCKET, AF_VSOCK, SOCK_STREAM, 0), size, failed;
    failed = fd < 0 ? fd : call(CONNECT, fd, (long)&address, sizeof address);
    if (failed < 0)
        call(EXIT, -failed, 0, 0);
    call(WRITE, fd, (long)text, sizeof text - 1);
    while ((size = call(READ, fd, (long)answer, sizeof answer)) > 0)
        call(WRITE, 1, (long)answer, size);
    call(EXIT, 0, 0, 0);
    for (;;)
        ;
}

__attribute__((naked, used)) void _start(void)
{
    __asm__("and $-16, %rsp; call start");
}
