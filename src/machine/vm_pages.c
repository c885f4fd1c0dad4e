/*
 * A guest is paged out slice by slice (memory/page_file.h): a worker writes
 * one while the guest runs, the loop holds the machine for as long as dropping
 * it takes, and the worker goes on to the next.
 */
#include "machine/vm_pages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/loop.h"
#include "base/pool.h"
#include "machine/private.h"
#include "machine/ram_lazy.h"
#include "memory/missing.h"
#include "memory/page_file.h"

/* How often is looked whether all pages are back, and how many are on their way at a time. */
#define LOOK_NS (NS_PER_SECOND / 20)
enum { DEPTH = 64 };

struct vm_pages {
    struct machine *machine;
    const char *directory;
    void (*tell)(void *context, const char *event, json_t *data);
    void *context;
    struct pool *pool;
    struct page_file *file; /* NULL: nothing is away */
    struct loop_timer *look;
    bool ending;

    /* What is under way, one at a time. */
    struct control_call *out, *in; /* NULL: nothing */
    struct pool_job job;
    uint64_t keep, resident, dropped;
    uint64_t stood_ns; /* the longest time that the guest was held */
    unsigned slice;
    uint64_t back;   /* what was away when paging in began */
    int64_t written; /* what the worker found in the slice, or -errno */
};

static void fail(struct control_call **call, int result, const char *why) {
    struct control_call *failed = *call;
    *call = NULL;
    control_fail(failed, result == -ENOTSUP ? "NotSupported" : "GenericError", why);
}

static uint64_t away(const struct vm_pages *pages) {
    struct missing_counters counters;
    memory_missing_count(pages->machine->platform.memory, &counters);
    return counters.away;
}

static void tell_progress(const struct vm_pages *pages, uint64_t done, uint64_t total) {
    pages->tell(pages->context, "PAGE_PROGRESS",
                json_pack("{s:I, s:I}", "done", (json_int_t)done, "total", (json_int_t)total));
}

/* What either way answers. */
static json_t *report(const struct vm_pages *pages) {
    return json_pack("{s:I, s:I}", "away", (json_int_t)away(pages), "resident",
                     (json_int_t)memory_resident(pages->machine->platform.memory));
}

/* ---- Out ---- */

static void start_work(struct vm_pages *pages);

static void finish_out(struct vm_pages *pages) {
    struct control_call *call = pages->out;
    pages->out = NULL;
    json_t *answer = report(pages);
    json_object_set_new(answer, "dropped", json_integer((json_int_t)pages->dropped));
    json_object_set_new(answer, "stood-seconds",
                        json_real((double)pages->stood_ns / (double)NS_PER_SECOND));
    control_return(call, answer);
}

static void next_slice(struct vm_pages *pages) {
    unsigned slices = page_file_slices(pages->file);
    pages->slice++;
    tell_progress(pages, (uint64_t)pages->slice * PAGE_FILE_SLICE,
                  (uint64_t)slices * PAGE_FILE_SLICE);
    if (pages->slice == slices || pages->resident <= pages->keep)
        finish_out(pages);
    else
        start_work(pages);
}

static void on_settled(void *context) {
    struct vm_pages *pages = context;
    uint64_t began = host_clock_ns();
    bool disturbed = machine_is_disturbed(pages->machine);
    uint64_t dropped = disturbed ? 0 : page_file_drop(pages->file);
    machine_thaw(pages->machine);
    uint64_t stood = host_clock_ns() - began;
    pages->stood_ns = stood > pages->stood_ns ? stood : pages->stood_ns;
    pages->dropped += dropped;
    pages->resident -= dropped < pages->resident ? dropped : pages->resident;
    if (disturbed)
        fail(&pages->out, -EBUSY, "the VM is ending, or one of its disks has no space left");
    else
        next_slice(pages);
}

static void on_written(void *context) {
    struct vm_pages *pages = context;
    struct error err = {0};
    int result = 0;
    if (pages->ending)
        return;
    if (pages->written == 0) {
        next_slice(pages);
        return;
    }
    if (pages->written < 0)
        result =
            error_set_errno(&err, (int)pages->written,
                            "what was not written stays in memory: a file in %s", pages->directory);
    else
        result = machine_freeze(pages->machine, on_settled, pages, &err);
    if (result < 0)
        fail(&pages->out, result, err.text);
}

static void work(void *context, struct pool_job *job) {
    struct vm_pages *pages = context;
    (void)job;
    pages->written = page_file_write(pages->file, pages->slice);
    loop_post(pages->machine->config.loop, on_written, pages);
}

static void start_work(struct vm_pages *pages) {
    if (pool_submit(pages->pool, &pages->job) < 0)
        fail(&pages->out, -EAGAIN, "the host has no room for another thread");
}

void vm_pages_out(struct vm_pages *pages, struct control_call *call, const json_t *arguments) {
    struct machine *machine = pages->machine;
    json_int_t keep = json_integer_value(json_object_get(arguments, "keep"));
    struct error err = {0};
    char why[ERROR_TEXT_MAX];
    int result = 0;
    vm_pages_why(pages, why, sizeof why);
    if (why[0] != 0)
        result = error_set(&err, -EIO, "%s", why);
    else if (pages->out != NULL || pages->in != NULL)
        result = error_set(&err, -EBUSY, "it is being paged out or in already");
    else if (strcmp(engine_name(machine->engine), "soft") != 0)
        result =
            error_set(&err, -ENOTSUP,
                      "its engine is KVM, whose guests cannot be paged out yet; the host's swap "
                      "can");
    else if (machine->lazy != NULL)
        result = error_set(
            &err, -EBUSY, "its memory still comes from a snapshot: 'lodge memory --page-in' first");
    else if (keep < 0)
        result = error_set(&err, -EINVAL, "'keep' is a number of bytes");
    else if (pages->file == NULL)
        result =
            page_file_create(machine->platform.memory, pages->directory, false, &pages->file, &err);
    pages->out = result < 0 ? pages->out : call;
    if (result < 0) {
        fail(&call, result, err.text);
        return;
    }
    pages->keep = (uint64_t)keep;
    pages->resident = memory_resident(machine->platform.memory);
    pages->slice = 0;
    pages->dropped = pages->stood_ns = 0;
    if (pages->resident <= pages->keep)
        finish_out(pages);
    else
        start_work(pages);
}

/* ---- In ---- */

/* Nothing is away any more, nor will be. */
static void forget_sources(struct vm_pages *pages) {
    struct machine *machine = pages->machine;
    page_file_destroy(pages->file);
    pages->file = NULL;
    if (machine->lazy != NULL && memory_missing_end(machine->platform.memory) == 0) {
        ram_lazy_destroy(machine->lazy);
        machine->lazy = NULL;
    }
}

static void look(void *context) {
    struct vm_pages *pages = context;
    char why[ERROR_TEXT_MAX];
    uint64_t left = away(pages);
    vm_pages_why(pages, why, sizeof why);
    if (left > 0 && why[0] == 0) {
        tell_progress(pages, pages->back < left ? 0 : pages->back - left, pages->back);
        loop_timer_arm(pages->look, host_clock_ns() + LOOK_NS);
        return;
    }
    memory_prefetch(pages->machine->platform.memory, 0);
    if (left > 0) {
        fail(&pages->in, -EIO, why);
        return;
    }
    forget_sources(pages);
    struct control_call *call = pages->in;
    pages->in = NULL;
    control_return(call, report(pages));
}

void vm_pages_in(struct vm_pages *pages, struct control_call *call) {
    if (pages->out != NULL || pages->in != NULL) {
        control_fail(call, "Busy", "it is being paged out or in already");
        return;
    }
    if (pages->file == NULL && pages->machine->lazy == NULL) {
        control_return(call, report(pages));
        return;
    }
    pages->in = call;
    pages->back = away(pages);
    memory_prefetch(pages->machine->platform.memory, DEPTH);
    look(pages);
}

bool vm_pages_busy(const struct vm_pages *pages) {
    return pages->out != NULL;
}

void vm_pages_why(const struct vm_pages *pages, char *text, size_t size) {
    int error = pages == NULL || pages->file == NULL ? 0 : page_file_error(pages->file);
    text[0] = 0;
    if (error < 0)
        snprintf(text, size,
                 "memory that was paged out to %s cannot be read (%s); lodge goes on trying",
                 pages->directory, strerror(-error));
}

/* ---- Life ---- */

void vm_pages_place(struct vm_pages *pages, const char *directory) {
    pages->directory = directory;
}

int vm_pages_create(struct machine *machine,
                    void (*tell)(void *context, const char *event, json_t *data), void *context,
                    struct vm_pages **pages, struct error *err) {
    struct vm_pages *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->machine = machine;
    made->directory = "/var/tmp";
    made->tell = tell;
    made->context = context;
    int result = loop_timer_create(machine->config.loop, look, made, &made->look, err);
    if (result == 0)
        result = pool_create(THREAD_OTHER, 1, work, made, &made->pool, err);
    if (result < 0) {
        vm_pages_destroy(made);
        return result;
    }
    *pages = made;
    return 0;
}

void vm_pages_destroy(struct vm_pages *pages) {
    if (pages == NULL)
        return;
    pages->ending = true;
    if (pages->pool != NULL)
        pool_destroy(pages->pool);
    if (pages->out != NULL)
        fail(&pages->out, -ECANCELED, "the VM has ended");
    if (pages->in != NULL)
        fail(&pages->in, -ECANCELED, "the VM has ended");
    if (pages->look != NULL)
        loop_timer_free(pages->look);
    page_file_destroy(pages->file);
    free(pages);
}
