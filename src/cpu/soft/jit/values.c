/* What is known of the registers along a path: moves, constants, and constants added. */
#include "cpu/soft/jit/values.h"

#include "cpu/soft/jit/translation.h"

enum { ADD, OR, ADC, SBB, AND, SUB, XOR, CMP };

static int64_t wrap(unsigned size, int64_t value) {
    return size == 4 ? (int32_t)value : value;
}

/* The whole register after a result of `size`: where that is half of it, the rest is zero. */
static int64_t extend(const struct values *v, unsigned size, int64_t value) {
    return size < v->word ? (int64_t)(uint32_t)value : wrap(v->word, value);
}

static struct value constant(int64_t n) {
    return (struct value){.constant = n};
}

static int64_t sum(int64_t a, int64_t b) {
    return (int64_t)((uint64_t)a + (uint64_t)b);
}

static int64_t difference(int64_t a, int64_t b) {
    return (int64_t)((uint64_t)a - (uint64_t)b);
}

struct value values_of(const struct values *v, unsigned reg) {
    return reg < 16 ? v->gpr[reg] : constant(0);
}

static void forget(struct values *v, unsigned reg) {
    v->gpr[reg] = (struct value){.version = ++v->last};
}

void values_begin(struct values *v, unsigned word) {
    *v = (struct values){.word = word};
    for (unsigned reg = 0; reg < 16; reg++)
        forget(v, reg);
}

/* ---- Instructions ---- */

/* What an instruction does: `op` of two values, to a register unless it is CMP. */
struct operation {
    enum {
        DOES_NOTHING,
        DOES_MOVE,
        DOES_ALU,
        DOES_TEST,
        DOES_COUNT
    } kind; /* DOES_COUNT: INC, DEC */
    unsigned op, to;
    struct value left, right;
};

static struct operation alu(const struct values *v, unsigned op, unsigned to, struct value right) {
    return (struct operation){
        .kind = DOES_ALU, .op = op, .to = to, .left = values_of(v, to), .right = right};
}

static struct operation count(const struct values *v, unsigned to, int64_t by) {
    return (struct operation){
        .kind = DOES_COUNT, .op = ADD, .to = to, .left = values_of(v, to), .right = constant(by)};
}

/* The one-byte opcodes below 40h. */
static struct operation alu_by_opcode(const struct values *v, const struct insn *insn) {
    unsigned op = insn->opcode >> 3;
    switch (insn->opcode & 7) {
    case 1:
    case 3: {
        unsigned to = insn->opcode & 2 ? insn->reg : insn->rm;
        unsigned from = insn->opcode & 2 ? insn->rm : insn->reg;
        if ((op == XOR || op == SUB) && to == from)
            return (struct operation){
                .kind = DOES_ALU, .op = op, .to = to, .left = constant(0), .right = constant(0)};
        return alu(v, op, to, values_of(v, from));
    }
    case 5: return alu(v, op, RAX, constant((int64_t)insn->imm));
    default: return (struct operation){.kind = DOES_NOTHING};
    }
}

static struct operation operation_of(const struct values *v, const struct insn *insn) {
    const struct insn_row *row = insn_row_of(insn);
    const struct operation none = {.kind = DOES_NOTHING};
    struct operation o = {.kind = DOES_MOVE};
    if (row->map != MAP_1B || row->encoding != ENC_LEGACY || (insn->flags & I_MEMORY) ||
        insn->size < 4)
        return none;
    unsigned op = insn->opcode;
    switch (op) {
    case 0x81:
    case 0x83: return alu(v, insn->reg & 7, insn->rm, constant((int64_t)insn->imm));
    case 0x85:
        o = alu(v, AND, insn->rm, values_of(v, insn->reg));
        o.kind = insn->rm == insn->reg ? DOES_TEST : DOES_NOTHING;
        return o;
    case 0x89:
        o.to = insn->rm;
        o.left = values_of(v, insn->reg);
        return o;
    case 0x8b:
        o.to = insn->reg;
        o.left = values_of(v, insn->rm);
        return o;
    case 0xc7:
        o.to = insn->rm;
        o.left = constant((int64_t)insn->imm);
        return o;
    case 0xff: return (insn->reg & 7) < 2 ? count(v, insn->rm, insn->reg & 7 ? -1 : 1) : none;
    default: break;
    }
    if (op < 0x40)
        return alu_by_opcode(v, insn);
    if (op < 0x50 && v->word == 4)
        return count(v, insn->rm, op < 0x48 ? 1 : -1);
    if (op < 0xb8 || op > 0xbf)
        return none;
    o.to = insn->rm;
    o.left = constant((int64_t)insn->imm);
    return o;
}

/* False: the result is not known. */
static bool result_of(const struct values *v, const struct operation *o, unsigned size,
                      struct value *result) {
    struct value a = o->left, b = o->right;
    bool constants = a.version == 0 && b.version == 0;
    if (size != v->word && !constants)
        return false;
    *result = a;
    if (o->kind == DOES_MOVE) {
    } else if (o->op == ADD && (a.version == 0 || b.version == 0)) {
        *result = (struct value){a.version | b.version, sum(a.constant, b.constant)};
    } else if (o->op == SUB && (b.version == 0 || a.version == b.version)) {
        *result = (struct value){a.version == b.version ? 0 : a.version,
                                 difference(a.constant, b.constant)};
    } else if (constants && o->op == XOR) {
        *result = constant(a.constant ^ b.constant);
    } else if (constants && o->op == OR) {
        *result = constant(a.constant | b.constant);
    } else if (constants && o->op == AND) {
        *result = constant(a.constant & b.constant);
    } else {
        return false;
    }
    result->constant = extend(v, size, result->constant);
    return true;
}

static bool is_address_sum(const struct value *base, const struct value *index, unsigned scale) {
    return index->version == 0 || (base->version == 0 && scale == 0);
}

static bool result_of_lea(const struct values *v, const struct insn *insn, struct value *result) {
    struct value base = values_of(v, insn->base), index = values_of(v, insn->index);
    bool whole = insn->size == v->word && insn->address_size == v->word;
    if (insn_is_rip_relative(insn) && v->word == 8)
        return false;
    if (!is_address_sum(&base, &index, insn->scale) ||
        (!whole && (base.version | index.version) != 0) || insn->address_size < 4)
        return false;
    int64_t at = sum(insn->disp, (int64_t)((uint64_t)index.constant << insn->scale));
    at = sum(at, base.constant);
    unsigned size = insn->size < insn->address_size ? insn->size : insn->address_size;
    *result = (struct value){base.version | index.version, extend(v, size, at)};
    return true;
}

/* ---- Flags ---- */

static struct compared flags_of(const struct values *v, const struct operation *o, unsigned size,
                                bool known, const struct value *result) {
    bool constants = o->left.version == 0 && o->right.version == 0;
    struct compared flags = {.known = constants || size == v->word, .size = (uint8_t)size};
    flags.left = o->left;
    flags.right = o->right;
    if (o->kind == DOES_TEST) {
        flags.right = constant(0);
        flags.known = o->left.version == 0;
    } else if (o->kind != DOES_ALU || (o->op != CMP && o->op != SUB)) {
        flags.left = *result;
        flags.right = constant(0);
        flags.known = known && result->version == 0;
        flags.zero_only = true;
    }
    return flags;
}

static bool keeps_flags(const struct insn *insn, uint8_t kind) {
    switch (kind) {
    case LOWER_NATIVE: return !lowering_of(insn)->writes_flags;
    case LOWER_NOP:
    case LOWER_LEA:
    case LOWER_PUSH:
    case LOWER_PUSH_MEMORY:
    case LOWER_POP:
    case LOWER_LEAVE:
    case LOWER_JCC: return true;
    default: return false;
    }
}

void values_step(struct values *v, const struct insn *insn, uint8_t kind) {
    struct operation o = {.kind = DOES_NOTHING};
    struct value result = {0};
    bool known = false;
    if (kind == LOWER_NATIVE)
        o = operation_of(v, insn);
    if (o.kind != DOES_NOTHING)
        known = result_of(v, &o, insn->size, &result);
    if (!keeps_flags(insn, kind))
        v->flags = o.kind == DOES_NOTHING ? (struct compared){.known = false}
                                          : flags_of(v, &o, insn->size, known, &result);
    if (kind == LOWER_LEA) {
        known = result_of_lea(v, insn, &result);
        o.to = insn->reg;
    }
    uint32_t changes = lower_changes(insn, lowering_of(insn), kind);
    for (unsigned reg = 0; reg < 16 && changes >> reg != 0; reg++)
        if (changes >> reg & 1)
            forget(v, reg);
    if (known && changes == 1u << o.to)
        v->gpr[o.to] = result;
}

/* ---- Uses ---- */

struct value values_address(const struct values *v, const struct insn *insn, uint32_t *index) {
    struct value base = values_of(v, insn->base), scaled = values_of(v, insn->index);
    int64_t at = sum(insn->disp, (int64_t)((uint64_t)scaled.constant << insn->scale));
    *index = scaled.version;
    return (struct value){base.version, wrap(insn->address_size, sum(at, base.constant))};
}

static bool is_below(const struct compared *flags, bool is_signed, bool or_equal) {
    int64_t a = flags->left.constant, b = flags->right.constant;
    if (flags->size == 4)
        a = (int32_t)a, b = (int32_t)b;
    bool below = is_signed ? a < b : (uint64_t)a < (uint64_t)b;
    return below || (or_equal && a == b);
}

int values_decide(const struct values *v, const struct insn *jcc) {
    enum { B = 1, E, BE, S, L = 6, LE };
    const struct compared *flags = &v->flags;
    unsigned condition = jcc->opcode & 15, inverted = condition & 1;
    if (!flags->known || flags->left.version != flags->right.version)
        return -1;
    int64_t between = difference(flags->left.constant, flags->right.constant);
    if (condition >> 1 == E)
        return (int)((wrap(flags->size, between) == 0) ^ inverted);
    if (flags->left.version != 0 || flags->zero_only)
        return -1;
    switch (condition >> 1) {
    case B: return (int)(is_below(flags, false, false) ^ inverted);
    case BE: return (int)(is_below(flags, false, true) ^ inverted);
    case L: return (int)(is_below(flags, true, false) ^ inverted);
    case LE: return (int)(is_below(flags, true, true) ^ inverted);
    default: return -1;
    }
}
