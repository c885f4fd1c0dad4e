#include "cpu/profile.h"

#include "cpu/engine.h"

static int cannot(const struct vcpu *vcpu, struct error *err) {
    return error_set(err, -ENOTSUP, "the %s engine cannot be profiled; --engine soft can",
                     vcpu->engine->ops->name);
}

int vcpu_profile_start(struct vcpu *vcpu, const struct vcpu_profile_config *config,
                       struct error *err) {
    if (vcpu->engine->ops->profile_start == NULL)
        return cannot(vcpu, err);
    if (config->interval_us < PROFILE_INTERVAL_MIN || config->interval_us > PROFILE_INTERVAL_MAX)
        return error_set(err, -EINVAL, "a sampling interval is %d to %d microseconds",
                         PROFILE_INTERVAL_MIN, PROFILE_INTERVAL_MAX);
    return vcpu->engine->ops->profile_start(vcpu, config, err);
}

void vcpu_profile_stop(struct vcpu *vcpu) {
    if (vcpu->engine->ops->profile_stop != NULL)
        vcpu->engine->ops->profile_stop(vcpu);
}

size_t vcpu_profile_take(struct vcpu *vcpu, struct vcpu_sample *samples, size_t room) {
    const struct engine_ops *ops = vcpu->engine->ops;
    return ops->profile_take != NULL ? ops->profile_take(vcpu, samples, room) : 0;
}

uint64_t vcpu_profile_lost(struct vcpu *vcpu) {
    const struct engine_ops *ops = vcpu->engine->ops;
    return ops->profile_lost != NULL ? ops->profile_lost(vcpu) : 0;
}

int vcpu_listen_code(struct vcpu *vcpu, const struct code_listener *listener, struct error *err) {
    if (vcpu->engine->ops->listen_code == NULL)
        return error_set(err, -ENOTSUP, "the %s engine translates no code",
                         vcpu->engine->ops->name);
    return vcpu->engine->ops->listen_code(vcpu, listener, err);
}
