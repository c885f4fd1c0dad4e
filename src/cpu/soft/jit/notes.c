/*
 * What is noted about a translation: laid out once its code is whole, so that
 * it takes what it needs (struct jit_block).
 */
#include "base/bytes.h"
#include "cpu/soft/jit/translation.h"

static size_t exits_size(const struct translation *t) {
    size_t size = 0;
    for (unsigned i = 0; i < t->exit_count; i++)
        size += jit_exit_size(t->exits[i].guarded);
    return size;
}

/* Where they go, or NULL. */
static struct jit_block *reserve(struct translation *t, size_t size) {
    struct code_memory *memory = &t->jit->memory;
    uint8_t *end = memory->writable + memory->size - memory->at_end;
    if (t->dense)
        emit_align(&t->out, JIT_NOTES_ALIGN);
    uint8_t *at = t->dense ? t->out.at : end - size;
    if (end - t->out.at < (ptrdiff_t)size)
        return NULL;
    if (t->dense)
        t->out.at += size;
    else
        memory->at_end += size;
    memory->used = (size_t)(t->out.at - memory->writable);
    return (struct jit_block *)(void *)at;
}

static void note_sites(struct translation *t, uint32_t first) {
    struct jit_site *sites = jit_sites(t->made);
    enum { WORDS = sizeof *sites / JIT_WORD };
    for (unsigned i = 0; i < t->site_count; i++) {
        sites[i] = t->sites[i];
        sites[i].start = (uint16_t)(sizeof *t->made / JIT_WORD + i * WORDS);
    }
    for (unsigned i = 0; i < t->site_use_count; i++) {
        uint32_t number = first + t->site_uses[i].site * WORDS;
        memcpy(t->site_uses[i].field, &number, sizeof number);
    }
}

static void note_exits(struct translation *t) {
    struct jit_exit *note = jit_exits(t->made);
    for (unsigned i = 0; i < t->exit_count; i++, note = jit_exit_next(note)) {
        const struct exit *exit = &t->exits[i];
        const struct jit_exit new = {
            .field = (uint16_t)(exit->field - t->start),
            .back = (uint16_t)(exit->back - t->start),
            .rip = (int32_t)(exit->rip - t->block->rip),
            .kind = exit->kind & 3,
            .side = exit->side & 3,
            .flags_saved = exit->flags_saved,
            .guarded = exit->guarded,
            .polls = exit->polls,
            .plain = exit->plain,
        };
        memcpy(note, &new, jit_exit_size(exit->guarded));
        if (exit->number == NULL)
            continue;
        uint32_t number = jit_number(t->jit, note);
        memcpy(exit->number, &number, sizeof number);
        note->start = (uint16_t)(((uint8_t *)note - (uint8_t *)t->made) / JIT_WORD);
    }
}

static void append(struct translation *t) {
    struct jit *jit = t->jit;
    uint32_t number = jit_number(jit, t->made);
    if (jit->last != 0)
        ((struct jit_block *)jit_at(jit, jit->last))->next = number;
    else
        jit->first = number;
    jit->last = number;
    jit->made++;
}

bool notes_commit(struct translation *t) {
    size_t before = sizeof t->header + t->site_count * sizeof t->sites[0] + exits_size(t);
    size_t relocations = t->relocation_count * sizeof t->relocations[0];
    struct jit_block *made = reserve(t, (size_t)round_up(before + relocations, JIT_NOTES_ALIGN));
    if (made == NULL)
        return false;
    t->header.code = (uint32_t)(t->start - t->jit->memory.writable);
    t->header.site_count = (uint16_t)t->site_count;
    t->header.exit_count = (uint8_t)t->exit_count;
    t->header.relocations = (uint16_t)before;
    t->header.relocation_count = (uint16_t)t->relocation_count;
    *made = t->header;
    t->made = made;
    note_sites(t, jit_number(t->jit, jit_sites(made)));
    note_exits(t);
    memcpy((uint8_t *)made + before, t->relocations, relocations);
    append(t);
    return true;
}
