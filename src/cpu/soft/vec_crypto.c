/*
 * AES, SHA, carry-less multiplication, Galois-field arithmetic: the host's
 * own instructions, which run in constant time.
 */
#include "cpu/soft/vec.h"

#define HOST(name)                                                                                 \
    HOSTFP_INTEGER(name)                                                                           \
    KERNEL(name) {                                                                                 \
        return host_##name(a, b);                                                                  \
    }

HOST(aesenc)
HOST(aesenclast)
HOST(aesdec)
HOST(aesdeclast)
HOST(aesimc)
YMM_FRAMES(aesenc)
YMM_FRAMES(aesenclast)
YMM_FRAMES(aesdec)
YMM_FRAMES(aesdeclast)
XMM_FRAMES(aesimc)

/* The round constant goes into the rotated words. */
KERNEL(aeskeygenassist) {
    return host_aeskeygenassist0(b) ^ ((vec){(uint64_t)imm << 32, (uint64_t)imm << 32});
}
XMM_FRAMES(aeskeygenassist)

/* The immediate picks a half of each source. */
KERNEL(pclmulqdq) {
    vec x = {a[imm & 1], 0}, y = {b[imm >> 4 & 1], 0};
    return host_pclmulqdq0(x, y);
}
YMM_FRAMES(pclmulqdq)

/* SHA operands need not be aligned on AMD processors. */
HOST(sha1nexte)
HOST(sha1msg1)
HOST(sha1msg2)
HOST(sha256msg1)
HOST(sha256msg2)
SSE_FRAME_LOAD(sha1nexte, load_vec(cpu, insn, 16))
SSE_FRAME_LOAD(sha1msg1, load_vec(cpu, insn, 16))
SSE_FRAME_LOAD(sha1msg2, load_vec(cpu, insn, 16))
SSE_FRAME_LOAD(sha256msg1, load_vec(cpu, insn, 16))
SSE_FRAME_LOAD(sha256msg2, load_vec(cpu, insn, 16))

KERNEL(sha1rnds4) {
    return host_sha1rnds4(a, b, imm);
}
SSE_FRAME_LOAD(sha1rnds4, load_vec(cpu, insn, 16))

/* XMM0 holds two rounds' message words and constants. */
HANDLER(sse_sha256rnds2_r) {
    SSE_BEGIN;
    set_xmm(cpu, insn->reg, host_sha256rnds2(xmm(cpu, insn->reg), xmm(cpu, insn->rm), xmm(cpu, 0)));
    INSN_NEXT;
}

HANDLER(sse_sha256rnds2_m) {
    SSE_BEGIN;
    vec b = load_vec(cpu, insn, 16);
    set_xmm(cpu, insn->reg, host_sha256rnds2(xmm(cpu, insn->reg), b, xmm(cpu, 0)));
    INSN_NEXT;
}

/* The affine forms add their immediate last. */
static inline vec splat8(unsigned imm) {
    return (vec)((u8x16){0} + (uint8_t)imm);
}

HOST(gf2p8mulb)
KERNEL(gf2p8affineqb) {
    return host_gf2p8affineqb0(a, b) ^ splat8(imm);
}
KERNEL(gf2p8affineinvqb) {
    return host_gf2p8affineinvqb0(a, b) ^ splat8(imm);
}
YMM_FRAMES(gf2p8mulb)
YMM_FRAMES(gf2p8affineqb)
YMM_FRAMES(gf2p8affineinvqb)
