/*
 * A 32-bit program without a C library: system calls by int 80h, 32-bit
 * arithmetic with carries, SSE2, x87, string instructions, segment registers
 * of compatibility mode, a thread's segment whose offsets wrap, calls through
 * pointers, a signal. Each runs often enough to be translated. Prints "32-bit
 * ok" and exits with 32.
 */
typedef unsigned int u32;
typedef unsigned long long u64;

static int call(int number, int a, int b, int c) {
    int result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

enum {
    SYS_EXIT = 1,
    SYS_WRITE = 4,
    SYS_GETPID = 20,
    SYS_KILL = 37,
    SYS_SIGNAL = 48,
    SYS_SET_THREAD_AREA = 243,
};

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

/* As a C library has it: thread-local variables below the segment's base, by offsets that wrap. */
static int check_thread_segment(void) {
    static u32 block[16];
    struct {
        u32 entry, base, limit, flags;
    } area = {(u32)-1, (u32)&block[8], 0xfffff, 0x51}; /* 32 bits, limit in pages, usable */
    u32 value = 0, sum = 0, old;
    if (call(SYS_SET_THREAD_AREA, (int)&area, 0, 0) != 0)
        return 0;
    __asm__ volatile("mov %%gs, %0\n\tmov %1, %%gs" : "=&r"(old) : "r"(area.entry << 3 | 3));
    for (u32 i = 0; i < 50000; i++) {
        int below = -4 - 4 * (int)(i % 8), above = 4 * (int)(i % 8);
        __asm__ volatile("mov %1, %%gs:(%2)\n\tmov %%gs:(%2), %0\n\tadd %1, %%gs:(%3)\n\t"
                         "add %%gs:-4, %0"
                         : "=&r"(value)
                         : "r"(i), "r"(below), "r"(above)
                         : "memory");
        sum += value;
    }
    __asm__ volatile("mov %0, %%gs" : : "r"(old));
    for (u32 i = 0; i < 16; i++)
        sum = sum * 31 + block[i];
    return sum == 0x82a0a33cu;
}

static double power(double base, u32 n) {
    double result = 1;
    for (; n != 0; n >>= 1, base *= base)
        if (n & 1)
            result *= base;
    return result;
}

/* Rounding by the control word; the registers live through system calls. */
static int check_x87(void) {
    volatile double third = 1.0 / 3;
    int up = 0, nearest = 0;
    for (u32 i = 1; i <= 20000; i++) {
        unsigned short old, changed;
        int a, b;
        double x = power(third, i % 5) * i;
        __asm__ volatile("fnstcw %0" : "=m"(old));
        changed = (unsigned short)(old | 0x0800); /* up */
        __asm__ volatile("fldcw %3\n\tfldl %4\n\tfistpl %0\n\tfldcw %2\n\tfldl %4\n\tfistpl %1"
                         : "=m"(a), "=m"(b)
                         : "m"(old), "m"(changed), "m"(x));
        up += a, nearest += b;
        if (i % 4096 == 0)
            call(SYS_GETPID, 0, 0, 0);
    }
    return up == 59768026 && nearest == 59761011;
}

static u32 add(u32 a, u32 b) {
    return a + b;
}

static u32 mix(u32 a, u32 b) {
    return (a << 7 | a >> 25) ^ b;
}

static u32 depth(u32 n, u32 (*f)(u32, u32)) {
    return n == 0 ? 1 : f(depth(n - 1, f), n);
}

static int check_calls(void) {
    u32 (*volatile functions[2])(u32, u32) = {add, mix};
    u32 sum = 0;
    for (u32 i = 0; i < 3000; i++)
        sum = sum * 33 + depth(i % 300, functions[i % 3 == 0]);
    return sum == 0x2030152cu;
}

static int check_signal(void) {
    call(SYS_SIGNAL, 10, (int)handler, 0);
    call(SYS_KILL, call(SYS_GETPID, 0, 0, 0), 10, 0);
    return signalled == 10;
}

void _start(void);
__attribute__((force_align_arg_pointer)) void _start(void) {
    int ok = check_arithmetic() && check_strings() && check_vectors() && check_segments() &&
             check_thread_segment() && check_x87() && check_calls() && check_signal();
    if (ok)
        call(SYS_WRITE, 1, (int)"32-bit ok\n", 10);
    call(SYS_EXIT, ok ? 32 : 1, 0, 0);
}
