/*
 * What an engine provides to cpu.c, which forwards the public calls of
 * cpu.h. Engines embed struct engine and struct vcpu first in their own.
 */
#ifndef LODGE_CPU_ENGINE_H
#define LODGE_CPU_ENGINE_H

#include "cpu/cpu.h"
#include "cpu/profile.h"

struct engine_ops {
    const char *name;
    int (*create)(const struct engine_config *config, struct engine **engine, struct error *err);
    void (*destroy)(struct engine *engine);
    int (*vcpu_create)(struct engine *engine, unsigned id, struct vcpu **vcpu, struct error *err);
    void (*vcpu_destroy)(struct vcpu *vcpu);
    void (*run)(struct vcpu *vcpu, struct vcpu_exit *exit);
    void (*kick)(struct vcpu *vcpu);
    void (*rest)(struct vcpu *vcpu, uint64_t late); /* NULL: it does not wait */
    void (*get_state)(struct vcpu *vcpu, struct x86_state *state);
    int (*set_state)(struct vcpu *vcpu, const struct x86_state *state, struct error *err);
    /* Both NULL: the engine has none. */
    const struct state_table *(*own_state)(struct vcpu *vcpu, void **object, struct error *err);
    int (*set_own_state)(struct vcpu *vcpu, struct error *err);
    void (*reset)(struct vcpu *vcpu, bool init);
    void (*inject)(struct vcpu *vcpu, enum exception vector, bool has_error, uint32_t error);
    int (*translate)(struct vcpu *vcpu, uint64_t gva, uint64_t *gpa);
    int (*set_breakpoint)(struct vcpu *vcpu, uint64_t gva, bool on, struct error *err);
    int (*set_view)(struct vcpu *vcpu, struct view *view, struct error *err);
    void (*get_counters)(struct vcpu *vcpu, struct vcpu_counters *counters);
    /* Those that vcpu_counters has not; NULL: none. */
    void (*each_counter)(struct vcpu *vcpu, vcpu_counter_handler *handler, void *context);
    /* cpu/profile.h; all NULL where the engine cannot. */
    int (*profile_start)(struct vcpu *vcpu, const struct vcpu_profile_config *config,
                         struct error *err);
    void (*profile_stop)(struct vcpu *vcpu);
    size_t (*profile_take)(struct vcpu *vcpu, struct vcpu_sample *samples, size_t room);
    uint64_t (*profile_lost)(struct vcpu *vcpu);
    int (*listen_code)(struct vcpu *vcpu, const struct code_listener *listener, struct error *err);
    /* NULL, or adds lines to vcpu_dump. */
    void (*report)(struct vcpu *vcpu, void (*line)(void *context, const char *text), void *context);
};

struct engine {
    const struct engine_ops *ops;
    struct engine_config config;
};

struct vcpu {
    struct engine *engine;
    unsigned id;
};

extern const struct engine_ops soft_engine_ops;
extern const struct engine_ops kvm_engine_ops;

/* The power-on (or INIT) state that both engines start from. */
void x86_reset_state(struct x86_state *state, unsigned id, bool init);

/*
 * Measures both engines and answers the faster one; auto.c. Takes a tenth of
 * a second or two, also when /dev/kvm hangs. *why becomes static text.
 */
enum engine_kind engine_choose(const char **why);

#endif
