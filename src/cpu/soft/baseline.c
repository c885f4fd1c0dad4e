#include "cpu/baseline.h"

#include "base/bytes.h"
#include "cpu/soft/hostfp.h"
#include "cpu/soft/soft.h"

const char *const cpu_baselines[] = {[CPU_HOST] = "host",
                                     [CPU_V1] = "x86-64-v1",
                                     [CPU_V2] = "x86-64-v2",
                                     [CPU_V3] = "x86-64-v3",
                                     NULL};

enum { NOWHERE = 2 }; /* of the two words */

/* What vec_host_supports asks the host for. from: the level that has it; CPU_HOST: none. */
static const struct {
    enum insn_feature feature;
    const char *name;
    enum cpu_baseline from;
    uint8_t word, bit;
} features[] = {
    {FEAT_SSE3, "sse3", CPU_V2, 0, 0},
    {FEAT_SSSE3, "ssse3", CPU_V2, 0, 9},
    {FEAT_SSE41, "sse4_1", CPU_V2, 0, 19},
    {FEAT_SSE42, "sse4_2", CPU_V2, 0, 20},
    {FEAT_AVX, "avx", CPU_V3, 0, 28},
    {FEAT_AVX2, "avx2", CPU_V3, 1, 5},
    {FEAT_FMA, "fma", CPU_V3, 0, 12},
    {FEAT_F16C, "f16c", CPU_V3, 0, 29},
    {FEAT_AES, "aes", CPU_HOST, 0, 25},
    {FEAT_PCLMUL, "pclmulqdq", CPU_HOST, 0, 1},
    {FEAT_SHA, "sha_ni", CPU_HOST, 1, 29},
    {FEAT_VAES, "vaes", CPU_HOST, NOWHERE, 0},
    {FEAT_VPCLMUL, "vpclmulqdq", CPU_HOST, NOWHERE, 0},
    {FEAT_GFNI, "gfni", CPU_HOST, NOWHERE, 0},
};

static bool has(enum cpu_baseline baseline, size_t n) {
    return baseline == CPU_HOST || (features[n].from != CPU_HOST && features[n].from <= baseline);
}

bool cpu_baseline_has(enum cpu_baseline baseline, enum insn_feature feature) {
    for (size_t n = 0; n < ARRAY_SIZE(features); n++)
        if (features[n].feature == feature)
            return has(baseline, n);
    return true;
}

uint32_t cpu_baseline_shown(enum cpu_baseline baseline) {
    uint32_t shown = 0;
    for (size_t n = 0; n < ARRAY_SIZE(features); n++)
        if (has(baseline, n) && vec_host_supports(features[n].feature))
            shown |= UINT32_C(1) << n;
    return shown;
}

const char *cpu_feature_name(unsigned n) {
    return n < ARRAY_SIZE(features) ? features[n].name : NULL;
}

void cpu_feature_words(uint32_t set, uint32_t words[2]) {
    words[0] = words[1] = 0;
    for (size_t n = 0; n < ARRAY_SIZE(features); n++)
        if ((set >> n & 1) != 0 && features[n].word < NOWHERE)
            words[features[n].word] |= UINT32_C(1) << features[n].bit;
}
