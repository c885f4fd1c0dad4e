#include "machine/vm_exec.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FDS = 3 };

struct program {
    struct vm_exec *owner;
    struct program *next;
    json_int_t number;
    unsigned long client;
    struct agent_session *session;
    int fds[FDS];
};

struct vm_exec {
    void (*tell)(void *context, const char *event, json_t *data);
    void *context;
    struct program *programs;
    unsigned count;
    json_int_t last;
};

/* ---- The end ---- */

/* Its descriptors close with it: who reads them sees the end of the output. */
static void drop(struct program *program) {
    struct vm_exec *exec = program->owner;
    struct program **link = &exec->programs;
    while (*link != program)
        link = &(*link)->next;
    *link = program->next;
    exec->count--;
    agent_session_close(program->session);
    for (int i = 0; i < FDS; i++)
        close(program->fds[i]);
    free(program);
}

static void on_ended(void *context, int code) {
    struct program *program = context;
    struct vm_exec *exec = program->owner;
    json_t *data =
        code >= 0 ? json_pack("{s:I, s:i}", "session", program->number, "code", code)
                  : json_pack("{s:I, s:s}", "session", program->number, "error", strerror(-code));
    drop(program);
    exec->tell(exec->context, "EXEC_ENDED", data);
}

/* ---- The beginning ---- */

/* The strings of an array, ended by NULL; they stay the array's. NULL: out of memory. */
static const char **strings_of(const json_t *array) {
    size_t count = json_array_size(array);
    const char **strings = calloc(count + 1, sizeof *strings);
    for (size_t i = 0; strings != NULL && i < count; i++)
        strings[i] = json_string_value(json_array_get(array, i));
    return strings;
}

static uint16_t cells(const json_t *arguments, const char *name) {
    json_int_t value = json_integer_value(json_object_get(arguments, name));
    return value > 0 && value <= UINT16_MAX ? (uint16_t)value : 0;
}

static int start(struct program *program, struct agent *agent, const json_t *arguments,
                 struct error *err) {
    const char **command = strings_of(json_object_get(arguments, "command"));
    const char **environment = strings_of(json_object_get(arguments, "environment"));
    struct agent_exec_config config = {
        .arguments = command,
        .environment = environment,
        .directory = json_string_value(json_object_get(arguments, "directory")),
        .user = json_string_value(json_object_get(arguments, "user")),
        .terminal = json_is_true(json_object_get(arguments, "terminal")),
        .rows = cells(arguments, "rows"),
        .columns = cells(arguments, "columns"),
        .in = program->fds[0],
        .out = program->fds[1],
        .err = program->fds[2],
        .ended = on_ended,
        .context = program,
    };
    int result = command != NULL && environment != NULL
                     ? agent_exec(agent, &config, &program->session, err)
                     : error_set(err, -ENOMEM, "out of memory");
    free(command);
    free(environment);
    return result;
}

/* NULL: all is well. */
static const char *what_is_wrong(const struct vm_exec *exec, const json_t *arguments) {
    size_t i;
    json_t *value;
    if (json_array_size(json_object_get(arguments, "command")) == 0)
        return "'command' is to have at least a program's name";
    json_array_foreach(json_object_get(arguments, "environment"), i, value) {
        if (strchr(json_string_value(value), '=') == NULL)
            return "'environment' is to have strings NAME=VALUE";
    }
    return exec->count == VM_EXEC_MAX ? "as many programs run as the agent takes" : NULL;
}

void vm_exec_start(struct vm_exec *exec, struct agent *agent, struct control_call *call,
                   const json_t *arguments) {
    struct error err = {0};
    const char *wrong = what_is_wrong(exec, arguments);
    if (wrong != NULL) {
        control_fail(call, exec->count == VM_EXEC_MAX ? "Busy" : "BadArgument", wrong);
        return;
    }
    if (agent == NULL || !agent_is_ready(agent)) {
        control_fail(call, "NotActive", "no lodge-agent answers in the guest");
        return;
    }
    struct program *program = calloc(1, sizeof *program);
    if (program == NULL || !control_take_fds(call, program->fds, FDS)) {
        free(program);
        control_fail(call, "BadRequest",
                     "send three descriptors along: standard input, output, error");
        return;
    }
    program->owner = exec;
    program->client = control_client(call);
    program->number = ++exec->last;
    program->next = exec->programs;
    exec->programs = program;
    exec->count++;
    if (start(program, agent, arguments, &err) < 0) {
        drop(program);
        control_fail(call, "GenericError", err.text);
        return;
    }
    control_return(call, json_pack("{s:I}", "session", program->number));
}

/* ---- While it runs ---- */

/* NULL: there is none of that number, which has been answered. */
static struct program *find(struct vm_exec *exec, struct control_call *call,
                            const json_t *arguments) {
    json_int_t number = json_integer_value(json_object_get(arguments, "session"));
    for (struct program *program = exec->programs; program != NULL; program = program->next)
        if (program->number == number)
            return program;
    control_fail(call, "NotActive", "no program with that number runs");
    return NULL;
}

void vm_exec_resize(struct vm_exec *exec, struct control_call *call, const json_t *arguments) {
    struct program *program = find(exec, call, arguments);
    if (program == NULL)
        return;
    agent_session_resize(program->session, cells(arguments, "rows"), cells(arguments, "columns"));
    control_return(call, NULL);
}

void vm_exec_signal(struct vm_exec *exec, struct control_call *call, const json_t *arguments) {
    json_int_t number = json_integer_value(json_object_get(arguments, "signal"));
    struct program *program = find(exec, call, arguments);
    if (program == NULL)
        return;
    if (number < 1 || number > 64) {
        control_fail(call, "BadArgument", "'signal' is from 1 to 64");
        return;
    }
    agent_session_signal(program->session, (unsigned)number);
    control_return(call, NULL);
}

void vm_exec_gone(struct vm_exec *exec, unsigned long client) {
    for (struct program *program = exec->programs, *next; program != NULL; program = next) {
        next = program->next;
        if (program->client == client)
            drop(program);
    }
}

/* ---- Life ---- */

int vm_exec_create(void (*tell)(void *context, const char *event, json_t *data), void *context,
                   struct vm_exec **exec, struct error *err) {
    struct vm_exec *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->tell = tell;
    made->context = context;
    *exec = made;
    return 0;
}

void vm_exec_destroy(struct vm_exec *exec) {
    if (exec == NULL)
        return;
    for (struct program *program = exec->programs, *next; program != NULL; program = next) {
        next = program->next;
        drop(program);
    }
    free(exec);
}
