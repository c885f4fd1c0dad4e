/*
 * Runs the workloads of a list one after the other and says how long each took: in a guest as
 * init, natively as an ordinary program. The same binary, so that both are timed alike.
 *
 *     timer LIST [NAME ...]
 *
 * LIST has a line a workload, fields separated by tabs: name, number of runs in a row, the file
 * that is its standard input, its arguments (separated by spaces). With names, only those run.
 *
 * Answers on standard output, a line each, so that a reader on the other side of a serial line can
 * check our clock against its own:
 *
 *     ready
 *     < NAME
 *     > NAME SECONDS CHECKSUM STATUS
 *     done SECONDS
 *
 * CHECKSUM is of what the workload wrote to its standard output; STATUS is 0, or what wait() said
 * of the run that failed, whose standard error follows in lines that begin with "! ".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MAX_ARGUMENTS = 32, MAX_LINE = 1024 };

#define OUTPUT "/tmp/output"
#define ERRORS "/tmp/errors"

struct workload {
    char *name, *input;
    long runs;
    char *argv[MAX_ARGUMENTS + 1];
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- One workload ---- */

static void redirect(int to, const char *path, int flags) {
    int file = open(path, flags, 0666);
    if (file < 0 || dup2(file, to) < 0)
        _exit(125);
    close(file);
}

static int run_once(const struct workload *w) {
    int status;
    pid_t child = vfork();
    if (child == 0) {
        redirect(STDIN_FILENO, w->input, O_RDONLY);
        redirect(STDOUT_FILENO, OUTPUT, O_WRONLY | O_CREAT | O_APPEND);
        redirect(STDERR_FILENO, ERRORS, O_WRONLY | O_CREAT | O_APPEND);
        execv(w->argv[0], w->argv);
        _exit(errno == ENOENT ? 127 : 126);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0)
        return -errno;
    return status;
}

/* FNV-1a, in words of 32 bits: only to tell outputs apart. */
static uint64_t checksum(const char *path) {
    uint64_t sum = 0xcbf29ce484222325u;
    uint32_t words[4096];
    int file = open(path, O_RDONLY);
    ssize_t n;
    if (file < 0)
        return 0;
    while (memset(words, 0, sizeof words), (n = read(file, words, sizeof words)) > 0) {
        for (ssize_t i = 0; i < (n + 3) / 4; i++)
            sum = (sum ^ words[i]) * 0x100000001b3u;
        sum += (uint64_t)n;
    }
    close(file);
    return sum;
}

static void print_errors(void) {
    char line[256];
    FILE *file = fopen(ERRORS, "r");
    if (file == NULL)
        return;
    for (int i = 0; i < 5 && fgets(line, sizeof line, file) != NULL; i++) {
        line[strcspn(line, "\n")] = 0;
        printf("! %s\n", line);
    }
    fclose(file);
}

static void time_one(const struct workload *w) {
    int status = 0;
    unlink(OUTPUT);
    unlink(ERRORS);
    printf("< %s\n", w->name);
    double start = now();
    for (long i = 0; i < w->runs && status == 0; i++)
        status = run_once(w);
    double end = now();
    printf("> %s %.6f %016lx %d\n", w->name, end - start, checksum(OUTPUT), status);
    if (status != 0)
        print_errors();
}

/* ---- The list ---- */

static int parse(char *line, struct workload *w) {
    char *rest = line, *word;
    size_t n = 0;
    line[strcspn(line, "\n")] = 0;
    w->name = strsep(&rest, "\t");
    char *runs = strsep(&rest, "\t");
    w->input = strsep(&rest, "\t");
    if (rest == NULL)
        return -EINVAL;
    w->runs = strtol(runs, NULL, 10);
    while ((word = strsep(&rest, " ")) != NULL && n < MAX_ARGUMENTS)
        w->argv[n++] = word;
    w->argv[n] = NULL;
    return 0;
}

static int wanted(const char *name, char **names) {
    if (*names == NULL)
        return 1;
    while (*names != NULL && strcmp(*names, name) != 0)
        names++;
    return *names != NULL;
}

static int run_list(const char *path, char **names) {
    char line[MAX_LINE];
    struct workload w;
    FILE *list = fopen(path, "r");
    if (list == NULL) {
        perror(path);
        return 1;
    }
    while (fgets(line, sizeof line, list) != NULL) {
        if (parse(line, &w) == 0 && wanted(w.name, names))
            time_one(&w);
    }
    fclose(list);
    return 0;
}

/* ---- As init ---- */

static void set_up_guest(void) {
    mkdir("/proc", 0755);
    mkdir("/dev", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("dev", "/dev", "devtmpfs", 0, NULL);
    redirect(STDIN_FILENO, "/dev/null", O_RDONLY);
    redirect(STDOUT_FILENO, "/dev/console", O_WRONLY);
    redirect(STDERR_FILENO, "/dev/console", O_WRONLY);
}

int main(int argc, char **argv) {
    int init = getpid() == 1;
    if (init)
        set_up_guest();
    if (argc < 2)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    setenv("PATH", "/usr/bin:/bin", 1);
    setenv("LC_ALL", "C.UTF-8", 1);
    mkdir("/tmp", 0755);
    double start = now();
    printf("ready\n");
    int result = run_list(argv[1], argv + 2);
    printf("done %.6f\n", now() - start);
    if (init) {
        sleep(1); /* the serial line empties itself; the reader ends the machine meanwhile */
        reboot(RB_AUTOBOOT);
    }
    return result;
}
