/* The control socket: its protocol, and what it does with clients that keep none. */
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "machine/control.h"
#include "machine/control_names.h"

struct fixture {
    struct loop *loop;
    struct loop_timer *timer;
    struct control *control;
    char directory[32], path[64];
    struct control_call *later; /* a call that waits for the test */
    unsigned runs;
    unsigned long gone;
};

/* A client's end, read by hand: the loop runs on this thread, too. */
struct peer {
    int fd;
    char *text;
    size_t length, room;
    bool ended;
};

static void echo(void *context, struct control_call *call, const json_t *arguments) {
    struct fixture *f = context;
    f->runs++;
    control_return(call, json_deep_copy(arguments));
}

static void wait_for_test(void *context, struct control_call *call, const json_t *arguments) {
    struct fixture *f = context;
    assert_null(f->later);
    f->later = call;
}

static void refuse(void *context, struct control_call *call, const json_t *arguments) {
    control_fail(call, "NotToday", "come back tomorrow");
}

/* As much as fits, to try patience. */
static void flood(void *context, struct control_call *call, const json_t *arguments) {
    char *text = malloc(1 << 20);
    memset(text, 'x', (1 << 20) - 1);
    text[(1 << 20) - 1] = 0;
    control_return(call, json_pack("{s:s}", "text", text));
    free(text);
}

/* Says which of the descriptors that came along it could write to. */
static void take_two(void *context, struct control_call *call, const json_t *arguments) {
    int fds[2];
    if (!control_take_fds(call, fds, 2)) {
        control_fail(call, "BadRequest", "two descriptors");
        return;
    }
    json_t *wrote = json_array();
    for (int i = 0; i < 2; i++) {
        json_array_append_new(wrote, json_boolean(write(fds[i], "x", 1) == 1));
        close(fds[i]);
    }
    control_return(call, wrote);
}

static void on_gone(void *context, unsigned long client) {
    struct fixture *f = context;
    f->gone = client;
}

static const struct control_command commands[] = {
    {.name = "echo", .run = echo, .arguments = {"number:i", "flag:b", "text:s", "list:a"}},
    {.name = "take-two", .run = take_two},
    {.name = "wait", .run = wait_for_test},
    {.name = "refuse", .run = refuse},
    {.name = "flood", .run = flood},
    {.name = NULL},
};

static void on_timer(void *context) {
    struct fixture *f = context;
    loop_stop(f->loop);
}

static int setup(void **state) {
    static struct fixture fixture;
    struct fixture *f = *state = &fixture;
    *f = (struct fixture){0};
    assert_int_equal(loop_create(&f->loop, NULL), 0);
    assert_int_equal(loop_timer_create(f->loop, on_timer, f, &f->timer, NULL), 0);
    strcpy(f->directory, "/tmp/lodge-test-XXXXXX");
    assert_non_null(mkdtemp(f->directory));
    snprintf(f->path, sizeof f->path, "%s/vm.sock", f->directory);
    struct control_config config = {.loop = f->loop,
                                    .directory = f->directory,
                                    .name = "vm",
                                    .commands = commands,
                                    .gone = on_gone,
                                    .context = f};
    assert_int_equal(control_create(&config, &f->control, NULL), 0);
    return 0;
}

static int teardown(void **state) {
    struct fixture *f = *state;
    control_destroy(f->control);
    if (f->later != NULL)
        control_return(f->later, NULL); /* nobody hears */
    assert_int_equal(access(f->path, F_OK), -1);
    loop_timer_free(f->timer);
    loop_destroy(f->loop);
    rmdir(f->directory);
    return 0;
}

/* ---- A client ---- */

/* Lets the loop do what there is to do. */
static void turn(struct fixture *f) {
    loop_timer_arm(f->timer, host_clock_ns() + 1000000);
    loop_run(f->loop);
}

static struct peer open_peer(struct fixture *f) {
    struct peer peer = {.fd = -1};
    assert_int_equal(control_connect(f->directory, "vm", &peer.fd, NULL), 0);
    fcntl(peer.fd, F_SETFL, O_NONBLOCK);
    turn(f);
    return peer;
}

static void close_peer(struct peer *peer) {
    close(peer->fd);
    free(peer->text);
}

static void take(struct peer *peer) {
    for (;;) {
        if (peer->length + 1 >= peer->room)
            peer->text = realloc(peer->text, peer->room = peer->room * 2 + 4096);
        ssize_t got = recv(peer->fd, peer->text + peer->length, peer->room - peer->length - 1, 0);
        if (got == 0 || (got < 0 && errno != EAGAIN))
            peer->ended = true;
        if (got <= 0)
            return;
        peer->length += (size_t)got;
    }
}

/* The next message; NULL when the connection ends instead. */
static json_t *hear(struct fixture *f, struct peer *peer) {
    char *newline;
    uint64_t end = host_clock_ns() + 30 * NS_PER_SECOND;
    take(peer);
    while ((newline = memchr(peer->text, '\n', peer->length)) == NULL && !peer->ended &&
           host_clock_ns() < end) {
        turn(f);
        take(peer);
    }
    if (newline == NULL)
        return NULL;
    size_t length = (size_t)(newline - peer->text) + 1;
    json_t *message = json_loadb(peer->text, length, 0, NULL);
    assert_non_null(message);
    peer->length -= length;
    memmove(peer->text, newline + 1, peer->length);
    return message;
}

static void say(struct fixture *f, const struct peer *peer, const char *text) {
    size_t length = strlen(text);
    while (length > 0) {
        ssize_t sent = send(peer->fd, text, length, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            return;
        if (sent > 0) {
            text += sent;
            length -= (size_t)sent;
        }
        turn(f);
    }
}

static struct peer greeted(struct fixture *f) {
    struct peer peer = open_peer(f);
    json_t *greeting = hear(f, &peer);
    assert_string_equal(
        json_string_value(json_object_get(json_object_get(greeting, "lodge"), "name")), "vm");
    json_decref(greeting);
    return peer;
}

static void expect_error(struct fixture *f, struct peer *peer, const char *class) {
    json_t *message = hear(f, peer);
    const json_t *error = json_object_get(message, "error");
    assert_non_null(error);
    assert_string_equal(json_string_value(json_object_get(error, "class")), class);
    assert_non_null(json_object_get(error, "desc"));
    json_decref(message);
}

static void expect_return(struct fixture *f, struct peer *peer, const char *text) {
    json_t *message = hear(f, peer), *wanted = json_loads(text, 0, NULL);
    assert_non_null(wanted);
    assert_true(json_equal(message, wanted));
    json_decref(message);
    json_decref(wanted);
}

static void expect_end(struct fixture *f, struct peer *peer) {
    assert_null(hear(f, peer));
    assert_true(peer->ended);
}

/* ---- The protocol ---- */

static void test_greeting(void **state) {
    struct fixture *f = *state;
    struct peer peer = open_peer(f);
    json_t *greeting = hear(f, &peer);
    const json_t *lodge = json_object_get(greeting, "lodge");
    assert_true(json_is_string(json_object_get(lodge, "version")));
    assert_int_equal(json_integer_value(json_object_get(lodge, "protocol")), CONTROL_PROTOCOL);
    json_decref(greeting);
    close_peer(&peer);
}

static void test_commands(void **state) {
    struct fixture *f = *state;
    struct peer peer = greeted(f);
    say(f, &peer, "{\"execute\": \"echo\", \"arguments\": {\"number\": 7}, \"id\": [1, \"x\"]}\n");
    expect_return(f, &peer, "{\"return\": {\"number\": 7}, \"id\": [1, \"x\"]}");
    say(f, &peer, "{\"execute\": \"echo\"}\r\n\n\r\n{\"execute\": \"refuse\", \"id\": 2}\n");
    expect_return(f, &peer, "{\"return\": {}}");
    expect_return(f, &peer,
                  "{\"error\": {\"class\": \"NotToday\", \"desc\": \"come back tomorrow\"}, "
                  "\"id\": 2}");
    say(f, &peer, "{\"execute\": \"query-commands\"}\n{\"execute\": \"query-version\"}\n");
    json_t *list = hear(f, &peer), *version = hear(f, &peer);
    assert_int_equal(json_array_size(json_object_get(json_object_get(list, "return"), "commands")),
                     7);
    assert_true(json_is_string(json_object_get(json_object_get(version, "return"), "version")));
    json_decref(list);
    json_decref(version);
    close_peer(&peer);
}

static void send_fds(const struct peer *peer, const int *fds, unsigned count) {
    char rights[CMSG_SPACE(16 * sizeof(int))] = {0}, space = ' ';
    struct iovec text = {&space, 1};
    struct msghdr message = {.msg_iov = &text,
                             .msg_iovlen = 1,
                             .msg_control = rights,
                             .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(count * sizeof(int));
    memcpy(CMSG_DATA(header), fds, count * sizeof(int));
    assert_int_equal(sendmsg(peer->fd, &message, 0), 1);
}

static unsigned open_files(void) {
    unsigned count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* Descriptors wait for a command that wants them; too many, and those nobody takes, are closed. */
static void test_descriptors(void **state) {
    struct fixture *f = *state;
    struct peer peer = greeted(f);
    int ends[2], many[16];
    assert_int_equal(pipe(ends), 0);
    say(f, &peer, "{\"execute\": \"take-two\"}\n");
    expect_error(f, &peer, "BadRequest");
    send_fds(&peer, (int[]){ends[1], ends[0]}, 2);
    say(f, &peer,
        "{\"execute\": \"echo\"}\n{\"execute\": \"take-two\"}\n{\"execute\": \"take-two\"}\n");
    expect_return(f, &peer, "{\"return\": {}}");
    expect_return(f, &peer, "{\"return\": [true, false]}");
    expect_error(f, &peer, "BadRequest");
    unsigned before = open_files();
    for (int i = 0; i < 16; i++)
        many[i] = ends[1];
    send_fds(&peer, many, 16);
    send_fds(&peer, many, 2);
    say(f, &peer, "{\"execute\": \"echo\"}\n");
    expect_return(f, &peer, "{\"return\": {}}");
    assert_in_range(open_files(), before, before + CONTROL_FDS_MAX);
    close_peer(&peer);
    turn(f);
    assert_int_equal(open_files(), before - 2); /* the peer's own end, and the control's of it */
    close(ends[0]);
    close(ends[1]);
}

static void test_pieces(void **state) {
    struct fixture *f = *state;
    struct peer peer = greeted(f);
    for (const char *c = "{\"execute\":\"echo\",\"id\":1}\n"; *c != 0; c++) {
        char piece[2] = {*c, 0};
        say(f, &peer, piece);
    }
    expect_return(f, &peer, "{\"return\": {}, \"id\": 1}");
    close_peer(&peer);
}

static void test_bad_requests(void **state) {
    static const struct {
        const char *text, *class;
    } cases[] = {
        {"garbage\n", "BadJson"},
        {"\x01\xff\xfe\x80\n", "BadJson"},
        {"{\"execute\": \"echo\"\n", "BadJson"},
        {"{\"execute\": \"echo\", \"execute\": \"echo\"}\n", "BadJson"},
        {"{\"execute\": \"ec\\u0000ho\"}\n", "BadJson"},
        {"{} {}\n", "BadJson"},
        {"[]\n", "BadRequest"},
        {"{}\n", "BadRequest"},
        {"{\"execute\": 1}\n", "BadRequest"},
        {"{\"execute\": \"echo\", \"arguments\": []}\n", "BadRequest"},
        {"{\"execute\": \"echo\", \"spare\": 1}\n", "BadRequest"},
        {"{\"execute\": \"ech\"}\n", "CommandNotFound"},
        {"{\"execute\": \"\"}\n", "CommandNotFound"},
        {"{\"execute\": \"echo\", \"arguments\": {\"nummer\": 1}}\n", "BadArgument"},
        {"{\"execute\": \"echo\", \"arguments\": {\"n\": 1}}\n", "BadArgument"},
        {"{\"execute\": \"echo\", \"arguments\": {\"\": 1}}\n", "BadArgument"},
        {"{\"execute\": \"echo\", \"arguments\": {\"number\": 1.5}}\n", "BadArgument"},
        {"{\"execute\": \"echo\", \"arguments\": {\"flag\": \"true\"}}\n", "BadArgument"},
        {"{\"execute\": \"query-version\", \"arguments\": {\"x\": 1}}\n", "BadArgument"},
    };
    struct fixture *f = *state;
    struct peer peer = greeted(f);
    for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
        say(f, &peer, cases[i].text);
        expect_error(f, &peer, cases[i].class);
    }
    assert_int_equal(f->runs, 0);
    /* The connection has come to no harm. */
    say(f, &peer, "{\"execute\": \"echo\"}\n");
    expect_return(f, &peer, "{\"return\": {}}");
    close_peer(&peer);
}

static void test_deep_nesting(void **state) {
    struct fixture *f = *state;
    struct peer peer = greeted(f);
    char *text = malloc(CONTROL_LINE_MAX);
    memset(text, '[', CONTROL_LINE_MAX - 2);
    strcpy(text + CONTROL_LINE_MAX - 2, "\n");
    say(f, &peer, text);
    free(text);
    expect_error(f, &peer, "BadJson");
    close_peer(&peer);
}

static void test_long_line(void **state) {
    struct fixture *f = *state;
    struct peer peer = greeted(f), other = greeted(f);
    char *text = malloc(2 * CONTROL_LINE_MAX + 1);
    memset(text, ' ', 2 * CONTROL_LINE_MAX);
    text[2 * CONTROL_LINE_MAX] = 0;
    say(f, &peer, text);
    free(text);
    expect_error(f, &peer, "LineTooLong");
    expect_end(f, &peer);
    say(f, &other, "{\"execute\": \"echo\"}\n");
    expect_return(f, &other, "{\"return\": {}}");
    close_peer(&peer);
    close_peer(&other);
}

/* The longest line there may be. */
static void test_full_line(void **state) {
    static const char command[] = "{\"execute\": \"echo\", \"id\": 3}";
    struct fixture *f = *state;
    struct peer peer = greeted(f);
    char *text = malloc(CONTROL_LINE_MAX + 1);
    memset(text, ' ', CONTROL_LINE_MAX);
    memcpy(text, command, sizeof command - 1);
    strcpy(text + CONTROL_LINE_MAX - 1, "\n");
    say(f, &peer, text);
    free(text);
    expect_return(f, &peer, "{\"return\": {}, \"id\": 3}");
    close_peer(&peer);
}

static void test_half_command(void **state) {
    struct fixture *f = *state;
    struct peer peer = greeted(f);
    say(f, &peer, "{\"execute\": \"ec");
    shutdown(peer.fd, SHUT_WR);
    expect_end(f, &peer);
    assert_int_equal(f->gone, 1);
    assert_int_equal(f->runs, 0);
    close_peer(&peer);
}

/* What "printf ... | nc -U -N" does. */
static void test_half_closed(void **state) {
    struct fixture *f = *state;
    struct peer peer = greeted(f);
    say(f, &peer, "{\"execute\": \"wait\", \"id\": 1}\n{\"execute\": \"echo\", \"id\": 2}\n");
    shutdown(peer.fd, SHUT_WR);
    while (f->later == NULL)
        turn(f);
    turn(f);
    assert_int_equal(f->runs, 0); /* one at a time */
    struct control_call *call = f->later;
    f->later = NULL;
    control_return(call, NULL);
    expect_return(f, &peer, "{\"return\": {}, \"id\": 1}");
    expect_return(f, &peer, "{\"return\": {}, \"id\": 2}");
    expect_end(f, &peer);
    close_peer(&peer);
}

static void test_gone_while_it_runs(void **state) {
    struct fixture *f = *state;
    struct peer peer = greeted(f);
    say(f, &peer, "{\"execute\": \"wait\"}\n");
    assert_non_null(f->later);
    unsigned long number = control_client(f->later);
    assert_int_not_equal(number, 0);
    close_peer(&peer);
    struct control_call *call = f->later;
    f->later = NULL;
    for (int i = 0; i < 10; i++)
        turn(f);
    control_return(call, json_pack("{s:i}", "late", 1));
    for (int i = 0; i < 1000 && f->gone == 0; i++)
        turn(f);
    assert_int_equal(f->gone, number);
}

static void test_events(void **state) {
    struct fixture *f = *state;
    struct peer peers[] = {greeted(f), greeted(f)};
    control_event(f->control, "THING", json_pack("{s:i}", "n", 1));
    for (size_t i = 0; i < ARRAY_SIZE(peers); i++) {
        json_t *event = hear(f, &peers[i]);
        assert_string_equal(json_string_value(json_object_get(event, "event")), "THING");
        assert_int_equal(json_integer_value(json_object_get(json_object_get(event, "data"), "n")),
                         1);
        assert_non_null(json_object_get(json_object_get(event, "timestamp"), "seconds"));
        json_decref(event);
        close_peer(&peers[i]);
    }
}

static void test_too_many_clients(void **state) {
    struct fixture *f = *state;
    struct peer peers[CONTROL_CLIENTS_MAX], more;
    for (size_t i = 0; i < ARRAY_SIZE(peers); i++)
        peers[i] = greeted(f);
    more = greeted(f);
    expect_error(f, &more, "TooManyClients");
    expect_end(f, &more);
    close_peer(&more);
    close_peer(&peers[0]);
    while (f->gone != 1)
        turn(f);
    peers[0] = greeted(f);
    say(f, &peers[0], "{\"execute\": \"echo\"}\n");
    expect_return(f, &peers[0], "{\"return\": {}}");
    for (size_t i = 0; i < ARRAY_SIZE(peers); i++)
        close_peer(&peers[i]);
}

/* It does not read: no further commands are run for it, others are served. */
static void test_slow_reader(void **state) {
    struct fixture *f = *state;
    struct peer slow = greeted(f), other = greeted(f);
    say(f, &slow, "{\"execute\": \"flood\"}\n{\"execute\": \"echo\", \"id\": 1}\n");
    for (int i = 0; i < 20; i++)
        turn(f);
    assert_int_equal(f->runs, 0);
    say(f, &other, "{\"execute\": \"echo\"}\n");
    expect_return(f, &other, "{\"return\": {}}");
    json_decref(hear(f, &slow));
    expect_return(f, &slow, "{\"return\": {}, \"id\": 1}");
    /* Events are not asked for: they end it when it never reads. */
    char *text = malloc(1 << 20);
    memset(text, 'x', (1 << 20) - 1);
    text[(1 << 20) - 1] = 0;
    close_peer(&other);
    for (int i = 0; i < 12; i++)
        control_event(f->control, "BIG", json_pack("{s:s}", "text", text));
    free(text);
    assert_int_not_equal(f->gone, 0);
    close_peer(&slow);
}

/* ---- Names and sockets ---- */

static void test_socket(void **state) {
    struct fixture *f = *state;
    struct stat status;
    int fd;
    assert_int_equal(stat(f->path, &status), 0);
    assert_int_equal(status.st_mode & 0777, 0600);
    assert_int_equal(control_listen(f->directory, "vm", &fd, NULL), -EADDRINUSE);
}

static void test_stale_socket(void **state) {
    struct fixture *f = *state;
    char path[64], **names;
    size_t count;
    int fd, second;
    snprintf(path, sizeof path, "%s/dead.sock", f->directory);
    assert_int_equal(control_listen(f->directory, "dead", &fd, NULL), 0);
    close(fd); /* as kill -9 does: the file stays */
    assert_int_equal(control_list(f->directory, &names, &count, NULL), 0);
    assert_int_equal(count, 2);
    assert_string_equal(names[0], "dead");
    free(names[0]);
    free(names[1]);
    free(names);
    assert_int_equal(control_connect(f->directory, "dead", &fd, NULL), -ENOENT);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(control_listen(f->directory, "dead", &fd, NULL), 0);
    close(fd);
    assert_int_equal(control_listen(f->directory, "dead", &second, NULL), 0);
    close(second);
    unlink(path);
}

static void test_names(void **state) {
    static const char *const good[] = {"a", "vm-12", "A.b_c-9", "0"};
    static const char *const bad[] = {"", ".", "..", "-a", "_a", "a/b", "a b", "a\n", "\xc3\xa4"};
    char longest[VM_NAME_MAX + 2];
    for (size_t i = 0; i < ARRAY_SIZE(good); i++)
        assert_int_equal(vm_name_check(good[i], NULL), 0);
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_int_equal(vm_name_check(bad[i], NULL), -EINVAL);
    memset(longest, 'x', sizeof longest);
    longest[VM_NAME_MAX + 1] = 0;
    assert_int_equal(vm_name_check(longest, NULL), -EINVAL);
    longest[VM_NAME_MAX] = 0;
    assert_int_equal(vm_name_check(longest, NULL), 0);
}

static void test_directory(void **state) {
    struct fixture *f = *state;
    char path[CONTROL_PATH_MAX], wanted[64];
    setenv("XDG_RUNTIME_DIR", f->directory, 1);
    snprintf(wanted, sizeof wanted, "%s/lodge", f->directory);
    assert_int_equal(control_directory(path, sizeof path, false, NULL), -ENOENT);
    assert_int_equal(control_directory(path, sizeof path, true, NULL), 0);
    assert_string_equal(path, wanted);
    /* Somebody else could put sockets there. */
    chmod(wanted, 0777);
    assert_int_equal(control_directory(path, sizeof path, true, NULL), -EPERM);
    rmdir(wanted);
    assert_int_equal(symlink("/tmp", wanted), 0);
    assert_int_equal(control_directory(path, sizeof path, true, NULL), -EPERM);
    unlink(wanted);
    unsetenv("XDG_RUNTIME_DIR");
}

int main(void) {
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_greeting, setup, teardown),
        cmocka_unit_test_setup_teardown(test_commands, setup, teardown),
        cmocka_unit_test_setup_teardown(test_descriptors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pieces, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_requests, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deep_nesting, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_line, setup, teardown),
        cmocka_unit_test_setup_teardown(test_full_line, setup, teardown),
        cmocka_unit_test_setup_teardown(test_half_command, setup, teardown),
        cmocka_unit_test_setup_teardown(test_half_closed, setup, teardown),
        cmocka_unit_test_setup_teardown(test_gone_while_it_runs, setup, teardown),
        cmocka_unit_test_setup_teardown(test_events, setup, teardown),
        cmocka_unit_test_setup_teardown(test_too_many_clients, setup, teardown),
        cmocka_unit_test_setup_teardown(test_slow_reader, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stale_socket, setup, teardown),
        cmocka_unit_test(test_names),
        cmocka_unit_test_setup_teardown(test_directory, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
