/* What the profiler rests on: symbols of the guest and of lodge, samples, counters. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "machine/guest_symbols.h"
#include "machine/host_symbols.h"

static struct guest_symbols *parse(const char *text, int wanted) {
    struct guest_symbols *symbols = NULL;
    assert_int_equal(guest_symbols_parse(strdup(text), strlen(text), &symbols, NULL), wanted);
    return symbols;
}

static void expect_symbol(const struct guest_symbols *symbols, uint64_t address, const char *name,
                          const char *module) {
    const struct guest_symbol *s = guest_symbols_find(symbols, address);
    if (name == NULL) {
        assert_null(s);
        return;
    }
    assert_non_null(s);
    assert_string_equal(guest_symbol_name(symbols, s), name);
    assert_string_equal(guest_symbol_module(symbols, s), module);
}

static void test_guest_symbols(void **state) {
    struct guest_symbols *symbols = parse("0000000000019168 A current_task\n"
                                          "ffffffff81002000 t second.isra.0\n"
                                          "ffffffff81001000 T first\n"
                                          "ffffffff82000000 D init_task\n"
                                          "ffffffffc0001000 t in_module\t[module]\n"
                                          "ffffffffc0001000 r not_code\t[module]\n",
                                          0);
    assert_int_equal(symbols->count, 3);
    assert_true(symbols->has_current_task);
    assert_int_equal(symbols->current_task, 0x19168);
    assert_int_equal(symbols->init_task, 0xffffffff82000000);
    expect_symbol(symbols, 0xffffffff81000fff, NULL, NULL);
    expect_symbol(symbols, 0xffffffff81001000, "first", "");
    expect_symbol(symbols, 0xffffffff81001fff, "first", "");
    expect_symbol(symbols, 0xffffffff81002001, "second.isra.0", "");
    expect_symbol(symbols, 0xffffffff90000000, NULL, NULL); /* no function is that long */
    expect_symbol(symbols, 0xffffffffc0001010, "in_module", "[module]");
    expect_symbol(symbols, UINT64_MAX, NULL, NULL);
    guest_symbols_free(symbols);
}

/* The text is the guest's, who may write what it likes. */
static void test_hostile_symbols(void **state) {
    static const char *const nothing[] = {
        "",
        "\n\n\n",
        "ffffffff81001000",
        "ffffffff81001000 T",
        "ffffffff81001000 T \n",
        "0000000000000000 T hidden\n",
        "zz T name\n",
        "1 TT name\n",
        " \t \n \t",
    };
    for (size_t i = 0; i < ARRAY_SIZE(nothing); i++)
        assert_null(parse(nothing[i], -ENODATA));
    struct guest_symbols *symbols = parse("1000 T a\x1b[2Jb\n"
                                          "99999999999999999999999 T beyond\n"
                                          "2000 T last [m] more words here",
                                          0);
    expect_symbol(symbols, 0x1000, "a?[2Jb", "");
    expect_symbol(symbols, 0x2000, "last", "[m]");
    guest_symbols_free(symbols);
}

static void test_many_symbols(void **state) {
    enum { COUNT = 5000 };
    char *text = malloc(COUNT * 40), *at = text;
    for (unsigned i = 0; i < COUNT; i++) /* in no order */
        at += sprintf(at, "%x t f%u\n", (i * 7919 % COUNT + 1) * 16, i * 7919 % COUNT);
    struct guest_symbols *symbols = parse(text, 0);
    assert_int_equal(symbols->count, COUNT);
    for (unsigned i = 0; i < COUNT; i++) {
        char name[16];
        sprintf(name, "f%u", i);
        expect_symbol(symbols, (i + 1) * 16 + i % 16, name, "");
    }
    guest_symbols_free(symbols);
    free(text);
}

/* ---- lodge's own functions ---- */

static void test_host_symbols(void **state) {
    struct host_symbols symbols;
    assert_int_equal(host_symbols_load(&symbols, NULL), 0);
    if (symbols.count == 0) { /* a stripped program */
        host_symbols_free(&symbols);
        skip();
    }
    uint64_t address = (uint64_t)(uintptr_t)test_host_symbols;
    const struct host_function *function = host_symbols_find(&symbols, address + 4);
    assert_non_null(function);
    assert_int_equal(function->start, address);
    assert_string_equal(function->name, "test_host_symbols");
    assert_string_equal(function->file, "test_profile.c");
    assert_null(host_symbols_find(&symbols, 0));
    assert_null(host_symbols_find(&symbols, UINT64_MAX));
    for (size_t i = 1; i < symbols.count; i++)
        assert_true(symbols.functions[i - 1].start <= symbols.functions[i].start);
    host_symbols_free(&symbols);
}

static void test_kinds(void **state) {
    static const struct {
        const char *name, *file;
        enum time_kind kind;
    } cases[] = {
        {"mmu_translate", "", TIME_MEMORY},
        {"page_fill", "mmu.c", TIME_MEMORY},
        {"walk_once", "walk.c", TIME_MEMORY},
        {"span_translate", "access.c", TIME_MEMORY},
        {"memory_io_read", "", TIME_DEVICES},
        {"lower_call", "translate.c", TIME_TRANSLATION},
        {"lower_check", "memory.c", TIME_TRANSLATION},
        {"insn_decode", "", TIME_TRANSLATION},
        {"jit_callout", "", TIME_SWITCH},
        {"jit_fast_fill", "", TIME_MEMORY},
        {"jit_fast_string", "", TIME_CALLOUTS},
        {"attend", "run.c", TIME_EVENTS},
        {"event_deliver", "", TIME_EVENTS},
        {"wrmsr", "system.c", TIME_CALLOUTS},
        {"anything", "vec_int.c", TIME_CALLOUTS},
        {"transmit", "serial.c", TIME_DEVICES},
        {"lapic_ack", "", TIME_DEVICES},
        {"never_heard_of", "nowhere.c", TIME_OTHER},
        {"never_heard_of", "", TIME_OTHER},
    };
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
        assert_int_equal(host_function_kind(cases[i].name, cases[i].file), cases[i].kind);
    for (unsigned k = 0; k < TIME_KINDS; k++) {
        assert_non_null(time_kind_names[k]);
        assert_non_null(time_kind_titles[k]);
    }
}

int main(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_guest_symbols), cmocka_unit_test(test_hostile_symbols),
        cmocka_unit_test(test_many_symbols),  cmocka_unit_test(test_host_symbols),
        cmocka_unit_test(test_kinds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
