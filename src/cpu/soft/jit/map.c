#include "cpu/soft/jit/map.h"

#include "cpu/soft/jit/translation.h"

static struct jit_block *block_at_number(const struct jit *jit, uint32_t number) {
    return number != 0 ? jit_at(jit, number) : NULL;
}

static size_t end_of(const struct jit *jit, const struct jit_block *made) {
    const struct jit_block *next = block_at_number(jit, made->next);
    return next != NULL ? next->code : jit->memory.used;
}

static void tell(const struct jit *jit, const struct jit_block *made) {
    const struct code_listener *listener = jit->map.listener;
    listener->made(listener->context, (uintptr_t)jit_code(jit, made, 0),
                   end_of(jit, made) - made->code, made->rip, made->key >> 2 & 3);
}

void jit_map_add(struct soft_cpu *cpu, const struct jit_block *made) {
    struct jit *jit = cpu->jit.jit;
    size_t end = end_of(jit, made);
    size_t grain = ((size_t)made->code + JIT_MAP_GRAIN - 1) / JIT_MAP_GRAIN;
    if (jit->made == 1) /* those that begin with stubs */
        grain = 0;
    for (; grain * JIT_MAP_GRAIN < end; grain++)
        jit->map.starts[grain] = jit_number(jit, made);
    if (jit->map.listener != NULL)
        tell(jit, made);
}

void jit_map_clear(struct soft_cpu *cpu) {
    struct jit *jit = cpu->jit.jit;
    if (jit->map.listener != NULL)
        jit->map.listener->dropped(jit->map.listener->context);
}

enum jit_where jit_find_host(const struct soft_cpu *cpu, uintptr_t host, uint64_t *rip,
                             unsigned *cpl) {
    const struct jit *jit = cpu->jit.jit;
    if (jit == NULL || host - (uintptr_t)jit->memory.executable >= jit->memory.size)
        return JIT_WHERE_OUTSIDE;
    size_t offset = host - (uintptr_t)jit->memory.executable;
    if (offset < jit->stubs_end || offset >= jit->memory.used)
        return JIT_WHERE_STUBS;
    const struct jit_block *made = jit_map_find(jit, offset);
    *rip = made->rip;
    *cpl = made->key >> 2 & 3;
    return JIT_WHERE_CODE;
}

int soft_listen_code(struct vcpu *vcpu, const struct code_listener *listener, struct error *err) {
    struct jit *jit = soft_cpu_of(vcpu)->jit.jit;
    if (jit == NULL)
        return error_set(err, -ENOTSUP, "this vCPU's translator is off");
    jit->map.listener = listener;
    for (const struct jit_block *made = block_at_number(jit, jit->first);
         listener != NULL && made != NULL; made = block_at_number(jit, made->next))
        tell(jit, made);
    return 0;
}
