#include "cpu/soft/jit/map.h"

#include "cpu/soft/jit/translation.h"

static size_t offset_of(const struct jit *jit, const struct jit_block *made) {
    return (size_t)((const uint8_t *)made - jit->memory.writable);
}

static void tell(const struct jit *jit, const struct jit_block *made) {
    const struct code_listener *listener = jit->map.listener;
    listener->made(listener->context, (uintptr_t)jit->memory.executable + offset_of(jit, made),
                   made->size, made->rip, made->key >> 2 & 3);
}

void jit_map_add(struct soft_cpu *cpu, const struct jit_block *made) {
    struct jit *jit = cpu->jit.jit;
    size_t start = offset_of(jit, made), end = start + made->size;
    size_t grain = (start + JIT_MAP_GRAIN - 1) / JIT_MAP_GRAIN;
    for (; grain * JIT_MAP_GRAIN < end; grain++)
        jit->map.starts[grain] = (uint32_t)start;
    if (jit->map.listener != NULL)
        tell(jit, made);
}

void jit_map_clear(struct soft_cpu *cpu) {
    struct jit *jit = cpu->jit.jit;
    for (size_t grain = 0; grain * JIT_MAP_GRAIN <= jit->stubs_end; grain++)
        jit->map.starts[grain] = (uint32_t)jit->stubs_end;
    if (jit->map.listener != NULL)
        jit->map.listener->dropped(jit->map.listener->context);
}

struct jit_block *jit_map_find(const struct jit *jit, size_t offset) {
    size_t at = jit->map.starts[offset / JIT_MAP_GRAIN];
    struct jit_block *made = jit_at(jit, (uint32_t)(at / JIT_WORD));
    while (offset - offset_of(jit, made) >= made->size)
        made = (struct jit_block *)(void *)((uint8_t *)made + made->size);
    return made;
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
    for (size_t at = jit->stubs_end; listener != NULL && at < jit->memory.used;) {
        const struct jit_block *made = jit_at(jit, (uint32_t)(at / JIT_WORD));
        tell(jit, made);
        at += made->size;
    }
    return 0;
}
