/*
 * A 32-bit program without a C library: system calls by int 80h, 32-bit
 * arithmetic with carries, SSE2, string instructions, segment registers of
 * compatibility mode, a signal. Prints "32-bit ok" and exits with 32.
 */
typedef unsigned int u32;
typedef unsigned long long u64;

static int call(int number, int a, int b, int c) {
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

enum { SYS_EXIT = 1, SYS_WRITE = 4, SYS_GETPID = 20, SYS_KILL = 37, SYS_SIGNAL = 48 };

static volatile int signalled;

static void handler(int number) {
    signalled = number;
}

static int check_arithmetic(void) {
    volatile u64 a = 0xfedcba9876543210ull, b = 0x123456789abcdef1ull;
    u64 product = a * b;
    u32 sum = 0;
    for (u32 i = 0; i < 100000; i++)
        sum = (sum << 5 | sum >> 27) ^ (i * 2654435761u);
    return product == 0x224a4396cc6d0110ull && sum == 0x87ed03b7u;
}

static int check_strings(void) {
    char from[300], to[300];
    for (int i = 0; i < 300; i++)
        from[i] = (char)(i * 7), to[i] = 0;
    char *s = from, *d = to;
    int n = 300;
    __asm__ volatile("rep movsb" : "+S"(s), "+D"(d), "+c"(n) : : "memory");
    for (int i = 0; i < 300; i++)
        if (to[i] != (char)(i * 7))
            return 0;
    return n == 0 && s == from + 300;
}

static int check_vectors(void) {
    u32 a[4] __attribute__((aligned(16))) = {1, 2, 3, 4}, b[4] __attribute__((aligned(16)));
    __asm__ volatile("movdqa %1, %%xmm0\n\tpaddd %%xmm0, %%xmm0\n\tmovdqa %%xmm0, %0"
                     : "=m"(b)
                     : "m"(a)
                     : "xmm0");
    return b[0] == 2 && b[1] == 4 && b[2] == 6 && b[3] == 8;
}

static int check_segments(void) {
    u32 cs, ds;
    __asm__("mov %%cs, %0\n\tmov %%ds, %1" : "=r"(cs), "=r"(ds));
    return (cs & 3) == 3 && (ds & 3) == 3;
}

static int check_signal(void) {
    call(SYS_SIGNAL, 10, (int)handler, 0);
    call(SYS_KILL, call(SYS_GETPID, 0, 0, 0), 10, 0);
    return signalled == 10;
}

void _start(void);
__attribute__((force_align_arg_pointer)) void _start(void) {
    int ok = check_arithmetic() && check_strings() && check_vectors() && check_segments() &&
             check_signal();
    if (ok)
        call(SYS_WRITE, 1, (int)"32-bit ok\n", 10);
    call(SYS_EXIT, ok ? 32 : 1, 0, 0);
}
