/* The local APIC's registers and priorities (APM vol. 2, chapter 16): the vCPU's own thread. */
#include <stdlib.h>

#include "base/log.h"
#include "interrupt/apic.h"

enum {
    REG_ID = 0x20,
    REG_VERSION = 0x30,
    REG_TPR = 0x80,
    REG_APR = 0x90,
    REG_PPR = 0xa0,
    REG_EOI = 0xb0,
    REG_REMOTE_READ = 0xc0,
    REG_LDR = 0xd0,
    REG_DFR = 0xe0,
    REG_SVR = 0xf0,
    REG_ISR = 0x100,
    REG_TMR = 0x180,
    REG_IRR = 0x200,
    REG_ESR = 0x280,
    REG_ICR = 0x300,
    REG_ICR_HIGH = 0x310,
    REG_LVT = 0x320,
    REG_LVT_LAST = 0x370,
    REG_INITIAL = 0x380,
    REG_CURRENT = 0x390,
    REG_DIVIDE = 0x3e0,
    REG_SELF = 0x3f0,
};

/* Version 14h, six LVT entries, EOI broadcasts can be suppressed. */
enum { VERSION = 0x14 | (LVT_COUNT - 1) << 16 | 1 << 24 };
enum { SVR_WRITABLE = 0x13ff, SVR_RESET = 0xff, ICR_WRITABLE = 0xccfff };
#define BASE_ADDRESS UINT64_C(0x0000fffffffff000)
#define BASE_BITS    (BASE_ADDRESS | BASE_ENABLED | BASE_X2APIC | BASE_BSP)

static const uint32_t lvt_writable[LVT_COUNT] = {
    [LVT_TIMER] = 0x700ff, [LVT_THERMAL] = 0x107ff, [LVT_COUNTERS] = 0x107ff,
    [LVT_LINT0] = 0x1a7ff, [LVT_LINT1] = 0x1a7ff,   [LVT_ERROR] = 0x100ff,
};

/* ---- What waits ---- */

int lapic_ack(struct lapic *lapic) {
    int vector = lapic_external_waits(lapic) ? irqchip_pic_ack(lapic->chip) : -1;
    if (vector < 0) {
        vector = lapic_deliverable(lapic);
        if (vector >= 0) {
            uint32_t bit = UINT32_C(1) << (vector % 32);
            atomic_fetch_and(&lapic->irr[vector / 32], ~bit);
            lapic->isr[vector / 32] |= bit;
        }
    }
    lapic_refresh(lapic);
    return vector;
}

enum lapic_event lapic_take_event(struct lapic *lapic, uint8_t *vector) {
    static const struct {
        uint32_t signal;
        enum lapic_event event;
    } order[] = {{SIGNAL_INIT, LAPIC_INIT}, {SIGNAL_SIPI, LAPIC_SIPI}, {SIGNAL_NMI, LAPIC_NMI}};

    for (unsigned i = 0; i < ARRAY_SIZE(order); i++) {
        if (!(peek(&lapic->signals) & order[i].signal))
            continue;
        uint32_t before = atomic_fetch_and(&lapic->signals, ~order[i].signal);
        if (!(before & order[i].signal))
            continue;
        *vector = (uint8_t)(before >> SIGNAL_VECTOR_SHIFT);
        return order[i].event;
    }
    return LAPIC_NO_EVENT;
}

/* ---- Registers ---- */

static void end_of_interrupt(struct lapic *lapic) {
    int vector = lapic_highest(lapic->isr);
    if (vector < 0)
        return;
    uint32_t bit = UINT32_C(1) << (vector % 32);
    lapic->isr[vector / 32] &= ~bit;
    if ((peek(&lapic->tmr[vector / 32]) & bit) && !(peek(&lapic->svr) & SVR_EOI_SUPPRESS))
        irqchip_eoi(lapic->chip, (uint8_t)vector);
    lapic_refresh(lapic);
}

static void set_lvt(struct lapic *lapic, unsigned index, uint32_t value) {
    uint32_t before = peek(&lapic->lvt[index]);
    value &= lvt_writable[index];
    if (!(peek(&lapic->svr) & SVR_ENABLED))
        value |= LVT_MASKED;
    poke(&lapic->lvt[index], value);
    if (index == LVT_TIMER)
        lapic_timer_lvt_changed(lapic, before);
    lapic_refresh(lapic);
}

/* Turning the APIC off by software masks all local interrupts. */
static void set_svr(struct lapic *lapic, uint32_t value) {
    poke(&lapic->svr, value & SVR_WRITABLE);
    if (!(value & SVR_ENABLED))
        for (unsigned i = 0; i < LVT_COUNT; i++)
            poke(&lapic->lvt[i], peek(&lapic->lvt[i]) | LVT_MASKED);
    lapic_refresh(lapic);
}

static uint32_t id_register(const struct lapic *lapic) {
    return lapic_x2apic(lapic) ? lapic->id : lapic->id << 24;
}

static uint32_t read_register(const struct lapic *lapic, unsigned offset) {
    if (offset >= REG_ISR && offset < REG_ESR) {
        unsigned word = offset >> 4 & 7;
        if (offset < REG_TMR)
            return lapic->isr[word];
        return offset < REG_IRR ? peek(&lapic->tmr[word]) : peek(&lapic->irr[word]);
    }
    if (offset >= REG_LVT && offset <= REG_LVT_LAST)
        return peek(&lapic->lvt[(offset - REG_LVT) >> 4]);
    switch (offset) {
    case REG_ID: return id_register(lapic);
    case REG_VERSION: return VERSION;
    case REG_TPR: return peek(&lapic->tpr);
    case REG_PPR: return lapic_priority(lapic);
    case REG_LDR: return peek(&lapic->ldr);
    case REG_DFR: return peek(&lapic->dfr);
    case REG_SVR: return peek(&lapic->svr);
    case REG_ESR: return lapic->esr;
    case REG_ICR: return (uint32_t)lapic->icr;
    case REG_ICR_HIGH: return (uint32_t)(lapic->icr >> 32);
    case REG_INITIAL: return lapic->initial_count;
    case REG_CURRENT: return lapic_timer_current(lapic);
    case REG_DIVIDE: return lapic->divide;
    default: return 0;
    }
}

static void write_icr(struct lapic *lapic, uint64_t icr) {
    lapic->icr = icr & (UINT64_C(0xffffffff00000000) | ICR_WRITABLE);
    lapic_send_icr(lapic);
}

/* Registers that both modes write alike; others are ignored. */
static void write_register(struct lapic *lapic, unsigned offset, uint32_t value) {
    if (offset >= REG_LVT && offset <= REG_LVT_LAST) {
        set_lvt(lapic, (offset - REG_LVT) >> 4, value);
        return;
    }
    switch (offset) {
    case REG_TPR: lapic_set_tpr(lapic, value); break;
    case REG_EOI: end_of_interrupt(lapic); break;
    case REG_SVR: set_svr(lapic, value); break;
    case REG_ESR: lapic->esr = atomic_exchange(&lapic->errors, 0); break;
    case REG_INITIAL: lapic_timer_set_initial(lapic, value); break;
    case REG_DIVIDE: lapic_timer_set_divide(lapic, value); break;
    default: break;
    }
}

uint32_t lapic_mmio_read(struct lapic *lapic, unsigned offset) {
    if (!lapic_enabled(lapic) || lapic_x2apic(lapic))
        return UINT32_MAX;
    return read_register(lapic, offset);
}

void lapic_mmio_write(struct lapic *lapic, unsigned offset, uint32_t value) {
    if (!lapic_enabled(lapic) || lapic_x2apic(lapic))
        return;
    switch (offset) {
    case REG_LDR: poke(&lapic->ldr, value & 0xff000000); break;
    case REG_DFR: poke(&lapic->dfr, value | 0x0fffffff); break;
    case REG_ICR: write_icr(lapic, (lapic->icr & UINT64_C(0xffffffff00000000)) | value); break;
    case REG_ICR_HIGH: lapic->icr = (lapic->icr & 0xffffffff) | (uint64_t)value << 32; break;
    default: write_register(lapic, offset, value); break;
    }
}

/* ---- x2APIC: MSR 800h + (offset >> 4) ---- */

static bool x2apic_readable(unsigned offset) {
    if ((offset >= REG_ISR && offset < REG_ESR) || (offset >= REG_LVT && offset <= REG_LVT_LAST))
        return true;
    switch (offset) {
    case REG_ID:
    case REG_VERSION:
    case REG_TPR:
    case REG_PPR:
    case REG_LDR:
    case REG_SVR:
    case REG_ESR:
    case REG_ICR:
    case REG_INITIAL:
    case REG_CURRENT:
    case REG_DIVIDE: return true;
    default: return false;
    }
}

bool lapic_msr_read(struct lapic *lapic, uint32_t msr, uint64_t *value) {
    unsigned offset = (msr & 0xff) << 4;
    if (!lapic_x2apic(lapic) || !x2apic_readable(offset))
        return false;
    *value = offset == REG_ICR ? lapic->icr : read_register(lapic, offset);
    return true;
}

/* The bits that may be set in a write; 0 for what takes only zero. False: not writable. */
static bool x2apic_writable(unsigned offset, uint64_t *bits) {
    if (offset >= REG_LVT && offset <= REG_LVT_LAST) {
        /* Read-only status bits are accepted, as processors do. */
        *bits = lvt_writable[(offset - REG_LVT) >> 4] | 0x5000;
        return true;
    }
    switch (offset) {
    case REG_EOI:
    case REG_ESR: *bits = 0; return true;
    case REG_TPR:
    case REG_SELF: *bits = 0xff; return true;
    case REG_SVR: *bits = SVR_WRITABLE; return true;
    case REG_ICR: *bits = UINT64_C(0xffffffff00000000) | ICR_WRITABLE | 1 << 12; return true;
    case REG_INITIAL: *bits = 0xffffffff; return true;
    case REG_DIVIDE: *bits = 0xb; return true;
    default: return false;
    }
}

bool lapic_msr_write(struct lapic *lapic, uint32_t msr, uint64_t value) {
    unsigned offset = (msr & 0xff) << 4;
    uint64_t bits;

    if (!lapic_x2apic(lapic) || !x2apic_writable(offset, &bits) || (value & ~bits))
        return false;
    if (offset == REG_ICR) {
        write_icr(lapic, value);
    } else if (offset == REG_SELF) {
        struct apic_message message = {.vector = (uint8_t)value};
        lapic_accept(lapic, &message);
    } else {
        write_register(lapic, offset, (uint32_t)value);
    }
    return true;
}

/* ---- Base ---- */

static uint32_t x2apic_logical_id(unsigned id) {
    return (id >> 4) << 16 | UINT32_C(1) << (id & 15);
}

/* Off to x2APIC, and x2APIC back to xAPIC, are not allowed (APM vol. 2, 16.9). */
static bool transition_legal(uint64_t before, uint64_t after) {
    uint64_t both = BASE_ENABLED | BASE_X2APIC;
    if ((after & both) == BASE_X2APIC)
        return false;
    if ((before & both) == both)
        return (after & both) != BASE_ENABLED;
    return (after & both) != both || (before & BASE_ENABLED);
}

bool lapic_set_base(struct lapic *lapic, uint64_t value) {
    uint64_t before = peek(&lapic->base);

    if ((value & ~BASE_BITS) || !transition_legal(before, value))
        return false;
    value = (value & ~(uint64_t)BASE_BSP) | (before & BASE_BSP);
    if (!(value & BASE_ENABLED) && (before & BASE_ENABLED))
        lapic_reset(lapic, true);
    poke(&lapic->base, value);
    if (lapic_x2apic(lapic))
        poke(&lapic->ldr, x2apic_logical_id(lapic->id));
    lapic_refresh(lapic);
    return true;
}

/* ---- Life ---- */

/* What waits is found out anew, here and where this state goes. */
static void look_again(void *object) {
    atomic_fetch_or(&((struct lapic *)object)->signals, SIGNAL_POSTED);
}

static int after_load(void *object, struct error *err) {
    struct lapic *lapic = object;
    uint64_t base = peek(&lapic->base), modes = base & (BASE_ENABLED | BASE_X2APIC);
    if ((base & ~BASE_BITS) || modes == BASE_X2APIC)
        return error_set(err, -EINVAL, "local APIC %u: a base of %#llx cannot be", lapic->id,
                         (unsigned long long)base);
    look_again(lapic);
    return 0;
}

static const struct state_field lapic_fields[] = {
    STATE_FIELD(struct lapic, signals, 1, .keep = true),
    STATE_ARRAY(struct lapic, irr, 1),
    STATE_ARRAY(struct lapic, tmr, 1),
    STATE_ARRAY(struct lapic, isr, 1),
    STATE_FIELD(struct lapic, svr, 1, .reset = SVR_RESET),
    STATE_FIELD(struct lapic, ldr, 1),
    STATE_FIELD(struct lapic, dfr, 1, .reset = UINT32_MAX),
    STATE_FIELD(struct lapic, tpr, 1),
    STATE_ARRAY(struct lapic, lvt, 1, .reset = LVT_MASKED),
    STATE_FIELD(struct lapic, errors, 1),
    STATE_FIELD(struct lapic, esr, 1),
    STATE_FIELD(struct lapic, base, 1, .reset = APIC_DEFAULT_BASE | BASE_ENABLED),
    STATE_FIELD(struct lapic, icr, 1),
    STATE_FIELD(struct lapic, divide, 1),
    STATE_FIELD(struct lapic, initial_count, 1),
    STATE_FIELD(struct lapic, timer_deadline, 1, .reset = UINT64_MAX),
    STATE_FIELD(struct lapic, tsc_deadline, 1),
};
static const struct state_table lapic_table = STATE_TABLE(
    "lapic", 1, struct lapic, lapic_fields, .after_load = after_load, .before_save = look_again);

const struct state_table *lapic_state(void) {
    return &lapic_table;
}

/* Events that wait survive an INIT: a SIPI may already be there when the vCPU takes the INIT. */
void lapic_reset(struct lapic *lapic, bool init) {
    uint64_t base = peek(&lapic->base);

    state_reset(&lapic_table, lapic);
    if (init) {
        poke(&lapic->base, base);
        if (lapic_x2apic(lapic))
            poke(&lapic->ldr, x2apic_logical_id(lapic->id));
    } else {
        atomic_store(&lapic->signals, 0);
        if (lapic->id == 0) {
            /* Virtual wire, as firmware leaves it: the 8259s reach the bootstrap processor. */
            poke(&lapic->base, APIC_DEFAULT_BASE | BASE_ENABLED | BASE_BSP);
            poke(&lapic->lvt[LVT_LINT0], LVT_EXTINT);
        }
    }
    lapic_refresh(lapic);
}

int lapic_create(struct irqchip *chip, unsigned id, void (*wake)(void *context), void *context,
                 struct lapic **lapic_out, struct error *err) {
    if (id >= LAPIC_MAX || chip->lapics[id])
        return error_set(err, -EINVAL, "local APIC id %u: taken or above %d", id, LAPIC_MAX - 1);
    struct lapic *lapic = calloc(1, sizeof *lapic);
    if (!lapic)
        return error_set(err, -ENOMEM, "no memory for local APIC %u", id);
    lapic->chip = chip;
    lapic->id = id;
    lapic->wake = wake;
    lapic->wake_context = context;
    lapic_reset(lapic, false);

    lock_take(&chip->lock);
    chip->lapics[id] = lapic;
    if (id >= chip->lapic_limit)
        chip->lapic_limit = id + 1;
    lock_release(&chip->lock);
    *lapic_out = lapic;
    return 0;
}

void lapic_destroy(struct lapic *lapic) {
    if (!lapic)
        return;
    lock_take(&lapic->chip->lock);
    lapic->chip->lapics[lapic->id] = NULL;
    lock_release(&lapic->chip->lock);
    free(lapic);
}
