/*
 * Messages to local APICs: who is meant, and what each does with it. Runs on
 * any thread; touches only the fields of a local APIC that are atomic.
 */
#include "base/log.h"
#include "interrupt/apic.h"

enum { FIRST_LEGAL_VECTOR = 16 };

/*
 * Sets signal bits and wakes the vCPU. A signal that was there already needs
 * no second wake: the vCPU has not looked since, and whoever set it wakes it.
 */
static void raise_signal(struct lapic *lapic, uint32_t bits) {
    uint32_t before = atomic_fetch_or(&lapic->signals, bits);
    if ((before & bits) != bits)
        lapic->wake(lapic->wake_context);
}

void lapic_error(struct lapic *lapic, uint32_t bits) {
    atomic_fetch_or(&lapic->errors, bits);
    /* An error interrupt with an illegal vector must not report itself for ever. */
    if ((peek(&lapic->lvt[LVT_ERROR]) & 0xff) >= FIRST_LEGAL_VECTOR)
        lapic_local(lapic, LVT_ERROR);
}

static void accept_vector(struct lapic *lapic, uint8_t vector, bool level) {
    unsigned word = vector / 32;
    uint32_t bit = UINT32_C(1) << (vector % 32);

    if (!lapic_enabled(lapic) || !(peek(&lapic->svr) & SVR_ENABLED))
        return;
    if (vector < FIRST_LEGAL_VECTOR) {
        lapic_error(lapic, ESR_RECEIVE_VECTOR);
        return;
    }
    if (level)
        atomic_fetch_or(&lapic->tmr[word], bit);
    else
        atomic_fetch_and(&lapic->tmr[word], ~bit);
    atomic_fetch_or(&lapic->irr[word], bit);
    raise_signal(lapic, SIGNAL_POSTED);
}

/* An INIT makes an earlier SIPI void; a SIPI carries its vector in the same word. */
static void accept_init(struct lapic *lapic) {
    atomic_fetch_and(&lapic->signals, ~(uint32_t)SIGNAL_SIPI);
    raise_signal(lapic, SIGNAL_INIT);
}

static void accept_sipi(struct lapic *lapic, uint8_t vector) {
    uint32_t before = peek(&lapic->signals);
    uint32_t after;
    do {
        after = (before & ~(UINT32_C(0xff) << SIGNAL_VECTOR_SHIFT)) | SIGNAL_SIPI |
                (uint32_t)vector << SIGNAL_VECTOR_SHIFT;
    } while (!atomic_compare_exchange_weak(&lapic->signals, &before, after));
    lapic->wake(lapic->wake_context);
}

void lapic_accept(struct lapic *lapic, const struct apic_message *message) {
    switch (message->mode) {
    case DELIVER_FIXED:
    case DELIVER_LOWEST: accept_vector(lapic, message->vector, message->level); break;
    case DELIVER_NMI: raise_signal(lapic, SIGNAL_NMI); break;
    case DELIVER_INIT: accept_init(lapic); break;
    case DELIVER_SIPI: accept_sipi(lapic, message->vector); break;
    default: log_guest("interrupt message of delivery mode %u dropped", message->mode); break;
    }
}

void lapic_local(struct lapic *lapic, unsigned lvt) {
    uint32_t entry = peek(&lapic->lvt[lvt]);
    struct apic_message message = {.vector = (uint8_t)entry};

    if (entry & LVT_MASKED)
        return;
    message.mode = (entry & LVT_MODE) >> 8;
    if (lvt == LVT_TIMER || lvt == LVT_ERROR)
        message.mode = DELIVER_FIXED;
    if (message.mode == DELIVER_FIXED || message.mode == DELIVER_NMI)
        lapic_accept(lapic, &message);
}

void lapic_lint0(struct lapic *lapic, bool level) {
    if (lapic_takes_external(lapic))
        raise_signal(lapic, SIGNAL_POSTED);
    else if (level && lapic_enabled(lapic))
        lapic_local(lapic, LVT_LINT0);
}

/* ---- Who is meant (APM vol. 2, 16.6.1 and 16.14) ---- */

static bool matches_logical(const struct lapic *lapic, uint32_t destination) {
    uint32_t ldr = peek(&lapic->ldr);
    if (lapic_x2apic(lapic))
        return destination >> 16 == ldr >> 16 && (destination & ldr & 0xffff);

    uint8_t mine = ldr >> 24;
    bool flat = peek(&lapic->dfr) >> 28 == 0xf;
    if (flat)
        return destination & mine;
    return (destination & 0xf0) == (mine & 0xf0) && (destination & mine & 0x0f);
}

static bool is_meant(const struct lapic *lapic, const struct apic_message *message) {
    if (message->broadcast)
        return true;
    return message->logical ? matches_logical(lapic, message->destination)
                            : message->destination == lapic->id;
}

/* Of those meant, the enabled one with the lowest task priority; the lowest id among equals. */
static struct lapic *lowest_priority(struct irqchip *chip, const struct apic_message *message) {
    struct lapic *best = NULL;
    for (unsigned id = 0; id < chip->lapic_limit; id++) {
        struct lapic *lapic = chip->lapics[id];
        if (!lapic || !is_meant(lapic, message) || !(peek(&lapic->svr) & SVR_ENABLED))
            continue;
        if (!best || peek(&lapic->tpr) < peek(&best->tpr))
            best = lapic;
    }
    return best;
}

void apic_deliver(struct irqchip *chip, const struct apic_message *message,
                  const struct lapic *except) {
    if (message->mode == DELIVER_LOWEST) {
        struct lapic *lapic = lowest_priority(chip, message);
        if (lapic)
            lapic_accept(lapic, message);
        return;
    }
    for (unsigned id = 0; id < chip->lapic_limit; id++) {
        struct lapic *lapic = chip->lapics[id];
        if (lapic && lapic != except && is_meant(lapic, message))
            lapic_accept(lapic, message);
    }
}

/* ---- The interrupt command register ---- */

enum { TO_DESTINATION, TO_SELF, TO_ALL, TO_OTHERS };
enum { ICR_LOGICAL = 1 << 11, ICR_ASSERT = 1 << 14, ICR_LEVEL = 1 << 15 };

static bool icr_legal(struct lapic *lapic, const struct apic_message *message) {
    bool vectored = message->mode == DELIVER_FIXED || message->mode == DELIVER_LOWEST;
    if (!vectored || message->vector >= FIRST_LEGAL_VECTOR)
        return true;
    lapic_error(lapic, ESR_SEND_VECTOR);
    return false;
}

void lapic_send_icr(struct lapic *lapic) {
    uint64_t icr = lapic->icr;
    struct apic_message message = {
        .destination = (uint32_t)(icr >> (lapic_x2apic(lapic) ? 32 : 56)),
        .logical = icr & ICR_LOGICAL,
        .mode = icr >> 8 & 7,
        .vector = (uint8_t)icr,
    };
    unsigned shorthand = icr >> 18 & 3;

    message.broadcast =
        shorthand >= TO_ALL ||
        message.destination == (lapic_x2apic(lapic) ? UINT32_MAX : (uint32_t)LAPIC_BROADCAST);
    if (message.mode == DELIVER_INIT && (icr & ICR_LEVEL) && !(icr & ICR_ASSERT))
        return; /* INIT level de-assert: a bus protocol of old */
    if (!icr_legal(lapic, &message))
        return;
    if (shorthand == TO_SELF)
        lapic_accept(lapic, &message);
    else
        apic_deliver(lapic->chip, &message, shorthand == TO_OTHERS ? lapic : NULL);
}
