/*
 * What cc1 compiles as a benchmark: no headers, so that it is the same text everywhere; one set of
 * routines, instantiated for many types of different shape.
 */
typedef unsigned long size;

#define JOIN2(a, b) a##b
#define JOIN(a, b)  JOIN2(a, b)

#define ROUTINES(NAME, TYPE, MUL)                                                                  \
    struct JOIN(NAME, _tree) {                                                                     \
        struct JOIN(NAME, _tree) * left, *right;                                                   \
        TYPE key;                                                                                  \
        int priority;                                                                              \
    };                                                                                             \
    static struct JOIN(NAME, _tree) * JOIN(NAME, _rotate)(struct JOIN(NAME, _tree) * t) {          \
        struct JOIN(NAME, _tree) *l = t->left, *r = t->right;                                      \
        if (l && l->priority > t->priority) {                                                      \
            t->left = l->right;                                                                    \
            l->right = t;                                                                          \
            return l;                                                                              \
        }                                                                                          \
        if (r && r->priority > t->priority) {                                                      \
            t->right = r->left;                                                                    \
            r->left = t;                                                                           \
            return r;                                                                              \
        }                                                                                          \
        return t;                                                                                  \
    }                                                                                              \
    struct JOIN(NAME, _tree) *                                                                     \
        JOIN(NAME, _insert)(struct JOIN(NAME, _tree) * t, struct JOIN(NAME, _tree) * n) {          \
        if (!t)                                                                                    \
            return n;                                                                              \
        if (n->key < t->key)                                                                       \
            t->left = JOIN(NAME, _insert)(t->left, n);                                             \
        else                                                                                       \
            t->right = JOIN(NAME, _insert)(t->right, n);                                           \
        return JOIN(NAME, _rotate)(t);                                                             \
    }                                                                                              \
    void JOIN(NAME, _sort)(TYPE * a, long n) {                                                     \
        long i = 0, j = n - 1;                                                                     \
        TYPE pivot, swap;                                                                          \
        if (n < 12) {                                                                              \
            for (i = 1; i < n; i++) {                                                              \
                swap = a[i];                                                                       \
                for (j = i; j > 0 && a[j - 1] > swap; j--)                                         \
                    a[j] = a[j - 1];                                                               \
                a[j] = swap;                                                                       \
            }                                                                                      \
            return;                                                                                \
        }                                                                                          \
        pivot = a[n / 2];                                                                          \
        while (i <= j) {                                                                           \
            while (a[i] < pivot)                                                                   \
                i++;                                                                               \
            while (a[j] > pivot)                                                                   \
                j--;                                                                               \
            if (i <= j) {                                                                          \
                swap = a[i];                                                                       \
                a[i++] = a[j];                                                                     \
                a[j--] = swap;                                                                     \
            }                                                                                      \
        }                                                                                          \
        JOIN(NAME, _sort)(a, j + 1);                                                               \
        JOIN(NAME, _sort)(a + i, n - i);                                                           \
    }                                                                                              \
    TYPE JOIN(NAME, _mix)(const TYPE *a, const TYPE *b, TYPE *c, long n) {                         \
        TYPE total = 0;                                                                            \
        for (long i = 0; i < n; i++) {                                                             \
            TYPE x = a[i] * (TYPE)(MUL) + b[n - 1 - i];                                            \
            switch ((int)(i * 7 % 11)) {                                                           \
            case 0: x += a[0]; break;                                                              \
            case 1: x -= b[i]; break;                                                              \
            case 3: x = x > a[i] ? x : a[i]; break;                                                \
            case 4: x *= (TYPE)3; break;                                                           \
            case 7: x += (TYPE)(i & 15); break;                                                    \
            case 9: x = (TYPE)(x / (TYPE)7) + (TYPE)1; break;                                      \
            default: x += c[i]; break;                                                             \
            }                                                                                      \
            c[i] = x;                                                                              \
            total += x;                                                                            \
        }                                                                                          \
        return total;                                                                              \
    }                                                                                              \
    long JOIN(NAME, _parse)(const char *text, TYPE *out, long room) {                              \
        long n = 0;                                                                                \
        while (*text && n < room) {                                                                \
            TYPE value = 0;                                                                        \
            int sign = 1, seen = 0;                                                                \
            while (*text == ' ' || *text == '\t' || *text == ',')                                  \
                text++;                                                                            \
            if (*text == '-') {                                                                    \
                sign = -1;                                                                         \
                text++;                                                                            \
            }                                                                                      \
            for (; *text >= '0' && *text <= '9'; text++, seen++)                                   \
                value = value * (TYPE)10 + (TYPE)(*text - '0');                                    \
            if (!seen)                                                                             \
                return -1;                                                                         \
            out[n++] = sign < 0 ? (TYPE)0 - value : value;                                         \
        }                                                                                          \
        return n;                                                                                  \
    }                                                                                              \
    size JOIN(NAME, _hash)(const TYPE *a, size n, size *table, size mask) {                        \
        size found = 0;                                                                            \
        for (size i = 0; i < n; i++) {                                                             \
            size h = (size)a[i] * 0x9e3779b97f4a7c15ul;                                            \
            h ^= h >> 29;                                                                          \
            for (size probe = 0; probe < 8; probe++) {                                             \
                size *slot = &table[(h + probe * (probe + 1) / 2) & mask];                         \
                if (*slot == h) {                                                                  \
                    found++;                                                                       \
                    break;                                                                         \
                }                                                                                  \
                if (!*slot) {                                                                      \
                    *slot = h;                                                                     \
                    break;                                                                         \
                }                                                                                  \
            }                                                                                      \
        }                                                                                          \
        return found;                                                                              \
    }

#define SET(N)                                                                                     \
    ROUTINES(JOIN(int, N), int, N + 3)                                                             \
    ROUTINES(JOIN(long, N), long, N + 5)                                                           \
    ROUTINES(JOIN(short, N), short, N + 7)                                                         \
    ROUTINES(JOIN(unsigned, N), unsigned, N + 11)                                                  \
    ROUTINES(JOIN(double, N), double, N + 13)

SET(1)
SET(2)
SET(3)
SET(4)
