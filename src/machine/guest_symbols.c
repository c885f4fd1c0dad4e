#include "machine/guest_symbols.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"

/* ---- The text ---- */

/* One word of a line, made printable and ended by a zero; NULL when the line has no more. */
static char *next_word(char **at) {
    char *start = *at + strspn(*at, " \t");
    size_t length = strcspn(start, " \t");
    if (length == 0)
        return NULL;
    *at = start + length + (start[length] != 0);
    start[length] = 0;
    for (char *c = start; *c != 0; c++)
        if (*c < ' ' || *c > '~')
            *c = '?';
    return start;
}

static bool is_code(char type) {
    return type == 't' || type == 'T' || type == 'w' || type == 'W';
}

static void take_line(struct guest_symbols *symbols, char *line) {
    char *address = next_word(&line), *type = next_word(&line), *name = next_word(&line),
         *module = next_word(&line), *end;
    if (name == NULL || type[1] != 0 || symbols->count == GUEST_SYMBOLS_MAX)
        return;
    uint64_t value = strtoull(address, &end, 16);
    if (*end != 0)
        return;
    if (strcmp(name, "current_task") == 0 || strcmp(name, "pcpu_hot") == 0) {
        symbols->current_task = value; /* the first member of pcpu_hot */
        symbols->has_current_task = true;
    } else if (strcmp(name, "init_task") == 0) {
        symbols->init_task = value;
    }
    if (!is_code(type[0]) || value == 0)
        return;
    symbols->code[symbols->count++] = (struct guest_symbol){
        .address = value,
        .name = (uint32_t)(name - symbols->text),
        .module = module != NULL ? (uint32_t)(module - symbols->text) : 0,
    };
}

static int by_address(const void *a, const void *b) {
    const struct guest_symbol *x = a, *y = b;
    return x->address != y->address ? (x->address < y->address ? -1 : 1)
                                    : (x->name > y->name) - (x->name < y->name);
}

static size_t count_lines(const char *text) {
    size_t lines = 1;
    for (; (text = strchr(text, '\n')) != NULL; text++)
        lines++;
    return lines < GUEST_SYMBOLS_MAX ? lines : GUEST_SYMBOLS_MAX;
}

int guest_symbols_parse(char *text, size_t length, struct guest_symbols **symbols,
                        struct error *err) {
    struct guest_symbols *made = calloc(1, sizeof *made);
    if (made != NULL)
        made->code = calloc(count_lines(text), sizeof *made->code);
    if (made == NULL || made->code == NULL) {
        free(made);
        free(text);
        return error_set(err, -ENOMEM, "out of memory");
    }
    made->text = text;
    for (char *line = text, *next; line != NULL; line = next) {
        next = memchr(line, '\n', length - (size_t)(line - text));
        if (next != NULL)
            *next++ = 0;
        take_line(made, line);
    }
    if (made->count == 0) {
        guest_symbols_free(made);
        return error_set(err, -ENODATA, "the guest's kernel tells no symbols");
    }
    qsort(made->code, made->count, sizeof *made->code, by_address);
    *symbols = made;
    return 0;
}

void guest_symbols_free(struct guest_symbols *symbols) {
    if (symbols == NULL)
        return;
    free(symbols->code);
    free(symbols->text);
    free(symbols);
}

const struct guest_symbol *guest_symbols_find(const struct guest_symbols *symbols,
                                              uint64_t address) {
    enum { FUNCTION_MAX = 1 << 20 };
    size_t low = 0, high = symbols->count; /* the last not above address is in [low, high) */
    if (high == 0 || symbols->code[0].address > address)
        return NULL;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (symbols->code[middle].address <= address)
            low = middle;
        else
            high = middle;
    }
    return address - symbols->code[low].address < FUNCTION_MAX ? &symbols->code[low] : NULL;
}

const char *guest_symbol_name(const struct guest_symbols *symbols, const struct guest_symbol *s) {
    return symbols->text + s->name;
}

const char *guest_symbol_module(const struct guest_symbols *symbols, const struct guest_symbol *s) {
    return s->module != 0 ? symbols->text + s->module : "";
}

/* ---- Fetching ---- */

enum { FETCH_SECONDS = 30 };

struct guest_symbols_fetch {
    struct agent_session *session;
    struct loop_timer *timer;
    guest_symbols_done *done;
    void *context;
    int file, nowhere;
};

static void end_fetch(struct guest_symbols_fetch *fetch) {
    agent_session_close(fetch->session);
    loop_timer_free(fetch->timer);
    if (fetch->file >= 0)
        close(fetch->file);
    if (fetch->nowhere >= 0)
        close(fetch->nowhere);
    free(fetch);
}

/* Takes what is written to it, up to a size, and no more: a guest could go on for ever. */
static int make_file(void) {
    int fd = memfd_create("lodge-symbols", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd >= 0 && (ftruncate(fd, GUEST_SYMBOLS_TEXT_MAX) < 0 ||
                    fcntl(fd, F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK) < 0)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* What was written, with a zero behind it. */
static char *read_file(int fd, size_t *length) {
    off_t end = lseek(fd, 0, SEEK_CUR);
    char *text = end < 0 ? NULL : malloc((size_t)end + 1);
    if (text == NULL)
        return NULL;
    ssize_t got = pread(fd, text, (size_t)end, 0);
    *length = got > 0 ? (size_t)got : 0;
    for (size_t i = 0; i < *length; i++)
        if (text[i] == 0)
            text[i] = '?';
    text[*length] = 0;
    return text;
}

static void finish(struct guest_symbols_fetch *fetch, const char *reason) {
    struct guest_symbols *symbols = NULL;
    struct error err;
    size_t length = 0;
    char *text = reason == NULL ? read_file(fetch->file, &length) : NULL;
    if (reason == NULL && text == NULL)
        reason = "the guest's /proc/kallsyms could not be kept";
    if (text != NULL && guest_symbols_parse(text, length, &symbols, &err) < 0)
        reason = err.text;
    guest_symbols_done *done = fetch->done;
    void *context = fetch->context;
    end_fetch(fetch);
    done(context, symbols, reason);
}

static void on_ended(void *context, int code) {
    finish(context, code == 0  ? NULL
                    : code < 0 ? "the connection to the guest's agent broke"
                               : "the guest could not read its /proc/kallsyms");
}

static void on_timeout(void *context) {
    finish(context, "the guest took too long to tell its symbols");
}

int guest_symbols_fetch(struct agent *agent, struct loop *loop, guest_symbols_done *done,
                        void *context, struct guest_symbols_fetch **fetch, struct error *err) {
    static const char *const command[] = {"cat", "/proc/kallsyms", NULL};
    struct guest_symbols_fetch *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->done = done;
    made->context = context;
    made->file = make_file();
    made->nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    struct agent_exec_config exec = {
        .arguments = command,
        .in = -1,
        .out = made->file,
        .err = made->nowhere,
        .ended = on_ended,
        .context = made,
    };
    int result = made->file < 0 || made->nowhere < 0
                     ? error_set_errno(err, -errno, "no room for the guest's symbols")
                     : loop_timer_create(loop, on_timeout, made, &made->timer, err);
    if (result == 0)
        result = agent_exec(agent, &exec, &made->session, err);
    if (result < 0) {
        end_fetch(made);
        return result;
    }
    loop_timer_arm(made->timer, host_clock_ns() + FETCH_SECONDS * NS_PER_SECOND);
    *fetch = made;
    return 0;
}

void guest_symbols_cancel(struct guest_symbols_fetch *fetch) {
    if (fetch != NULL)
        end_fetch(fetch);
}
