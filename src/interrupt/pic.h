/*
 * The 8259A pair: logic without locks or ports; irqchip.c holds its lock
 * around every call. Source: Intel 8259A data sheet; ELCR from the PIIX/ICH
 * data sheets.
 */
#ifndef LODGE_INTERRUPT_PIC_H
#define LODGE_INTERRUPT_PIC_H

#include <stdbool.h>
#include <stdint.h>

#include "base/state.h"

struct pic {
    uint8_t irr;         /* latched requests */
    uint8_t isr;         /* in service */
    uint8_t imr;         /* masked */
    uint8_t lines;       /* the inputs as they are now */
    uint8_t elcr;        /* 1: level-triggered */
    uint8_t vector_base; /* ICW2 */
    uint8_t expects;     /* enum pic_expects: which command word the odd port takes next */
    uint8_t with_icw4;
    uint8_t single; /* ICW1.SNGL: no ICW3 follows */
    uint8_t auto_eoi;
    uint8_t rotate_auto_eoi;
    uint8_t special_mask;
    uint8_t fully_nested_special;
    uint8_t read_isr; /* OCW3: the even port reads the ISR, else the IRR */
    uint8_t poll;     /* OCW3: the next read is a poll */
    uint8_t highest;  /* the input that has the highest priority */
};

enum pic_expects { PIC_OCW1, PIC_ICW2, PIC_ICW3, PIC_ICW4 };
enum { PIC_MASTER, PIC_SLAVE, PIC_COUNT, PIC_CASCADE = 2 };

struct pic_pair {
    struct pic chip[PIC_COUNT];
};

extern const struct state_table pic_pair_state;

/* Input 0 to 15. The cascade input 2 is not for devices and ignored. */
void pic_set_line(struct pic_pair *pair, unsigned irq, bool level);

/* INTR of the master. */
bool pic_output(const struct pic_pair *pair);

/* The acknowledge cycle: the vector; a spurious one (input 7) when the request went away. */
uint8_t pic_acknowledge(struct pic_pair *pair);

/* Ports 20h/21h (chip 0) and A0h/A1h (chip 1); odd is the port's lowest bit. */
uint8_t pic_read(struct pic_pair *pair, unsigned chip, bool odd);
void pic_write(struct pic_pair *pair, unsigned chip, bool odd, uint8_t value);

/* Ports 4D0h and 4D1h. */
uint8_t pic_read_elcr(const struct pic_pair *pair, unsigned chip);
void pic_write_elcr(struct pic_pair *pair, unsigned chip, uint8_t value);

#endif
