/*
 * Moves between registers and memory, halves, masks; no arithmetic.
 */
#include "cpu/soft/vec.h"

/* ---- Whole registers ---- */

HANDLER(sse_movu_r) {
    SSE_BEGIN;
    set_xmm(cpu, insn->reg, xmm(cpu, insn->rm));
    INSN_NEXT;
}

HANDLER(sse_movu_m) {
    SSE_BEGIN;
    set_xmm(cpu, insn->reg, load_vec(cpu, insn, 16));
    INSN_NEXT;
}

HANDLER(sse_movu_store_r) {
    SSE_BEGIN;
    set_xmm(cpu, insn->rm, xmm(cpu, insn->reg));
    INSN_NEXT;
}

HANDLER(sse_movu_store_m) {
    SSE_BEGIN;
    store_vec(cpu, insn, xmm(cpu, insn->reg), 16);
    INSN_NEXT;
}

HANDLER(sse_mova_r) {
    sse_movu_r(cpu, insn);
}

HANDLER(sse_mova_store_r) {
    sse_movu_store_r(cpu, insn);
}

/* MOVAPS and its like must be aligned whatever MXCSR.MM says. */
HANDLER(sse_mova_m) {
    SSE_BEGIN;
    uint64_t offset = insn_offset(cpu, insn);
    check_aligned(cpu, insn, offset, 16);
    set_xmm(cpu, insn->reg, load_vec_at(cpu, insn, offset, 16));
    INSN_NEXT;
}

HANDLER(sse_mova_store_m) {
    SSE_BEGIN;
    uint64_t offset = insn_offset(cpu, insn);
    check_aligned(cpu, insn, offset, 16);
    access_write(cpu, insn->seg, offset, &cpu->vec[insn->reg], 16);
    INSN_NEXT;
}

HANDLER(v128_movu_r) {
    AVX_BEGIN;
    set_xmm_zero(cpu, insn->reg, xmm(cpu, insn->rm));
    INSN_NEXT;
}

HANDLER(v128_movu_store_r) {
    AVX_BEGIN;
    set_xmm_zero(cpu, insn->rm, xmm(cpu, insn->reg));
    INSN_NEXT;
}

HANDLER(v256_movu_r) {
    AVX_BEGIN;
    set_ymm(cpu, insn->reg, xmm(cpu, insn->rm), ymm_high(cpu, insn->rm));
    INSN_NEXT;
}

HANDLER(v256_movu_store_r) {
    AVX_BEGIN;
    set_ymm(cpu, insn->rm, xmm(cpu, insn->reg), ymm_high(cpu, insn->reg));
    INSN_NEXT;
}

HANDLER(v128_mova_r) {
    v128_movu_r(cpu, insn);
}

HANDLER(v128_mova_store_r) {
    v128_movu_store_r(cpu, insn);
}

HANDLER(v256_mova_r) {
    v256_movu_r(cpu, insn);
}

HANDLER(v256_mova_store_r) {
    v256_movu_store_r(cpu, insn);
}

/* size 16 or 32; check: an alignment check on `offset`, or nothing. */
#define AVX_MOVES_MEMORY(kind, check)                                                              \
    HANDLER(v128_##kind##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        uint64_t offset = insn_offset(cpu, insn);                                                  \
        check(16);                                                                                 \
        set_xmm_zero(cpu, insn->reg, load_vec_at(cpu, insn, offset, 16));                          \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##kind##_store_m) {                                                               \
        AVX_BEGIN;                                                                                 \
        uint64_t offset = insn_offset(cpu, insn);                                                  \
        check(16);                                                                                 \
        access_write(cpu, insn->seg, offset, &cpu->vec[insn->reg], 16);                            \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##kind##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        uint64_t offset = insn_offset(cpu, insn);                                                  \
        check(32);                                                                                 \
        access_read(cpu, insn->seg, offset, &cpu->vec[insn->reg], 32);                             \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##kind##_store_m) {                                                               \
        AVX_BEGIN;                                                                                 \
        uint64_t offset = insn_offset(cpu, insn);                                                  \
        check(32);                                                                                 \
        access_write(cpu, insn->seg, offset, &cpu->vec[insn->reg], 32);                            \
        INSN_NEXT;                                                                                 \
    }
#define NO_CHECK(size)    (void)0
#define ALIGN_CHECK(size) check_aligned(cpu, insn, offset, size)
AVX_MOVES_MEMORY(movu, NO_CHECK)
AVX_MOVES_MEMORY(mova, ALIGN_CHECK)

/* ---- Scalars ---- */

static inline vec merge_low32(vec low, vec rest) {
    u32x4 r = (u32x4)rest;
    r[0] = ((u32x4)low)[0];
    return (vec)r;
}

static inline vec merge_low64(vec low, vec rest) {
    return (vec){low[0], rest[1]};
}

#define SCALAR_MOVES(name, size, merge)                                                            \
    HANDLER(sse_##name##_m) {                                                                      \
        SSE_BEGIN;                                                                                 \
        set_xmm(cpu, insn->reg, load_vec(cpu, insn, size));                                        \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        set_xmm_zero(cpu, insn->reg, load_vec(cpu, insn, size));                                   \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(sse_##name##_store) {                                                                  \
        SSE_BEGIN;                                                                                 \
        store_vec(cpu, insn, xmm(cpu, insn->reg), size);                                           \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name##_store) {                                                                 \
        AVX_BEGIN;                                                                                 \
        store_vec(cpu, insn, xmm(cpu, insn->reg), size);                                           \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(sse_##name##_r) {                                                                      \
        SSE_BEGIN;                                                                                 \
        set_xmm(cpu, insn->reg, merge(xmm(cpu, insn->rm), xmm(cpu, insn->reg)));                   \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(sse_##name##_back) {                                                                   \
        SSE_BEGIN;                                                                                 \
        set_xmm(cpu, insn->rm, merge(xmm(cpu, insn->reg), xmm(cpu, insn->rm)));                    \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name##_r) {                                                                     \
        AVX_BEGIN;                                                                                 \
        set_xmm_zero(cpu, insn->reg, merge(xmm(cpu, insn->rm), xmm(cpu, insn->vvvv)));             \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name##_back) {                                                                  \
        AVX_BEGIN;                                                                                 \
        set_xmm_zero(cpu, insn->rm, merge(xmm(cpu, insn->reg), xmm(cpu, insn->vvvv)));             \
        INSN_NEXT;                                                                                 \
    }
SCALAR_MOVES(movss, 4, merge_low32)
SCALAR_MOVES(movsd, 8, merge_low64)

/* ---- Halves ---- */

#define HALF_MOVES(name, half, value)                                                              \
    HANDLER(sse_##name##_m) {                                                                      \
        SSE_BEGIN;                                                                                 \
        vec a = xmm(cpu, insn->reg), b = load_vec(cpu, insn, 8);                                   \
        set_xmm(cpu, insn->reg, value);                                                            \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name##_m) {                                                                     \
        AVX_BEGIN;                                                                                 \
        vec a = xmm(cpu, insn->vvvv), b = load_vec(cpu, insn, 8);                                  \
        set_xmm_zero(cpu, insn->reg, value);                                                       \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(sse_##name##_store) {                                                                  \
        SSE_BEGIN;                                                                                 \
        store64(cpu, insn->seg, insn_offset(cpu, insn), cpu->vec[insn->reg].q[half]);              \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name##_store) {                                                                 \
        AVX_BEGIN;                                                                                 \
        store64(cpu, insn->seg, insn_offset(cpu, insn), cpu->vec[insn->reg].q[half]);              \
        INSN_NEXT;                                                                                 \
    }
HALF_MOVES(movlow, 0, ((vec){b[0], a[1]}))
HALF_MOVES(movhigh, 1, ((vec){a[0], b[0]}))

#define HALF_REGISTER(name, value)                                                                 \
    HANDLER(sse_##name) {                                                                          \
        SSE_BEGIN;                                                                                 \
        vec a = xmm(cpu, insn->reg), b = xmm(cpu, insn->rm);                                       \
        set_xmm(cpu, insn->reg, value);                                                            \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name) {                                                                         \
        AVX_BEGIN;                                                                                 \
        vec a = xmm(cpu, insn->vvvv), b = xmm(cpu, insn->rm);                                      \
        set_xmm_zero(cpu, insn->reg, value);                                                       \
        INSN_NEXT;                                                                                 \
    }
HALF_REGISTER(movhlps, ((vec){b[1], a[1]}))
HALF_REGISTER(movlhps, ((vec){a[0], b[0]}))

/* ---- To and from general registers, and 64 bits ---- */

#define GENERAL_MOVES(bits)                                                                        \
    HANDLER(mmx_movd_r##bits) {                                                                    \
        MMX_BEGIN;                                                                                 \
        mmx_enter(cpu);                                                                            \
        set_mmx(cpu, insn->reg, (uint##bits##_t)cpu->gpr[insn->rm]);                               \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(mmx_movd_m##bits) {                                                                    \
        MMX_BEGIN;                                                                                 \
        uint64_t value = load##bits(cpu, insn->seg, insn_offset(cpu, insn));                       \
        mmx_enter(cpu);                                                                            \
        set_mmx(cpu, insn->reg, value);                                                            \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(mmx_movd_store_r##bits) {                                                              \
        MMX_BEGIN;                                                                                 \
        mmx_enter(cpu);                                                                            \
        cpu->gpr[insn->rm] = (uint##bits##_t)mmx(cpu, insn->reg)[0];                               \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(mmx_movd_store_m##bits) {                                                              \
        MMX_BEGIN;                                                                                 \
        store##bits(cpu, insn->seg, insn_offset(cpu, insn),                                        \
                    (uint##bits##_t)mmx(cpu, insn->reg)[0]);                                       \
        mmx_enter(cpu);                                                                            \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    GENERAL_MOVES_XMM(sse, SSE_BEGIN, set_xmm, bits)                                               \
    GENERAL_MOVES_XMM(v128, AVX_BEGIN, set_xmm_zero, bits)
#define GENERAL_MOVES_XMM(prefix, BEGIN, set, bits)                                                \
    HANDLER(prefix##_movd_r##bits) {                                                               \
        BEGIN;                                                                                     \
        set(cpu, insn->reg, (vec){(uint##bits##_t)cpu->gpr[insn->rm], 0});                         \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(prefix##_movd_m##bits) {                                                               \
        BEGIN;                                                                                     \
        set(cpu, insn->reg, (vec){load##bits(cpu, insn->seg, insn_offset(cpu, insn)), 0});         \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(prefix##_movd_store_r##bits) {                                                         \
        BEGIN;                                                                                     \
        cpu->gpr[insn->rm] = (uint##bits##_t)cpu->vec[insn->reg].q[0];                             \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(prefix##_movd_store_m##bits) {                                                         \
        BEGIN;                                                                                     \
        store##bits(cpu, insn->seg, insn_offset(cpu, insn),                                        \
                    (uint##bits##_t)cpu->vec[insn->reg].q[0]);                                     \
        INSN_NEXT;                                                                                 \
    }
GENERAL_MOVES(32)
GENERAL_MOVES(64)

KERNEL(movq) {
    return (vec){b[0], 0};
}
SSE_FRAME_SIZED(movq, 8)
V128_FRAME_SIZED(movq, 8)
MMX_FRAME(movq)

HANDLER(mmx_movq_store_r) {
    MMX_BEGIN;
    mmx_enter(cpu);
    set_mmx(cpu, insn->rm, mmx(cpu, insn->reg)[0]);
    INSN_NEXT;
}

HANDLER(mmx_movq_store_m) {
    MMX_BEGIN;
    store64(cpu, insn->seg, insn_offset(cpu, insn), mmx(cpu, insn->reg)[0]);
    mmx_enter(cpu);
    INSN_NEXT;
}

HANDLER(sse_movq_store_r) {
    SSE_BEGIN;
    set_xmm(cpu, insn->rm, (vec){cpu->vec[insn->reg].q[0], 0});
    INSN_NEXT;
}

HANDLER(sse_movq_store_m) {
    SSE_BEGIN;
    store64(cpu, insn->seg, insn_offset(cpu, insn), cpu->vec[insn->reg].q[0]);
    INSN_NEXT;
}

HANDLER(v128_movq_store_r) {
    AVX_BEGIN;
    set_xmm_zero(cpu, insn->rm, (vec){cpu->vec[insn->reg].q[0], 0});
    INSN_NEXT;
}

HANDLER(v128_movq_store_m) {
    AVX_BEGIN;
    store64(cpu, insn->seg, insn_offset(cpu, insn), cpu->vec[insn->reg].q[0]);
    INSN_NEXT;
}

HANDLER(sse_movq2dq) {
    SSE_BEGIN;
    MMX_BEGIN;
    mmx_enter(cpu);
    set_xmm(cpu, insn->reg, mmx(cpu, insn->rm));
    INSN_NEXT;
}

HANDLER(sse_movdq2q) {
    SSE_BEGIN;
    MMX_BEGIN;
    mmx_enter(cpu);
    set_mmx(cpu, insn->reg, cpu->vec[insn->rm].q[0]);
    INSN_NEXT;
}

HANDLER(sse_movnti) {
    cpu->insn = insn;
    if (insn->flags & I_REX_W)
        store64(cpu, insn->seg, insn_offset(cpu, insn), cpu->gpr[insn->reg]);
    else
        store32(cpu, insn->seg, insn_offset(cpu, insn), (uint32_t)cpu->gpr[insn->reg]);
    INSN_NEXT;
}

/* ---- Sign masks ---- */

static inline unsigned mask_ps(vec v) {
    unsigned mask = 0;
    EACH(4, mask |= (((u32x4)v)[i] >> 31) << i)
    return mask;
}

static inline unsigned mask_pd(vec v) {
    return (unsigned)(v[0] >> 63 | v[1] >> 63 << 1);
}

#define MASKS(name, mask, lane_bits)                                                               \
    HANDLER(sse_##name) {                                                                          \
        SSE_BEGIN;                                                                                 \
        cpu->gpr[insn->reg] = mask(xmm(cpu, insn->rm));                                            \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v128_##name) {                                                                         \
        AVX_BEGIN;                                                                                 \
        cpu->gpr[insn->reg] = mask(xmm(cpu, insn->rm));                                            \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(v256_##name) {                                                                         \
        AVX_BEGIN;                                                                                 \
        cpu->gpr[insn->reg] = mask(xmm(cpu, insn->rm)) | mask(ymm_high(cpu, insn->rm))             \
                                                             << (lane_bits);                       \
        INSN_NEXT;                                                                                 \
    }
MASKS(movmskps, mask_ps, 4)
MASKS(movmskpd, mask_pd, 2)
MASKS(pmovmskb, host_pmovmskb, 16)

HANDLER(mmx_pmovmskb) {
    MMX_BEGIN;
    mmx_enter(cpu);
    cpu->gpr[insn->reg] = host_pmovmskb(mmx(cpu, insn->rm));
    INSN_NEXT;
}

/* ---- Masked moves ---- */

/*
 * Only bytes whose mask says so are touched, also for faults. All of them are
 * probed (read for writing) before the first is stored.
 */
static void store_masked(struct soft_cpu *cpu, const struct insn *insn, const uint8_t *data,
                         const uint8_t *mask, unsigned count, unsigned size) {
    unsigned unit = element_unit(cpu, size), seg = insn->seg;
    uint64_t offset = insn_offset(cpu, insn);
    for (unsigned i = 0; i < count * size; i += unit) {
        if (mask[i / size * size + size - 1] & 0x80) {
            rmw_begin(cpu, seg, wrap_offset(insn, offset + i), unit);
            rmw_end(cpu);
        }
    }
    for (unsigned i = 0; i < count * size; i += unit) {
        if (mask[i / size * size + size - 1] & 0x80)
            access_write(cpu, seg, wrap_offset(insn, offset + i), data + i, unit);
    }
}

/* MASKMOV's operand counts as a whole for faults and alignment, whatever the mask. */
static void maskmov(struct soft_cpu *cpu, const struct insn *insn, const uint8_t *data,
                    const uint8_t *mask, unsigned count) {
    uint64_t offset = wrap_offset(insn, cpu->gpr[RDI]);
    for (unsigned at = 0; at < count; at += 8) {
        rmw_begin(cpu, insn->seg, offset + at, 8);
        rmw_end(cpu);
    }
    for (unsigned i = 0; i < count; i++) {
        if (mask[i] & 0x80)
            store8(cpu, insn->seg, offset + i, data[i]);
    }
}

HANDLER(mmx_maskmovq) {
    MMX_BEGIN;
    vec data = mmx(cpu, insn->reg), mask = mmx(cpu, insn->rm);
    mmx_enter(cpu);
    maskmov(cpu, insn, (const uint8_t *)&data, (const uint8_t *)&mask, 8);
    INSN_NEXT;
}

HANDLER(sse_maskmovdqu) {
    SSE_BEGIN;
    maskmov(cpu, insn, cpu->vec[insn->reg].b, cpu->vec[insn->rm].b, 16);
    INSN_NEXT;
}

HANDLER(v128_maskmovdqu) {
    AVX_BEGIN;
    maskmov(cpu, insn, cpu->vec[insn->reg].b, cpu->vec[insn->rm].b, 16);
    INSN_NEXT;
}

static void load_masked(struct soft_cpu *cpu, const struct insn *insn, unsigned count,
                        unsigned size) {
    uint64_t offset = insn_offset(cpu, insn);
    const uint8_t *mask = cpu->vec[insn->vvvv].b;
    uint8_t result[32] = {0};
    for (unsigned i = 0; i < count; i++) {
        if (mask[i * size + size - 1] & 0x80)
            read_element(cpu, insn, offset + i * size, result + i * size, size);
    }
    memcpy(cpu->vec[insn->reg].b, result, sizeof(result));
}

#define MASKED(prefix, type, bytes, size)                                                          \
    HANDLER(prefix##_maskload_##type) {                                                            \
        AVX_BEGIN;                                                                                 \
        load_masked(cpu, insn, (bytes) / (size), size);                                            \
        INSN_NEXT;                                                                                 \
    }                                                                                              \
    HANDLER(prefix##_maskstore_##type) {                                                           \
        AVX_BEGIN;                                                                                 \
        store_masked(cpu, insn, cpu->vec[insn->reg].b, cpu->vec[insn->vvvv].b, (bytes) / (size),   \
                     size);                                                                        \
        INSN_NEXT;                                                                                 \
    }
MASKED(v128, d, 16, 4)
MASKED(v256, d, 32, 4)
MASKED(v128, q, 16, 8)
MASKED(v256, q, 32, 8)

/* ---- Clearing ---- */

HANDLER(mmx_emms) {
    MMX_BEGIN;
    cpu->fsw &= ~FSW_TOP;
    cpu->ftw = 0;
    INSN_NEXT;
}

static unsigned register_count(const struct soft_cpu *cpu) {
    return cpu->mode == INSN_MODE_64 ? 16 : 8;
}

HANDLER(v128_zeroupper) {
    AVX_BEGIN;
    EACH(register_count(cpu), set_xmm_zero(cpu, i, xmm(cpu, i)))
    INSN_NEXT;
}

HANDLER(v256_zeroall) {
    AVX_BEGIN;
    EACH(register_count(cpu), set_ymm(cpu, i, VEC_ZERO, VEC_ZERO))
    INSN_NEXT;
}
