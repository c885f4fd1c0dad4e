#include "cpu/soft/jit/rows.h"

#include <cpuid.h>
#include <pthread.h>
#include <string.h>

#include "base/bytes.h"
#include "cpu/soft/hostfp.h"
#include "cpu/x86.h"

struct lowering lowerings[LOWERINGS_MAX];

static bool name_in(const char *name, const char *const *list, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (strcmp(name, list[i]) == 0)
            return true;
    return false;
}
#define NAME_IN(name, list) name_in((name), (list), ARRAY_SIZE(list))

/* Integer instructions whose every operand is explicit (or RAX, RDX as noted), that neither fault
 * by themselves nor need the processor's other state. */
static const char *const native_names[] = {
    "mov",   "movzx",  "movsx",     "movsxd",     "movbe", "add",     "adc",  "sub",    "sbb",
    "and",   "or",     "xor",       "cmp",        "test",  "not",     "neg",  "inc",    "dec",
    "mul",   "imul",   "shl",       "shr",        "sar",   "rol",     "ror",  "rcl",    "rcr",
    "shld",  "shrd",   "bt",        "bts",        "btr",   "btc",     "bsf",  "bsr",    "tzcnt",
    "lzcnt", "popcnt", "bswap",     "xchg",       "xadd",  "cmpxchg", "cbw",  "cwd",    "cmc",
    "clc",   "stc",    "lahf",      "sahf",       "andn",  "bextr",   "blsi", "blsmsk", "blsr",
    "bzhi",  "mulx",   "pdep",      "pext",       "rorx",  "sarx",    "shlx", "shrx",   "adcx",
    "adox",  "crc32",  "cmpxchg8b", "cmpxchg16b",
};
static const char *const nop_names[] = {"nop", "prefetch", "prefetchw", "endbr64"};
static const char *const system_names[] = {"cli",      "sti",      "swapgs",   "rdfsbase",
                                           "rdgsbase", "wrfsbase", "wrgsbase", "mfence",
                                           "sfence",   "lfence",   "rdtsc",    "rdtscp"};
static const char *const rax_rdx_names[] = {"mul",  "imul",   "cbw",       "cwd",       "cmpxchg",
                                            "lahf", "fnstsw", "cmpxchg8b", "cmpxchg16b"};
static const char *const rcx_names[] = {"pcmpistri", "pcmpestri", "vpcmpistri", "vpcmpestri"};
/* A count of zero leaves all flags as they were: the tables count them as read then. */
static const char *const shift_names[] = {"shl", "shr", "sar", "rol", "ror", "shld", "shrd"};
static const char *const second_written_names[] = {"xchg", "xadd", "mulx"};

static bool is_condition(const struct insn_row *row, const char *stem) {
    size_t length = strlen(stem);
    return strncmp(row->name, stem, length) == 0 && row->name[length] != 0;
}

static bool operand_is_gpr_rm(unsigned operand) {
    switch (operand) {
    case OPERAND_Eb:
    case OPERAND_Ew:
    case OPERAND_Ed:
    case OPERAND_Eq:
    case OPERAND_Ev:
    case OPERAND_Ey:
    case OPERAND_Rv:
    case OPERAND_Ry:
    case OPERAND_Zb:
    case OPERAND_Zv: return true;
    default: return false;
    }
}

static bool operand_is_gpr_reg(unsigned operand) {
    return operand == OPERAND_Gb || operand == OPERAND_Gw || operand == OPERAND_Gd ||
           operand == OPERAND_Gv || operand == OPERAND_Gy;
}

struct memory_width {
    uint8_t operand, kind, bytes;
};
static const struct memory_width memory_widths[] = {
    {OPERAND_Eb, MEMORY_FIXED, 1},   {OPERAND_Ew, MEMORY_FIXED, 2},
    {OPERAND_Ed, MEMORY_FIXED, 4},   {OPERAND_Eq, MEMORY_FIXED, 8},
    {OPERAND_Ev, MEMORY_BY_SIZE, 0}, {OPERAND_Ey, MEMORY_BY_SIZE, 0},
    {OPERAND_Mb, MEMORY_FIXED, 1},   {OPERAND_Mw, MEMORY_FIXED, 2},
    {OPERAND_Md, MEMORY_FIXED, 4},   {OPERAND_Mq, MEMORY_FIXED, 8},
    {OPERAND_Mdq, MEMORY_FIXED, 16}, {OPERAND_Mqq, MEMORY_FIXED, 32},
    {OPERAND_Mv, MEMORY_BY_SIZE, 0}, {OPERAND_Ob, MEMORY_FIXED, 1},
    {OPERAND_Ov, MEMORY_BY_SIZE, 0}, {OPERAND_Wx, MEMORY_BY_L, 0},
    {OPERAND_Wdq, MEMORY_FIXED, 16}, {OPERAND_Wqq, MEMORY_FIXED, 32},
    {OPERAND_Wss, MEMORY_FIXED, 4},  {OPERAND_Wsd, MEMORY_FIXED, 8},
    {OPERAND_Wd, MEMORY_FIXED, 4},   {OPERAND_Wq, MEMORY_FIXED, 8},
    {OPERAND_Ww, MEMORY_FIXED, 2},   {OPERAND_Wb, MEMORY_FIXED, 1},
    {OPERAND_Wh, MEMORY_HALF_L, 0},  {OPERAND_Qq, MEMORY_FIXED, 8},
    {OPERAND_Qd, MEMORY_FIXED, 4},
};

static const struct memory_width *width_of(unsigned operand) {
    for (size_t i = 0; i < ARRAY_SIZE(memory_widths); i++)
        if (memory_widths[i].operand == operand)
            return &memory_widths[i];
    return NULL;
}

static bool operand_is_unsupported(unsigned operand) {
    switch (operand) {
    case OPERAND_M:
    case OPERAND_Mp:
    case OPERAND_Sw:
    case OPERAND_Cd:
    case OPERAND_Dd:
    case OPERAND_Ap:
    case OPERAND_DX:
    case OPERAND_Xb:
    case OPERAND_Xv:
    case OPERAND_Yb:
    case OPERAND_Yv:
    case OPERAND_Fv:
    case OPERAND_VSIB:
    case OPERAND_Pq:
    case OPERAND_Qq:
    case OPERAND_Qd:
    case OPERAND_Nq:
    case OPERAND_ST0:
    case OPERAND_STi:
    case OPERAND_Jb:
    case OPERAND_Jz: return true;
    default: return false;
    }
}

/* Vector rows that run as themselves: all whose operands are explicit. */
static bool vector_is_native(const struct insn_row *row) {
    static const char *const exceptions[] = {"ldmxcsr",  "stmxcsr",    "vldmxcsr",
                                             "vstmxcsr", "maskmovdqu", "vmaskmovdqu"};
    static const char *const masked[] = {"vmaskmovps", "vmaskmovpd", "vpmaskmovd", "vpmaskmovq"};
    if (!(row->properties & (INSN_SSE | INSN_AVX)) || (row->properties & INSN_MMX))
        return false;
    /* Masked moves suppress faults of elements that they do not touch. */
    return !NAME_IN(row->name, exceptions) && !NAME_IN(row->name, masked);
}

/* x87 and MMX rows that run as themselves: not what shows or loads more than a register or a
 * control word, nor what has its operand where EDI says. */
static bool x87_is_native(const struct insn_row *row) {
    static const char *const exceptions[] = {"fldenv", "fnstenv", "frstor", "fnsave", "maskmovq"};
    return (row->properties & (INSN_X87 | INSN_MMX)) && !NAME_IN(row->name, exceptions);
}

static void describe_x87(struct lowering *l, const struct insn_row *row) {
    static const char *const stores[] = {"fst",    "fstp",  "fist",   "fistp",
                                         "fisttp", "fbstp", "fnstcw", "fnstsw"};
    l->kind = LOWER_NATIVE;
    l->x87 = true;
    if (row->properties & INSN_MMX)
        return;
    l->memory_written = NAME_IN(row->name, stores);
    if (row->operand[0] == OPERAND_M) {
        l->memory = MEMORY_FIXED;
        l->memory_bytes = 10;
    }
}

static uint8_t special_kind(const struct insn_row *row) {
    unsigned first = row->operand[0];
    if (strcmp(row->name, "call") == 0)
        return first == OPERAND_Jz ? LOWER_CALL : first == OPERAND_Ev ? LOWER_CALL_INDIRECT : 0;
    if (strcmp(row->name, "jmp") == 0)
        return first == OPERAND_Jz || first == OPERAND_Jb ? LOWER_JMP
               : first == OPERAND_Ev                      ? LOWER_JMP_INDIRECT
                                                          : 0;
    if (strcmp(row->name, "ret") == 0)
        return LOWER_RET;
    if (strcmp(row->name, "push") == 0)
        return first == OPERAND_Zv || first == OPERAND_Iz || first == OPERAND_Ibs ? LOWER_PUSH
               : first == OPERAND_Ev ? LOWER_PUSH_MEMORY
                                     : 0;
    if (strcmp(row->name, "pop") == 0)
        return first == OPERAND_Zv ? LOWER_POP : 0;
    if (strcmp(row->name, "lea") == 0)
        return LOWER_LEA;
    if (strcmp(row->name, "leave") == 0)
        return LOWER_LEAVE;
    if (row->name[0] == 'j' && (first == OPERAND_Jb || first == OPERAND_Jz) &&
        strcmp(row->name, "jrcxz") != 0 && strcmp(row->name, "jmp") != 0)
        return LOWER_JCC;
    if (first == OPERAND_Ev && strcmp(row->name, "div") == 0)
        return LOWER_DIV;
    if (first == OPERAND_Ev && strcmp(row->name, "idiv") == 0)
        return LOWER_IDIV;
    if (strcmp(row->name, "movs") == 0 || strcmp(row->name, "movsb") == 0)
        return row->operand[0] == OPERAND_Yb || row->operand[0] == OPERAND_Yv ? LOWER_MOVS : 0;
    if (strcmp(row->name, "stos") == 0 || strcmp(row->name, "stosb") == 0)
        return LOWER_STOS;
    if (NAME_IN(row->name, nop_names))
        return LOWER_NOP;
    if (strcmp(row->name, "pause") == 0)
        return LOWER_LIGHT;
    if (strcmp(row->name, "cld") == 0 || strcmp(row->name, "std") == 0)
        return LOWER_SYSTEM;
    return LOWER_CALLOUT;
}

/* Reading control registers is the one MOV of the 0F map's 20h, segment registers 8Ch. */
static uint8_t system_kind(const struct insn_row *row) {
    bool control = row->map == MAP_0F && row->opcode == 0x20;
    bool selector = row->map == MAP_1B && row->opcode == 0x8c;
    if (control || selector || NAME_IN(row->name, system_names))
        return LOWER_SYSTEM;
    if (strcmp(row->name, "pushf") == 0)
        return LOWER_PUSHF;
    if (strcmp(row->name, "syscall") == 0)
        return LOWER_SYSCALL;
    if (strcmp(row->name, "sysret") == 0)
        return LOWER_SYSRET;
    if (strcmp(row->name, "stac") == 0 || strcmp(row->name, "clac") == 0)
        return LOWER_SET_AC;
    return strcmp(row->name, "popf") == 0 ? LOWER_POPF : LOWER_LIGHT;
}

static bool integer_is_native(const struct insn_row *row) {
    bool named = NAME_IN(row->name, native_names) || is_condition(row, "cmov") ||
                 (is_condition(row, "set") && row->operand[0] == OPERAND_Eb);
    unsigned forbidden = INSN_CPL0 | INSN_END | INSN_BRANCH | INSN_NO_TEST | INSN_X87 | INSN_MMX;
    return named && !(row->properties & forbidden);
}

/* Of the host's CPUID: asked once, since a host that is a guest itself leaves itself for each. */
static struct { unsigned basic_c, extended_c, structured_b, structured_c; } host;

static void ask_host(void) {
    unsigned a, b, d;
    __get_cpuid(1, &a, &b, &host.basic_c, &d);
    __get_cpuid_count(7, 0, &a, &host.structured_b, &host.structured_c, &d);
    __get_cpuid(0x80000001, &a, &b, &host.extended_c, &d);
}

/* What the interpreter offers in plain C, the host itself may lack. */
static bool host_runs(unsigned feature) {
    switch (feature) {
    case FEAT_CX16: return host.basic_c >> 13 & 1;
    case FEAT_MOVBE: return host.basic_c >> 22 & 1;
    case FEAT_POPCNT: return host.basic_c >> 23 & 1;
    case FEAT_BMI1: return host.structured_b >> 3 & 1;
    case FEAT_BMI2: return host.structured_b >> 8 & 1;
    case FEAT_ADX: return host.structured_b >> 19 & 1;
    case FEAT_GFNI: return host.structured_c >> 8 & 1;
    case FEAT_VAES: return host.structured_c >> 9 & 1;
    case FEAT_VPCLMUL: return host.structured_c >> 10 & 1;
    case FEAT_LZCNT: return host.extended_c >> 5 & 1;
    case FEAT_SSE4A: return host.extended_c >> 6 & 1;
    default: return vec_host_supports(feature);
    }
}

static uint8_t recipe_of(const struct insn_row *row) {
    static const char *const logic[] = {"and", "or", "xor"};
    if (strcmp(row->name, "cmp") == 0 || strcmp(row->name, "test") == 0)
        return RECIPE_REPEAT;
    if (NAME_IN(row->name, logic))
        return RECIPE_TEST_DEST;
    if (strcmp(row->name, "add") == 0)
        return RECIPE_UNDO_SUB;
    return strcmp(row->name, "sub") == 0 ? RECIPE_UNDO_ADD : RECIPE_NONE;
}

/* MUL and IMUL of one operand read it. */
static bool writes_first(const struct insn_row *row) {
    bool multiplies = strcmp(row->name, "mul") == 0 || strcmp(row->name, "imul") == 0;
    return !(row->properties & INSN_WRITES_NONE) &&
           !(multiplies && row->operand[1] == OPERAND_NONE);
}

static void describe_operands(struct lowering *l, const struct insn_row *row) {
    for (unsigned i = 0; i < 4 && row->operand[i] != OPERAND_NONE; i++) {
        unsigned operand = row->operand[i];
        l->gpr_rm |= operand_is_gpr_rm(operand);
        l->gpr_reg |= operand_is_gpr_reg(operand);
        l->gpr_vvvv |= operand == OPERAND_By;
        const struct memory_width *width = width_of(operand);
        if (width != NULL) {
            l->memory = width->kind;
            l->memory_bytes = width->bytes;
            l->memory_written = i == 0 && writes_first(row);
        }
    }
}

static struct lowering describe(const struct insn_row *row) {
    struct lowering l = {.kind = LOWER_CALLOUT};
    l.has_modrm = row->form != FORM_NO_MODRM;
    l.kind = special_kind(row);
    describe_operands(&l, row);
    if (l.kind == LOWER_CALLOUT && (integer_is_native(row) || vector_is_native(row)) &&
        host_runs(row->feature)) {
        l.kind = LOWER_NATIVE;
        for (unsigned i = 0; i < 4; i++)
            if (operand_is_unsupported(row->operand[i]))
                l.kind = LOWER_CALLOUT;
    }
    if (l.kind == LOWER_CALLOUT && x87_is_native(row) &&
        (row->feature == FEAT_X87 || row->feature == FEAT_MMX || host_runs(row->feature)))
        describe_x87(&l, row);
    if (l.kind == LOWER_CALLOUT && row >= insn_table_system.rows &&
        row < insn_table_system.rows + insn_table_system.count)
        l.kind = system_kind(row);
    unsigned all = row->flags_written | row->flags_undefined;
    bool may_pass = NAME_IN(row->name, shift_names) && row->flags_read != 0;
    l.full_flags = all == FLAGS_STATUS && row->flags_read == 0;
    l.flags_read = may_pass ? 0 : row->flags_read;
    l.flags_killed = may_pass ? 0 : (uint16_t)all;
    l.writes_flags = all != 0;
    l.second_written = NAME_IN(row->name, second_written_names);
    l.first_read_only = row->properties & INSN_WRITES_NONE;
    l.first_read = row->properties & (INSN_READS_DEST | INSN_WRITES_NONE | INSN_UNDEFINED_REG);
    l.writes_rax_rdx = NAME_IN(row->name, rax_rdx_names);
    l.writes_rcx = NAME_IN(row->name, rcx_names);
    l.aligned = (row->properties & INSN_ALIGNED) || strcmp(row->name, "cmpxchg16b") == 0;
    l.recipe = recipe_of(row);
    return l;
}

static void build(void) {
    const struct insn_row *row;
    ask_host();
    for (size_t n = 0; n < LOWERINGS_MAX && (row = insn_row_at(n)) != NULL; n++)
        lowerings[n] = describe(row);
}

void lowerings_init(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, build);
}

unsigned lowering_memory_bytes(const struct lowering *lowering, const struct insn *insn) {
    unsigned vector = insn->flags & I_VEX_L ? 32 : 16;
    switch (lowering->memory) {
    case MEMORY_BY_SIZE: return insn->size;
    case MEMORY_BY_L: return vector;
    case MEMORY_HALF_L: return vector / 2;
    default: return lowering->memory_bytes;
    }
}
