/*
 * Where a translation goes on at a known rip: jumps and calls that are patched
 * once there is code for it (link.c), and what is noted about them behind the
 * code. Until then they call a stub. Between pages a guard comes first.
 */
#include "base/bytes.h"
#include "cpu/soft/jit/translation.h"

static const uint8_t *stub_of(const struct translation *t, const struct exit *exit) {
    return exit->flags_saved ? t->jit->exit : t->jit->exit_host;
}

static struct exit *new_exit(struct translation *t, uint64_t rip, enum exit_kind kind) {
    int64_t distance = (int64_t)(rip - t->block->rip);
    bool near = t->mode != INSN_MODE_64 || distance == (int32_t)distance;
    if (t->exit_count >= ARRAY_SIZE(t->exits) || !near) {
        t->out.full = true;
        return &t->exits[0];
    }
    struct exit *exit = &t->exits[t->exit_count++];
    *exit = (struct exit){
        .rip = rip,
        .kind = kind,
        .side = side_of_block(t->block),
        .flags_saved = t->flags & FLAGS_SAVED,
        .guarded = !lower_is_same_page(t, rip),
    };
    return exit;
}

static void emit_exit(struct translation *t, struct exit *exit, unsigned condition) {
    struct emitter *e = &t->out;
    if (exit->kind == EXIT_JCC) {
        exit->field = emit_jcc(e, condition);
    } else if (exit->guarded) {
        exit->field = exit->kind == EXIT_CALL ? emit_call(e) : emit_jmp(e);
    } else {
        exit->field = emit_call(e);
        emit_aim(exit->field, stub_of(t, exit));
        exit->back = e->at;
    }
}

void lower_exit(struct translation *t, uint64_t rip, enum exit_kind kind, unsigned condition) {
    emit_exit(t, new_exit(t, rip, kind), condition);
}

void lower_goto_side(struct translation *t, uint64_t rip, unsigned side) {
    struct exit *exit = new_exit(t, rip, EXIT_JMP);
    exit->side = side;
    emit_exit(t, exit, 0);
}

void lower_plainly_if(struct translation *t, unsigned condition, uint64_t rip) {
    struct exit *exit = new_exit(t, rip, EXIT_JCC);
    exit->plain = true;
    emit_exit(t, exit, condition);
}

void lower_poll(struct translation *t, uint64_t rip) {
    if (!lower_is_backward(t, rip))
        return;
    if (t->dense) {
        emit_aim(emit_call(&t->out), t->jit->poll);
        return;
    }
    emit_group1_gs(&t->out, 7, 4, CPU_AT(request), 0);
    struct exit *exit = new_exit(t, rip, EXIT_JCC);
    exit->polls = true;
    exit->guarded = false;
    emit_exit(t, exit, COND_NE);
}

/* ---- Behind the block ---- */

/* cmp dword gs:[map], number; je target. Both are patched by jit_link. */
static void emit_guard(struct translation *t, struct exit *exit) {
    struct emitter *e = &t->out;
    int32_t entry = (int32_t)(jit_map_slot(exit->rip) * sizeof t->cpu->jit.code_map[0][0]);
    emit_group1_gs(e, 7, 4, CPU_AT(jit.code_map) + entry, -1);
    exit->field = emit_jcc(e, COND_E);
    emit_aim(exit->field, e->at);
}

static void emit_behind(struct translation *t, struct exit *exit) {
    struct emitter *e = &t->out;
    if (exit->back != NULL)
        return;
    emit_aim(exit->field, e->at);
    if (exit->guarded)
        emit_guard(t, exit);
    if (exit->guarded && exit->flags_saved) {
        emit8(e, 0x68); /* PUSH imm32 */
        exit->number = e->at;
        emit32(e, 0);
        emit_aim(emit_jmp(e), t->jit->unguarded);
    } else {
        t->out.full |= exit->guarded; /* whoever leaves a page has saved them */
        emit_aim(emit_call(e), stub_of(t, exit));
    }
    exit->back = e->at;
}

static void emit_constants(struct translation *t) {
    for (unsigned i = 0; i < t->constant_count && emit_has_room(&t->out); i++) {
        emit_aim(t->constants[i].field, t->out.at);
        relocate(t, t->out.at, RELOCATE_ADDRESS);
        emit64(&t->out, t->constants[i].value);
    }
}

void lower_exits(struct translation *t) {
    struct emitter *e = &t->out;
    for (unsigned i = 0; i < t->exit_count && emit_has_room(e); i++)
        emit_behind(t, &t->exits[i]);
    emit_constants(t);
}
