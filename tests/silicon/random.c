/*
 * Numbers that are worth trying: the edges of each size and format, and
 * between them plain random ones.
 */
#include <string.h>

#include "base/bytes.h"
#include "silicon.h"

/* xorshift64* (Marsaglia, Vigna). */
uint64_t random_next(struct random *random) {
    uint64_t x = random->state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    random->state = x;
    return x * UINT64_C(0x2545f4914f6cdd1d);
}

unsigned random_below(struct random *random, unsigned n) {
    return (unsigned)((random_next(random) >> 32) * n >> 32);
}

bool random_once_in(struct random *random, unsigned n) {
    return random_below(random, n) == 0;
}

uint64_t random_integer(struct random *random) {
    uint64_t value = random_next(random);
    unsigned bits = random_below(random, 64);
    switch (random_below(random, 8)) {
    case 0: return random_below(random, 256);
    case 1: return -(uint64_t)random_below(random, 256);
    case 2: return (UINT64_C(1) << bits) + random_below(random, 3) - 1;
    case 3: return -(UINT64_C(1) << bits) + random_below(random, 3) - 1;
    case 4: {
        static const uint8_t width[] = {7, 8, 15, 16, 31, 32, 63, 0};
        return (UINT64_C(1) << width[random_below(random, 8)]) + random_below(random, 5) - 2;
    }
    case 5: return value >> bits;
    case 6: return (uint64_t)((int64_t)value >> bits);
    default: return value;
    }
}

/* ---- Floating point: an IEEE format of given widths, in the low bits ---- */

static uint64_t random_float(struct random *random, unsigned exponent_bits,
                             unsigned fraction_bits) {
    uint64_t top = (UINT64_C(1) << exponent_bits) - 1, bias = top >> 1;
    uint64_t quiet = UINT64_C(1) << (fraction_bits - 1);
    uint64_t fraction = random_next(random) & ((UINT64_C(1) << fraction_bits) - 1);
    uint64_t exponent = bias;
    switch (random_below(random, 16)) {
    case 0: exponent = 0, fraction = 0; break;                              /* zero */
    case 1: exponent = top, fraction = 0; break;                            /* infinity */
    case 2: exponent = top, fraction |= quiet; break;                       /* quiet NaN */
    case 3: exponent = top, fraction = (fraction & (quiet - 1)) | 1; break; /* signalling NaN */
    case 4: exponent = 0, fraction |= 1; break;                             /* denormal */
    case 5: exponent = 0, fraction >>= random_below(random, fraction_bits); break;
    case 6: exponent = 1 + random_below(random, 4); break;       /* barely normal */
    case 7: exponent = top - 1 - random_below(random, 4); break; /* nearly infinite */
    case 8: fraction = 0, exponent = bias + random_below(random, 8) - 4; break; /* powers of 2 */
    case 9: /* integers and halves */
        exponent = bias + random_below(random, fraction_bits + 4);
        fraction &= ~((UINT64_C(1) << random_below(random, fraction_bits)) - 1);
        break;
    case 10: exponent = bias + random_below(random, 66); break; /* around integer overflow */
    case 11: exponent = bias, fraction = random_below(random, 3); break; /* near one */
    case 12: exponent = random_next(random) & top; break;
    default: exponent = bias + random_below(random, 16) - 8; break; /* plain */
    }
    if (exponent > top)
        exponent = top - 1;
    uint64_t sign = random_next(random) >> 63;
    return sign << (exponent_bits + fraction_bits) | exponent << fraction_bits | fraction;
}

/* The double-extended format has an explicit integer bit, so it has more kinds of numbers. */
struct x86_x87 random_extended(struct random *random) {
    struct x86_x87 value = {0};
    uint64_t d = random_float(random, 15, 48);
    value.sign_exponent = (uint16_t)(d >> 48);
    value.significand = (d & ((UINT64_C(1) << 48) - 1)) << 15 | UINT64_C(1) << 63;
    if ((value.sign_exponent & 0x7fff) == 0)
        value.significand &= ~(UINT64_C(1) << 63);
    switch (random_below(random, 16)) {
    case 0: value.significand &= ~(UINT64_C(1) << 63); break; /* unnormal, pseudo-infinity … */
    case 1: value.significand |= random_next(random) & 0x7fff; break;
    case 2: value.significand |= random_next(random) >> 1; break;
    case 3: value.significand |= UINT64_C(1) << 63; break; /* pseudo-denormal */
    default: break;
    }
    return value;
}

static void fill_decimal(struct random *random, uint8_t *bytes, unsigned length) {
    for (unsigned i = 0; i < length; i++)
        bytes[i] = (uint8_t)(random_below(random, 10) << 4 | random_below(random, 10));
}

void random_bytes(struct random *random, uint8_t *bytes, unsigned length) {
    unsigned kind = random_below(random, 12);
    uint8_t block[PATCH_SIZE] = {0};
    for (unsigned at = 0; at < sizeof block;) {
        switch (kind) {
        case 0:
        case 1:
        case 2:
            store_le32(block + at, (uint32_t)random_float(random, 8, 23));
            at += 4;
            break;
        case 3:
        case 4:
        case 5:
            store_le64(block + at, random_float(random, 11, 52));
            at += 8;
            break;
        case 6: {
            struct x86_x87 value = random_extended(random);
            memcpy(block + at, &value, 8);
            if (at + 10 <= sizeof block)
                store_le16(block + at + 8, value.sign_exponent);
            at += 16;
            break;
        }
        case 7:
            store_le16(block + at, (uint16_t)random_float(random, 5, 10));
            at += 2;
            break;
        case 8: memset(block, (int)random_integer(random), at = sizeof block); break;
        case 9: fill_decimal(random, block, at = sizeof block); break;
        default:
            store_le64(block + at, random_integer(random));
            at += 8;
            break;
        }
    }
    memcpy(bytes, block, length);
}
