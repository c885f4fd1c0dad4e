/* What a guest is told that goes on from a snapshot: that it is later, and who it is now. */
#include <string.h>
#include <sys/random.h>

#include "base/host_clock.h"
#include "base/log.h"
#include "cli/run_private.h"
#include "machine/clone.h"
#include "machine/machine_identity.h"
#include "machine/vm_control.h"

/* A clone that is not another machine is none; what only goes on from a snapshot does so anyway. */
static void cannot_renew(struct run *run, const char *text) {
    if (run->config->identity == NULL)
        log_info("%s", text);
    else
        cannot_start(run, text);
}

static void tell_what_failed(struct run *run, int error, const char *what) {
    struct error err;
    error_set_errno(&err, error, "the guest cannot renew its %s", what);
    cannot_renew(run, err.text);
}

static const char *host_name(const struct run *run) {
    return run->config->identity != NULL ? run->config->identity->host_name : NULL;
}

/* False: there is no randomness. */
static bool make_renewal(const struct run *run, struct agent_renew *renew) {
    const struct clone_identity *identity = run->config->identity;
    struct vm_clock *clock = machine_clock(run->machine);
    *renew = (struct agent_renew){.wall_ns = vm_clock_wall_ns(clock, vm_clock_ns(clock))};
    if (identity != NULL) {
        renew->flags = AGENT_RENEW_IDENTITY | (identity->ssh_keys ? AGENT_RENEW_SSH_KEYS : 0);
        memcpy(renew->machine_id, identity->machine_id, sizeof renew->machine_id);
        memcpy(renew->mac, identity->mac, sizeof renew->mac);
        memcpy(renew->old_mac, run->old_mac, sizeof renew->old_mac);
    }
    return getrandom(renew->seed, sizeof renew->seed, 0) == (ssize_t)sizeof renew->seed;
}

/* ---- By the agent's connection ---- */

void on_renewed(void *context, int error, const char *what) {
    struct run *run = context;
    run->marks.renewed_ns = host_clock_ns();
    if (run->code_known || run->restarting)
        return;
    if (error < 0)
        tell_what_failed(run, error, what);
    if (!run->code_known)
        set_up_guest(run);
}

bool renew_guest(struct run *run) {
    struct agent_renew renew;
    run->renew_due = false;
    if (make_renewal(run, &renew) && agent_renew(run->agent, &renew, host_name(run)))
        return true;
    cannot_renew(run, "the guest's lodge-agent is too old to renew what a snapshot has (see 'lodge "
                      "image build')");
    return run->code_known;
}

/* ---- In the command's session ---- */

static void on_renewed_at_once(void *context, int error, const char *what) {
    struct run *run = context;
    run->marks.agent_ns = run->marks.renewed_ns = run->ready_ns = host_clock_ns();
    run->at_once = run->renew_due = false;
    run->was_ready = true;
    loop_timer_cancel(run->agent_timer);
    if (error < 0)
        tell_what_failed(run, error, what);
    else
        vm_control_agent(run->control, run->agent);
}

void renew_at_once(struct run *run) {
    const struct run_config *config = run->config;
    struct agent_identity identity;
    struct agent_renew renew;
    struct agent_exec_renewal renewal = {
        .renew = &renew,
        .host_name = host_name(run),
        .identity = &identity,
        .renewed = on_renewed_at_once,
    };
    if (!run->renew_due || config->identity == NULL || config->command == NULL ||
        config->machine.volume_count > 0 || !make_renewal(run, &renew))
        return;
    machine_agent_identity(run->machine, &identity);
    run->at_once = start_command(run, &renewal, NULL) == 0;
}

void renew_later(struct run *run) {
    run->at_once = false;
    if (agent_is_ready(run->agent))
        meet_agent(run);
}
