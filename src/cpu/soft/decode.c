/*
 * Bytes to instructions: prefixes, opcode maps, ModRM, displacement and
 * immediates. Which row an encoding means is found through an index by
 * encoding, map and opcode; its few candidates are then tried in order.
 *
 * Source: AMD64 APM volume 3, chapter 1 and appendix A.
 */
#include <pthread.h>

#include "base/bytes.h"
#include "cpu/soft/insn.h"
#include "cpu/x86.h"

enum { ROWS_MAX = 4096, CANDIDATES_MAX = 8192, INSN_BYTES_MAX = 15 };

static const struct insn_table *const tables[] = {
    &insn_table_integer,
    &insn_table_system,
    &insn_table_x87,
    &insn_table_vector,
};

/* What decoding needs to know of a row, worked out once from its operands. */
enum size_class { SIZE_OPERAND, SIZE_BYTE, SIZE_Y };
enum immediate { IMM_NONE, IMM_U8, IMM_S8, IMM_U16, IMM_Z, IMM_V, IMM_FAR, IMM_OFFSET };
enum {
    TRAIT_VVVV = 1 << 0,    /* uses VEX.vvvv */
    TRAIT_REG8 = 1 << 1,    /* insn.reg is a byte register */
    TRAIT_RM8 = 1 << 2,     /* insn.rm is a byte register */
    TRAIT_OPCODE = 1 << 3,  /* insn.rm is in the opcode */
    TRAIT_RM_RAX = 1 << 4,  /* insn.rm is RAX */
    TRAIT_REG_RAX = 1 << 5, /* insn.reg is RAX */
    TRAIT_VSIB = 1 << 6,    /* a vector index register */
};

struct row_traits {
    const struct insn_row *row;
    uint8_t size_class;
    uint8_t immediate[2];
    uint8_t bits; /* TRAIT_* */
};

static struct row_traits rows[ROWS_MAX];
static unsigned row_count;

/* Candidates of one opcode: a run in `candidates`. */
struct cell {
    uint16_t first;
    uint8_t count;
    bool modrm;
};
static struct cell cells[2][4][256];
static uint16_t candidates[CANDIDATES_MAX];

/* ---- The index ---- */

static enum immediate immediate_of(enum insn_operand operand) {
    switch (operand) {
    case OPERAND_Ib:
    case OPERAND_Lx: return IMM_U8;
    case OPERAND_Ibs:
    case OPERAND_Jb: return IMM_S8;
    case OPERAND_Iw: return IMM_U16;
    case OPERAND_Iz:
    case OPERAND_Jz: return IMM_Z;
    case OPERAND_Iv: return IMM_V;
    case OPERAND_Ap: return IMM_FAR;
    case OPERAND_Ob:
    case OPERAND_Ov: return IMM_OFFSET;
    default: return IMM_NONE;
    }
}

static bool operand_is_byte(enum insn_operand operand) {
    switch (operand) {
    case OPERAND_Eb:
    case OPERAND_Gb:
    case OPERAND_Zb:
    case OPERAND_AL:
    case OPERAND_Ob:
    case OPERAND_Xb:
    case OPERAND_Yb: return true;
    default: return false;
    }
}

static bool operand_is_y(enum insn_operand operand) {
    return operand == OPERAND_Ey || operand == OPERAND_Gy || operand == OPERAND_By ||
           operand == OPERAND_Ry;
}

static enum size_class size_class_of(const struct insn_row *row) {
    bool output = row->operand[0] == OPERAND_DX || row->operand[0] == OPERAND_Ib;
    if (operand_is_byte(row->operand[output ? 1 : 0]))
        return SIZE_BYTE;
    for (unsigned i = 0; i < 4; i++) {
        if (operand_is_y(row->operand[i]))
            return SIZE_Y;
    }
    return SIZE_OPERAND;
}

static unsigned trait_of(enum insn_operand operand, unsigned position) {
    switch (operand) {
    case OPERAND_By:
    case OPERAND_Hx:
    case OPERAND_Hdq:
    case OPERAND_Hqq:
    case OPERAND_Hss:
    case OPERAND_Hsd: return TRAIT_VVVV;
    case OPERAND_VSIB: return TRAIT_VSIB;
    case OPERAND_Eb: return TRAIT_RM8;
    case OPERAND_Gb: return TRAIT_REG8;
    case OPERAND_Zb: return TRAIT_OPCODE | TRAIT_RM8;
    case OPERAND_Zv: return TRAIT_OPCODE;
    case OPERAND_AL:
    case OPERAND_rAX: return position == 0 ? TRAIT_RM_RAX | TRAIT_REG_RAX : TRAIT_REG_RAX;
    default: return 0;
    }
}

static void describe(struct row_traits *traits, const struct insn_row *row) {
    unsigned immediates = 0;
    traits->row = row;
    traits->size_class = size_class_of(row);
    for (unsigned i = 0; i < 4; i++) {
        enum immediate immediate = immediate_of(row->operand[i]);
        if (immediate != IMM_NONE && immediates < 2)
            traits->immediate[immediates++] = immediate;
        traits->bits |= trait_of(row->operand[i], i);
    }
}

static bool row_covers(const struct row_traits *traits, unsigned encoding, unsigned map,
                       unsigned opcode) {
    const struct insn_row *row = traits->row;
    unsigned mask = traits->bits & TRAIT_OPCODE ? 0xf8 : 0xff;
    return row->encoding == encoding && row->map == map && (opcode & mask) == row->opcode;
}

/* Rows with a mandatory prefix first, then the others, each in table order. */
static void fill_cell(unsigned encoding, unsigned map, unsigned opcode, const uint16_t *list,
                      unsigned count, unsigned *used) {
    struct cell *cell = &cells[encoding][map][opcode];
    cell->first = (uint16_t)*used;
    for (unsigned any = 0; any < 2; any++) {
        for (unsigned i = 0; i < count; i++) {
            const struct row_traits *traits = &rows[list[i]];
            if (!row_covers(traits, encoding, map, opcode) ||
                (traits->row->prefix == PFX_ANY) != any || *used == CANDIDATES_MAX)
                continue;
            candidates[(*used)++] = list[i];
            cell->count++;
            cell->modrm = traits->row->form != FORM_NO_MODRM;
        }
    }
}

static void fill_map(unsigned encoding, unsigned map, unsigned *used) {
    static uint16_t list[ROWS_MAX]; /* the rows of this map: keeps the search short */
    unsigned count = 0;
    for (unsigned i = 0; i < row_count; i++) {
        if (rows[i].row->encoding == encoding && rows[i].row->map == map)
            list[count++] = (uint16_t)i;
    }
    for (unsigned opcode = 0; opcode < 256 && count != 0; opcode++)
        fill_cell(encoding, map, opcode, list, count, used);
}

static void build_index(void) {
    unsigned used = 0;
    for (unsigned t = 0; t < ARRAY_SIZE(tables); t++) {
        for (size_t i = 0; i < tables[t]->count && row_count < ROWS_MAX; i++)
            describe(&rows[row_count++], &tables[t]->rows[i]);
    }
    for (unsigned encoding = 0; encoding < 2; encoding++) {
        for (unsigned map = 0; map < 4; map++)
            fill_map(encoding, map, &used);
    }
}

void insn_index_init(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, build_index);
}

const struct insn_row *insn_row_of(const struct insn *insn) {
    return rows[insn->row].row;
}

const struct insn_row *insn_row_at(size_t n) {
    return n < row_count ? rows[n].row : NULL;
}

/* ---- One instruction ---- */

enum { REX_B = 1, REX_X = 2, REX_R = 4, REX_W = 8, REX = 0x40 };

struct decoder {
    struct insn *insn;
    const uint8_t *bytes;
    unsigned available;
    unsigned at;
    int stop; /* not 0: the answer is decided; see insn_decode */
    bool truncated;
    enum insn_mode mode;
    const uint64_t *features;
    /* prefixes */
    uint8_t rex; /* also made from VEX fields */
    bool operand_override, address_override;
    uint8_t repeat;     /* F2, F3 or 0: the last of them */
    uint8_t seg;        /* override, SEG_COUNT: none */
    uint8_t vex_prefix; /* enum insn_prefix */
    uint8_t encoding, map;
    bool rip_relative;
    bool undefined; /* a prefix that VEX does not stand; refused once all bytes are there */
};

/* Past the end every byte reads as 0; the caller looks at truncated and stop once at the end. */
static uint8_t fetch8(struct decoder *d) {
    if (d->at >= INSN_BYTES_MAX) {
        if (d->stop == 0)
            d->stop = -EXC_GP;
        return 0;
    }
    if (d->at >= d->available) {
        d->truncated = true;
        return 0;
    }
    return d->bytes[d->at++];
}

static uint64_t fetch(struct decoder *d, unsigned size) {
    uint64_t value = 0;
    if (size <= d->available - d->at) {
        value = load_le(d->bytes + d->at, size);
        d->at += size;
        return value;
    }
    for (unsigned i = 0; i < size; i++)
        value |= (uint64_t)fetch8(d) << (8 * i);
    return value;
}

static int64_t sign_extend(uint64_t value, unsigned size) {
    unsigned shift = 64 - 8 * size;
    return (int64_t)(value << shift) >> shift;
}

static bool done(const struct decoder *d) {
    return d->stop != 0 || d->truncated;
}

/* True when the byte was a legacy prefix and has been noted. */
static bool legacy_prefix(struct decoder *d, uint8_t byte) {
    bool long_mode = d->mode == INSN_MODE_64;
    switch (byte) {
    case 0x26: d->seg = long_mode ? d->seg : SEG_ES; return true;
    case 0x2e: d->seg = long_mode ? d->seg : SEG_CS; return true;
    case 0x36: d->seg = long_mode ? d->seg : SEG_SS; return true;
    case 0x3e: d->seg = long_mode ? d->seg : SEG_DS; return true;
    case 0x64: d->seg = SEG_FS; return true;
    case 0x65: d->seg = SEG_GS; return true;
    case 0x66: d->operand_override = true; return true;
    case 0x67: d->address_override = true; return true;
    case 0xf0: d->insn->flags |= I_LOCK; return true;
    case 0xf2:
    case 0xf3: d->repeat = byte; return true;
    default: return false;
    }
}

/* Returns the first opcode byte. A REX prefix counts only right before it. */
static uint8_t prefixes(struct decoder *d) {
    uint8_t byte = fetch8(d);
    while (!done(d)) {
        if (legacy_prefix(d, byte))
            d->rex = 0;
        else if (d->mode == INSN_MODE_64 && (byte & 0xf0) == REX)
            d->rex = byte;
        else
            break;
        byte = fetch8(d);
    }
    return byte;
}

/* C4 and C5 are LES and LDS outside 64-bit mode, unless the next byte would name a register. */
static bool is_vex(const struct decoder *d, uint8_t byte) {
    if (byte != 0xc4 && byte != 0xc5)
        return false;
    if (d->mode == INSN_MODE_64)
        return d->rex == 0; /* after REX they are LES and LDS here too: not there, once fetched */
    /* Where the next byte is still to come, reading it as VEX asks for it. */
    return d->at >= d->available || (d->bytes[d->at] & 0xc0) == 0xc0;
}

static void vex_prefix(struct decoder *d, uint8_t byte) {
    static const uint8_t mandatory[4] = {PFX_NONE, PFX_66, PFX_F3, PFX_F2};
    uint8_t p1 = fetch8(d), p2 = p1 & 0x7f, rxb = (p1 & 0x80) | 0x60, map = MAP_0F;
    bool prefixed = d->operand_override || d->repeat != 0 || (d->insn->flags & I_LOCK);
    if (byte == 0xc4) {
        p2 = fetch8(d);
        rxb = p1 & 0xe0;
        map = p1 & 0x1f;
    }
    d->undefined = prefixed;
    if ((map < MAP_0F || map > MAP_0F3A) && !done(d))
        d->stop = -EXC_UD;
    d->encoding = ENC_VEX;
    d->map = map & 3;
    d->vex_prefix = mandatory[p2 & 3];
    d->insn->vvvv = ~(p2 >> 3) & 15;
    if (p2 & 4)
        d->insn->flags |= I_VEX_L;
    d->rex = (uint8_t)((~rxb >> 5 & 7) | (p2 & 0x80 ? REX_W : 0));
    if (d->mode != INSN_MODE_64)
        d->rex &= REX_W;
}

static uint8_t legacy_map(struct decoder *d, uint8_t byte) {
    if (byte != 0x0f)
        return byte;
    d->map = MAP_0F;
    byte = fetch8(d);
    if (byte != 0x38 && byte != 0x3a)
        return byte;
    d->map = byte == 0x38 ? MAP_0F38 : MAP_0F3A;
    return fetch8(d);
}

static enum insn_prefix mandatory_prefix(const struct decoder *d) {
    if (d->encoding == ENC_VEX)
        return d->vex_prefix;
    if (d->repeat != 0)
        return d->repeat == 0xf3 ? PFX_F3 : PFX_F2;
    return d->operand_override ? PFX_66 : PFX_NONE;
}

static bool mode_fits(const struct decoder *d, uint32_t properties) {
    return !(properties & (d->mode == INSN_MODE_64 ? INSN_NO64 : INSN_ONLY64));
}

static bool modrm_fits(const struct decoder *d, const struct insn_row *row) {
    unsigned modrm = d->insn->modrm;
    if (row->form == FORM_NO_MODRM)
        return row->rm < 0 || row->rm == ((d->insn->opcode & 7) | (d->rex & REX_B) << 3);
    if (row->form == FORM_REG && modrm < 0xc0)
        return false;
    if (row->form == FORM_MEM && modrm >= 0xc0)
        return false;
    return (row->reg < 0 || row->reg == (modrm >> 3 & 7)) &&
           (row->rm < 0 || row->rm == (modrm & 7));
}

static bool prefix_fits(enum insn_prefix wanted, enum insn_prefix given) {
    if (wanted == PFX_NO_REP)
        return given == PFX_NONE || given == PFX_66;
    return wanted == PFX_ANY || wanted == given;
}

static bool row_fits(const struct decoder *d, const struct insn_row *row, enum insn_prefix prefix) {
    bool w = d->rex & REX_W, l = d->insn->flags & I_VEX_L;
    if (!prefix_fits(row->prefix, prefix) || !modrm_fits(d, row))
        return false;
    if ((row->vl != VL_ANY && (row->vl == VL_256) != l) ||
        (row->vw != VW_ANY && (row->vw == VW_1) != w))
        return false;
    return row->feature == FEAT_BASE || (d->features[row->feature / 64] >> (row->feature % 64) & 1);
}

/* other_mode: a row that this mode does not have. It still says how long the instruction is. */
static const struct row_traits *find_row(struct decoder *d, const struct cell *cell,
                                         bool other_mode) {
    enum insn_prefix prefix = mandatory_prefix(d);
    for (unsigned i = 0; i < cell->count; i++) {
        unsigned n = candidates[cell->first + i];
        if (mode_fits(d, rows[n].row->properties) != other_mode &&
            row_fits(d, rows[n].row, prefix)) {
            d->insn->row = (uint16_t)n;
            return &rows[n];
        }
    }
    return NULL;
}

/* ---- ModRM ---- */

static void memory_16(struct decoder *d, unsigned mod, unsigned rm) {
    static const uint8_t base[8] = {RBX, RBX, RBP, RBP, RSI, RDI, RBP, RBX};
    static const uint8_t index[8] = {RSI, RDI, RSI, RDI, REG_ZERO, REG_ZERO, REG_ZERO, REG_ZERO};
    struct insn *insn = d->insn;
    insn->base = base[rm];
    insn->index = index[rm];
    if (mod == 0 && rm == 6) {
        insn->base = REG_ZERO;
        insn->disp = sign_extend(fetch(d, 2), 2);
    } else if (mod != 0) {
        insn->disp = sign_extend(fetch(d, mod), mod); /* mod 1: 8 bits, 2: 16 bits */
    }
    insn->seg = insn->base == RBP ? SEG_SS : SEG_DS;
}

static void memory_sib(struct decoder *d, unsigned mod) {
    struct insn *insn = d->insn;
    uint8_t sib = fetch8(d);
    unsigned index = (sib >> 3 & 7) | (d->rex & REX_X ? 8 : 0);
    insn->scale = sib >> 6;
    insn->spare = (uint8_t)index;
    insn->index = index == RSP ? REG_ZERO : index;
    insn->base = (sib & 7) | (d->rex & REX_B ? 8 : 0);
    if (mod == 0 && (sib & 7) == RBP) {
        insn->base = REG_ZERO;
        insn->disp = sign_extend(fetch(d, 4), 4);
    }
}

static void memory_32(struct decoder *d, unsigned mod, unsigned rm) {
    struct insn *insn = d->insn;
    if (rm == RSP) {
        memory_sib(d, mod);
    } else if (mod == 0 && rm == RBP) {
        d->rip_relative = d->mode == INSN_MODE_64;
        insn->disp = sign_extend(fetch(d, 4), 4);
    } else {
        insn->base = (uint8_t)(rm | (d->rex & REX_B ? 8 : 0));
    }
    if (mod != 0)
        insn->disp = sign_extend(fetch(d, mod == 1 ? 1 : 4), mod == 1 ? 1 : 4);
    insn->seg = insn->base == RSP || insn->base == RBP ? SEG_SS : SEG_DS;
}

static void modrm(struct decoder *d) {
    struct insn *insn = d->insn;
    unsigned mod, rm;
    insn->modrm = fetch8(d);
    /* MOV to and from control and debug registers ignore mod: always a register. */
    if (d->encoding == ENC_LEGACY && d->map == MAP_0F && (insn->opcode & 0xfc) == 0x20)
        insn->modrm |= 0xc0;
    mod = insn->modrm >> 6;
    rm = insn->modrm & 7;
    insn->reg = (insn->modrm >> 3 & 7) | (d->rex & REX_R ? 8 : 0);
    insn->rm = (uint8_t)(rm | (d->rex & REX_B ? 8 : 0));
    if (mod == 3)
        return;
    insn->flags |= I_MEMORY;
    if (insn->address_size == 2)
        memory_16(d, mod, rm);
    else
        memory_32(d, mod, rm);
}

/* ---- After the row is known ---- */

static uint8_t operand_size(const struct decoder *d, const struct row_traits *traits) {
    uint32_t properties = traits->row->properties;
    bool override = d->operand_override && traits->row->prefix != PFX_66;
    if (traits->size_class == SIZE_BYTE)
        return 1;
    if (traits->size_class == SIZE_Y)
        return d->mode == INSN_MODE_64 && (d->rex & REX_W) ? 8 : 4;
    if (d->mode == INSN_MODE_64) {
        if ((properties & INSN_FORCE64) || (d->rex & REX_W))
            return 8;
        if (override)
            return 2;
        return properties & INSN_DEFAULT64 ? 8 : 4;
    }
    return (d->mode == INSN_MODE_32) != override ? 4 : 2;
}

static void immediate(struct decoder *d, enum immediate kind, unsigned shift) {
    struct insn *insn = d->insn;
    unsigned z = insn->size == 2 ? 2 : 4;
    switch (kind) {
    case IMM_NONE: break;
    case IMM_U8: insn->imm |= fetch(d, 1) << shift; break;
    case IMM_S8: insn->imm |= (uint64_t)sign_extend(fetch(d, 1), 1); break;
    case IMM_U16: insn->imm |= fetch(d, 2) << shift; break;
    case IMM_Z: insn->imm |= (uint64_t)sign_extend(fetch(d, z), z); break;
    case IMM_V: insn->imm |= fetch(d, insn->size); break;
    case IMM_FAR:
        insn->imm = fetch(d, z);
        insn->imm |= fetch(d, 2) << 32;
        break;
    case IMM_OFFSET:
        insn->disp = (int64_t)fetch(d, insn->address_size);
        insn->flags |= I_MEMORY;
        break;
    }
}

static void registers(struct decoder *d, const struct row_traits *traits) {
    struct insn *insn = d->insn;
    if (traits->bits & TRAIT_RM_RAX)
        insn->rm = RAX;
    if (traits->bits & TRAIT_REG_RAX)
        insn->reg = RAX;
    if (traits->bits & TRAIT_OPCODE)
        insn->rm = (insn->opcode & 7) | (d->rex & REX_B ? 8 : 0);
    if (d->rex != 0 || d->encoding == ENC_VEX)
        return;
    if ((traits->bits & TRAIT_REG8) && (insn->reg & ~3) == 4)
        insn->reg += 16;
    if ((traits->bits & TRAIT_RM8) && (insn->rm & ~3) == 4)
        insn->rm += 16;
}

/* The index register of a gather is a vector register: 4 is one like any other. */
static bool vsib_legal(struct insn *insn) {
    insn->index = REG_ZERO;
    return insn->address_size != 2 && (insn->modrm & 7) == RSP;
}

static bool lock_legal(const struct insn *insn, const struct insn_row *row) {
    if (!(insn->flags & I_LOCK))
        return true;
    return (row->properties & INSN_LOCK) && ((insn->flags & I_MEMORY) || row->form == FORM_REG);
}

static int finish(struct decoder *d, const struct row_traits *traits, uint64_t rip) {
    struct insn *insn = d->insn;
    insn->size = operand_size(d, traits);
    if (d->seg != SEG_COUNT)
        insn->seg = d->seg;
    immediate(d, traits->immediate[0], 0);
    immediate(d, traits->immediate[1], traits->immediate[0] == IMM_U16 ? 16 : 8);
    registers(d, traits);
    if (done(d))
        return 0;
    insn->length = (uint8_t)d->at;
    if (d->rip_relative)
        insn->disp = (int64_t)(rip + d->at + (uint64_t)insn->disp);
    insn->exec = traits->row->exec[!!(insn->flags & I_MEMORY)][__builtin_ctz(insn->size)];
    if (!lock_legal(insn, traits->row) || insn->exec == NULL)
        return -EXC_UD;
    if (d->encoding == ENC_VEX && !(traits->bits & TRAIT_VVVV) && insn->vvvv != 0)
        return -EXC_UD;
    if (d->mode != INSN_MODE_64)
        insn->vvvv &= 7; /* the top bit only counts where 1111b is demanded */
    if ((traits->bits & TRAIT_VSIB) && !vsib_legal(insn))
        return -EXC_UD;
    return (int)d->at;
}

static void operand_flags(struct decoder *d) {
    static const uint8_t sizes[3][2] = {{2, 4}, {4, 2}, {8, 4}}; /* by mode and 67h */
    struct insn *insn = d->insn;
    insn->address_size = sizes[d->mode][d->address_override];
    if (d->encoding == ENC_LEGACY && d->rex != 0)
        insn->flags |= I_REX;
    if (d->rex & REX_W)
        insn->flags |= I_REX_W;
    if (d->repeat != 0)
        insn->flags |= d->repeat == 0xf3 ? I_REP : I_REPNE;
}

static int decode(struct decoder *d, uint64_t rip) {
    const struct cell *cell;
    const struct row_traits *traits;
    uint8_t byte = prefixes(d);
    if (!done(d) && is_vex(d, byte)) {
        vex_prefix(d, byte);
        byte = fetch8(d);
    } else {
        byte = legacy_map(d, byte);
    }
    if (done(d))
        return 0;
    d->insn->opcode = byte;
    operand_flags(d);
    cell = &cells[d->encoding][d->map][byte];
    if (cell->modrm)
        modrm(d);
    if (done(d))
        return 0;
    traits = find_row(d, cell, false);
    if (traits != NULL && !d->undefined)
        return finish(d, traits, rip);
    /* Processors fetch all of an instruction before they refuse it. */
    if (traits == NULL)
        traits = find_row(d, cell, true);
    if (traits == NULL && cell->count != 0)
        traits = &rows[candidates[cell->first]];
    if (traits != NULL)
        finish(d, traits, rip);
    return -EXC_UD;
}

int insn_decode(struct insn *insn, const uint8_t *bytes, size_t available, uint64_t rip,
                enum insn_mode mode, const uint64_t *features) {
    struct decoder d = {
        .insn = insn,
        .bytes = bytes,
        .available = available < INSN_BYTES_MAX ? (unsigned)available : INSN_BYTES_MAX,
        .mode = mode,
        .features = features,
        .seg = SEG_COUNT,
    };
    int length;
    memset(insn, 0, sizeof *insn);
    insn->base = insn->index = REG_ZERO;
    insn->seg = SEG_DS;
    length = decode(&d, rip);
    if (d.stop != 0)
        length = d.stop;
    else if (d.truncated)
        length = 0;
    if (length <= 0)
        insn->length = (uint8_t)d.at;
    return length;
}
