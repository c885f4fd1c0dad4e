/* Instructions of the system: what C does for them, it does in light calls. */
#include "cpu/soft/jit/translation.h"

/* Not where the block put another handler in its place: privilege, breakpoints. */
bool is_light(const struct insn *insn) {
    const struct insn_row *row = insn_row_of(insn);
    if (lowering_of(insn)->kind != LOWER_LIGHT)
        return false;
    for (unsigned i = 0; i < 8; i++)
        if (row->exec[i / 4][i % 4] == insn->exec)
            return true;
    return false;
}

void lower_light(struct translation *t) {
    if (t->live[t->index] == 0)
        flags_not_needed(t);
    flags_to_saved(t);
    t->recipe = RECIPE_NONE;
    emit_to_stub(&t->out, lower_site(t), t->jit->light);
    t->flags = FLAGS_SAVED;
    t->temp_group = NO_GROUP;
}
