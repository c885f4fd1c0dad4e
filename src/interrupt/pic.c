#include "interrupt/pic.h"

enum { ICW1_INIT = 0x10, ICW1_SINGLE = 0x02, ICW1_ICW4 = 0x01 };
enum { ICW4_SPECIAL_NESTED = 0x10, ICW4_AUTO_EOI = 0x02 };
enum { OCW3_SELECT = 0x08, OCW3_POLL = 0x04, OCW3_READ = 0x02, OCW3_MASK_SET = 0x40 };
enum {
    OCW2_ROTATE_AUTO_CLEAR = 0,
    OCW2_EOI = 1,
    OCW2_EOI_SPECIFIC = 3,
    OCW2_ROTATE_AUTO_SET = 4,
    OCW2_ROTATE_EOI = 5,
    OCW2_SET_PRIORITY = 6,
    OCW2_ROTATE_EOI_SPECIFIC = 7,
};
enum { NONE = -1, SPURIOUS = 7, POLL_REQUEST = 0x80 };

/* Inputs that ISA devices drive by edges whatever ELCR says: 0, 1, 2 and 8, 13. */
static const uint8_t elcr_writable[PIC_COUNT] = {0xf8, 0xde};

/* The input of highest priority in `set`, as the distance from the highest one; 8 for none. */
static unsigned best_rank(const struct pic *pic, uint8_t set) {
    for (unsigned rank = 0; rank < 8; rank++)
        if (set & (1 << ((pic->highest + rank) & 7)))
            return rank;
    return 8;
}

/* The input that the chip asks to be served, NONE when there is none above what is in service. */
static int chip_request(const struct pic_pair *pair, unsigned chip) {
    const struct pic *pic = &pair->chip[chip];
    uint8_t requests = pic->irr;
    uint8_t serving = pic->isr;

    if (chip == PIC_MASTER) {
        requests &= ~(1 << PIC_CASCADE);
        if (chip_request(pair, PIC_SLAVE) != NONE)
            requests |= 1 << PIC_CASCADE;
        if (pic->fully_nested_special)
            serving &= ~(1 << PIC_CASCADE);
    }
    if (pic->special_mask)
        serving &= ~pic->imr;
    unsigned rank = best_rank(pic, requests & ~pic->imr);
    return rank < best_rank(pic, serving) ? (int)((pic->highest + rank) & 7) : NONE;
}

/* The CPU (or a poll) takes an input: out of the IRR, into the ISR. */
static void take(struct pic *pic, unsigned input) {
    uint8_t bit = (uint8_t)(1u << (input & 7));
    if (!(pic->elcr & bit))
        pic->irr &= ~bit;
    if (!pic->auto_eoi)
        pic->isr |= bit;
    else if (pic->rotate_auto_eoi)
        pic->highest = (input + 1) & 7;
}

void pic_set_line(struct pic_pair *pair, unsigned irq, bool level) {
    if (irq >= 16 || irq == PIC_CASCADE)
        return;
    struct pic *pic = &pair->chip[irq / 8];
    uint8_t bit = 1 << (irq & 7);
    bool rises = level && !(pic->lines & bit);

    pic->lines = level ? pic->lines | bit : pic->lines & ~bit;
    if (pic->elcr & bit)
        pic->irr = level ? pic->irr | bit : pic->irr & ~bit;
    else if (rises)
        pic->irr |= bit;
}

bool pic_output(const struct pic_pair *pair) {
    return chip_request(pair, PIC_MASTER) != NONE;
}

uint8_t pic_acknowledge(struct pic_pair *pair) {
    struct pic *master = &pair->chip[PIC_MASTER];
    struct pic *slave = &pair->chip[PIC_SLAVE];
    int input = chip_request(pair, PIC_MASTER);

    if (input == NONE)
        return master->vector_base + SPURIOUS;
    int slave_input = input == PIC_CASCADE ? chip_request(pair, PIC_SLAVE) : NONE;
    take(master, input);
    if (input != PIC_CASCADE)
        return master->vector_base + input;
    take(slave, slave_input);
    return slave->vector_base + slave_input;
}

static uint8_t poll(struct pic_pair *pair, unsigned chip) {
    struct pic *pic = &pair->chip[chip];
    int input = chip_request(pair, chip);

    pic->poll = 0;
    if (input == NONE)
        return SPURIOUS;
    take(pic, input);
    return POLL_REQUEST | input;
}

uint8_t pic_read(struct pic_pair *pair, unsigned chip, bool odd) {
    struct pic *pic = &pair->chip[chip];
    if (pic->poll)
        return poll(pair, chip);
    if (odd)
        return pic->imr;
    return pic->read_isr ? pic->isr : pic->irr;
}

static void write_icw1(struct pic *pic, uint8_t value) {
    pic->irr = pic->lines & pic->elcr;
    pic->isr = 0;
    pic->imr = 0;
    pic->highest = 0;
    pic->auto_eoi = 0;
    pic->rotate_auto_eoi = 0;
    pic->special_mask = 0;
    pic->fully_nested_special = 0;
    pic->read_isr = 0;
    pic->poll = 0;
    pic->single = (value & ICW1_SINGLE) != 0;
    pic->with_icw4 = (value & ICW1_ICW4) != 0;
    pic->expects = PIC_ICW2;
}

static void write_ocw3(struct pic *pic, uint8_t value) {
    if (value & OCW3_POLL)
        pic->poll = 1;
    if (value & OCW3_READ)
        pic->read_isr = value & 1;
    if (value & OCW3_MASK_SET)
        pic->special_mask = (value >> 5) & 1;
}

static void end_of_interrupt(struct pic *pic, unsigned input, bool rotate) {
    pic->isr &= ~(1 << input);
    if (rotate)
        pic->highest = (input + 1) & 7;
}

/* A non-specific EOI ends what has the highest priority in service. */
static void end_of_best(struct pic *pic, bool rotate) {
    unsigned rank = best_rank(pic, pic->special_mask ? pic->isr & ~pic->imr : pic->isr);
    if (rank < 8)
        end_of_interrupt(pic, (pic->highest + rank) & 7, rotate);
}

static void write_ocw2(struct pic *pic, uint8_t value) {
    unsigned input = value & 7;
    switch (value >> 5) {
    case OCW2_ROTATE_AUTO_CLEAR: pic->rotate_auto_eoi = 0; break;
    case OCW2_ROTATE_AUTO_SET: pic->rotate_auto_eoi = 1; break;
    case OCW2_EOI: end_of_best(pic, false); break;
    case OCW2_ROTATE_EOI: end_of_best(pic, true); break;
    case OCW2_EOI_SPECIFIC: end_of_interrupt(pic, input, false); break;
    case OCW2_ROTATE_EOI_SPECIFIC: end_of_interrupt(pic, input, true); break;
    case OCW2_SET_PRIORITY: pic->highest = (input + 1) & 7; break;
    default: break; /* 2: no operation */
    }
}

static void write_even(struct pic *pic, uint8_t value) {
    if (value & ICW1_INIT)
        write_icw1(pic, value);
    else if (value & OCW3_SELECT)
        write_ocw3(pic, value);
    else
        write_ocw2(pic, value);
}

static void write_odd(struct pic *pic, uint8_t value) {
    switch (pic->expects) {
    case PIC_ICW2:
        pic->vector_base = value & 0xf8;
        pic->expects = !pic->single ? PIC_ICW3 : pic->with_icw4 ? PIC_ICW4 : PIC_OCW1;
        break;
    case PIC_ICW3: /* the cascade is wired to input 2, whatever the guest says */
        pic->expects = pic->with_icw4 ? PIC_ICW4 : PIC_OCW1;
        break;
    case PIC_ICW4:
        pic->auto_eoi = (value & ICW4_AUTO_EOI) != 0;
        pic->fully_nested_special = (value & ICW4_SPECIAL_NESTED) != 0;
        pic->expects = PIC_OCW1;
        break;
    default: pic->imr = value; break;
    }
}

void pic_write(struct pic_pair *pair, unsigned chip, bool odd, uint8_t value) {
    if (odd)
        write_odd(&pair->chip[chip], value);
    else
        write_even(&pair->chip[chip], value);
}

uint8_t pic_read_elcr(const struct pic_pair *pair, unsigned chip) {
    return pair->chip[chip].elcr;
}

void pic_write_elcr(struct pic_pair *pair, unsigned chip, uint8_t value) {
    struct pic *pic = &pair->chip[chip];
    pic->elcr = value & elcr_writable[chip];
    pic->irr = (pic->irr & ~pic->elcr) | (pic->lines & pic->elcr);
}

static const struct state_field pic_fields[] = {
    STATE_FIELD(struct pic, irr, 1),
    STATE_FIELD(struct pic, isr, 1),
    STATE_FIELD(struct pic, imr, 1),
    STATE_FIELD(struct pic, lines, 1),
    STATE_FIELD(struct pic, elcr, 1),
    STATE_FIELD(struct pic, vector_base, 1),
    STATE_FIELD(struct pic, expects, 1),
    STATE_FIELD(struct pic, with_icw4, 1),
    STATE_FIELD(struct pic, single, 1),
    STATE_FIELD(struct pic, auto_eoi, 1),
    STATE_FIELD(struct pic, rotate_auto_eoi, 1),
    STATE_FIELD(struct pic, special_mask, 1),
    STATE_FIELD(struct pic, fully_nested_special, 1),
    STATE_FIELD(struct pic, read_isr, 1),
    STATE_FIELD(struct pic, poll, 1),
    STATE_FIELD(struct pic, highest, 1),
};

static int pic_after_load(void *object, struct error *err) {
    struct pic *pic = object;
    if (pic->highest > 7 || pic->expects > PIC_ICW4)
        return error_set(err, -EINVAL, "8259: a priority or command word that does not exist");
    return 0;
}

static const struct state_table pic_state =
    STATE_TABLE("8259", 1, struct pic, pic_fields, .after_load = pic_after_load);

static const struct state_field pair_fields[] = {
    STATE_NESTED_ARRAY(struct pic_pair, chip, &pic_state, 1),
};
const struct state_table pic_pair_state = STATE_TABLE("8259s", 1, struct pic_pair, pair_fields);
