#include "cli/terminal.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

static struct termios saved;
static volatile sig_atomic_t is_raw;

bool terminal_is_there(void) {
    return isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
}

void terminal_restore(void) {
    if (!is_raw)
        return;
    is_raw = 0;
    tcsetattr(STDIN_FILENO, TCSANOW, &saved);
}

static struct sigaction bus_error; /* what it did before: ram_chain_map */

/* tcsetattr may be called in a signal handler; then the signal does what it would have done. */
static void restore_and_die(int number) {
    terminal_restore();
    if (number == SIGBUS) {
        sigaction(number, &bus_error, NULL); /* the access is tried again */
        return;
    }
    signal(number, SIG_DFL);
    raise(number);
}

static void catch_ends(void) {
    static bool caught;
    static const int ends[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGQUIT, SIGHUP};
    /* On a stack of its own where the thread has one: translated code uses RSP for the guest. */
    struct sigaction action = {.sa_handler = restore_and_die,
                               .sa_flags = (int)SA_RESETHAND | SA_ONSTACK};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0] && !caught; i++)
        sigaction(ends[i], &action, ends[i] == SIGBUS ? &bus_error : NULL);
    if (!caught)
        atexit(terminal_restore);
    caught = true;
}

int terminal_raw(struct error *err) {
    struct termios raw;
    if (tcgetattr(STDIN_FILENO, &saved) < 0)
        return error_set_errno(err, -errno, "terminal");
    catch_ends();
    raw = saved;
    cfmakeraw(&raw);
    is_raw = 1;
    if (tcsetattr(STDIN_FILENO, TCSANOW, &raw) < 0) {
        is_raw = 0;
        return error_set_errno(err, -errno, "terminal");
    }
    return 0;
}

void terminal_size(uint16_t *rows, uint16_t *columns) {
    struct winsize size = {.ws_row = 24, .ws_col = 80};
    ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
    *rows = size.ws_row;
    *columns = size.ws_col;
}

size_t terminal_filter(struct terminal_escape *escape, uint8_t *bytes, size_t length, bool *leave) {
    enum { ESCAPE = 0x1d };
    size_t kept = 0;
    for (size_t i = 0; i < length; i++) {
        uint8_t byte = bytes[i];
        if (!escape->armed && byte == ESCAPE) {
            escape->armed = true;
            continue;
        }
        if (escape->armed && byte == '.')
            *leave = true;
        else
            bytes[kept++] = byte; /* what follows another key is that key alone */
        escape->armed = false;
    }
    return kept;
}
