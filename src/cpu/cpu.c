#include "cpu/cpu.h"

#include "cpu/engine.h"

int engine_create(enum engine_kind kind, const struct engine_config *config, struct engine **engine,
                  const char **why, struct error *err) {
    const char *reason = "asked for";
    if (kind == ENGINE_AUTO)
        kind = engine_choose(&reason);
    if (why != NULL)
        *why = reason;
    const struct engine_ops *ops = kind == ENGINE_KVM ? &kvm_engine_ops : &soft_engine_ops;
    return ops->create(config, engine, err);
}

void engine_destroy(struct engine *engine) {
    engine->ops->destroy(engine);
}

const char *engine_name(const struct engine *engine) {
    return engine->ops->name;
}

int vcpu_create(struct engine *engine, unsigned id, struct vcpu **vcpu, struct error *err) {
    return engine->ops->vcpu_create(engine, id, vcpu, err);
}

void vcpu_destroy(struct vcpu *vcpu) {
    vcpu->engine->ops->vcpu_destroy(vcpu);
}

void vcpu_run(struct vcpu *vcpu, struct vcpu_exit *exit) {
    vcpu->engine->ops->run(vcpu, exit);
}

void vcpu_kick(struct vcpu *vcpu) {
    vcpu->engine->ops->kick(vcpu);
}

void vcpu_rest(struct vcpu *vcpu, uint64_t late) {
    if (vcpu->engine->ops->rest != NULL)
        vcpu->engine->ops->rest(vcpu, late);
}

void vcpu_get_state(struct vcpu *vcpu, struct x86_state *state) {
    vcpu->engine->ops->get_state(vcpu, state);
}

int vcpu_set_state(struct vcpu *vcpu, const struct x86_state *state, struct error *err) {
    return vcpu->engine->ops->set_state(vcpu, state, err);
}

const struct state_table *vcpu_own_state(struct vcpu *vcpu, void **object, struct error *err) {
    const struct engine_ops *ops = vcpu->engine->ops;
    if (ops->own_state != NULL)
        return ops->own_state(vcpu, object, err);
    error_set(err, -ENOTSUP, "the %s engine keeps nothing for itself", ops->name);
    return NULL;
}

int vcpu_set_own_state(struct vcpu *vcpu, struct error *err) {
    return vcpu->engine->ops->set_own_state(vcpu, err);
}

void vcpu_reset(struct vcpu *vcpu, bool init) {
    vcpu->engine->ops->reset(vcpu, init);
}

void vcpu_inject(struct vcpu *vcpu, enum exception vector, bool has_error, uint32_t error) {
    vcpu->engine->ops->inject(vcpu, vector, has_error, error);
}

int vcpu_translate(struct vcpu *vcpu, uint64_t gva, uint64_t *gpa) {
    return vcpu->engine->ops->translate(vcpu, gva, gpa);
}

int vcpu_set_breakpoint(struct vcpu *vcpu, uint64_t gva, bool on, struct error *err) {
    return vcpu->engine->ops->set_breakpoint(vcpu, gva, on, err);
}

int vcpu_set_view(struct vcpu *vcpu, struct view *view, struct error *err) {
    return vcpu->engine->ops->set_view(vcpu, view, err);
}

void vcpu_get_counters(struct vcpu *vcpu, struct vcpu_counters *counters) {
    vcpu->engine->ops->get_counters(vcpu, counters);
}

void vcpu_each_counter(struct vcpu *vcpu, vcpu_counter_handler *handler, void *context) {
    struct vcpu_counters common;
    vcpu_get_counters(vcpu, &common);
    if (common.instructions != 0)
        handler(context, "instructions", common.instructions);
    handler(context, "exits", common.exits);
    handler(context, "interrupts", common.interrupts);
    handler(context, "exceptions", common.exceptions);
    if (vcpu->engine->ops->each_counter != NULL)
        vcpu->engine->ops->each_counter(vcpu, handler, context);
}
