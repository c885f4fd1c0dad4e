#include "cpu/soft/jit/map.h"

#include "cpu/soft/jit/translation.h"

static void tell(const struct jit *jit, uint32_t n) {
    const struct jit_map *map = &jit->map;
    const struct jit_range *range = &map->entries[n];
    size_t end = n + 1 < map->count ? map->entries[n + 1].offset : jit->memory.used;
    map->listener->made(map->listener->context, (uintptr_t)jit->memory.executable + range->offset,
                        end - range->offset, range->rip, range->cpl);
}

uint32_t jit_map_add(struct soft_cpu *cpu, size_t offset, size_t size, const struct block *block) {
    struct jit_map *map = &cpu->jit.jit->map;
    if (map->count == JIT_MAP_MAX)
        return JIT_MAP_MAX;
    map->entries[map->count++] = (struct jit_range){
        .rip = cpu->code_base + block->rip, .offset = (uint32_t)offset, .cpl = block->key >> 2 & 3};
    if (map->listener != NULL)
        tell(cpu->jit.jit, map->count - 1);
    return map->count - 1;
}

void jit_map_move(struct soft_cpu *cpu, uint32_t n, uint64_t delta) {
    if (n < cpu->jit.jit->map.count)
        cpu->jit.jit->map.entries[n].rip += delta;
}

void jit_map_clear(struct soft_cpu *cpu) {
    struct jit_map *map = &cpu->jit.jit->map;
    map->count = 0;
    if (map->listener != NULL)
        map->listener->dropped(map->listener->context);
}

enum jit_where jit_find_host(const struct soft_cpu *cpu, uintptr_t host, uint64_t *rip,
                             unsigned *cpl) {
    const struct jit *jit = cpu->jit.jit;
    if (jit == NULL || host - (uintptr_t)jit->memory.executable >= jit->memory.size)
        return JIT_WHERE_OUTSIDE;
    size_t offset = host - (uintptr_t)jit->memory.executable;
    uint32_t low = 0, high = jit->map.count; /* the last entry not above offset is in [low, high) */
    if (offset < jit->stubs_end || high == 0)
        return JIT_WHERE_STUBS;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (jit->map.entries[middle].offset <= offset)
            low = middle;
        else
            high = middle;
    }
    *rip = jit->map.entries[low].rip;
    *cpl = jit->map.entries[low].cpl;
    return JIT_WHERE_CODE;
}

int soft_listen_code(struct vcpu *vcpu, const struct code_listener *listener, struct error *err) {
    struct jit *jit = soft_cpu_of(vcpu)->jit.jit;
    if (jit == NULL)
        return error_set(err, -ENOTSUP, "this vCPU's translator is off");
    jit->map.listener = listener;
    for (uint32_t i = 0; listener != NULL && i < jit->map.count; i++)
        tell(jit, i);
    return 0;
}
