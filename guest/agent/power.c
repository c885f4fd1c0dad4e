#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Reaps until no process is left or the time is over. */
static void wait_for_all(int milliseconds) {
    int64_t end = now_ms() + milliseconds;
    while (now_ms() < end) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);
        if (pid < 0 && errno == ECHILD)
            return;
        if (pid == 0)
            poll(NULL, 0, 10);
    }
}

/* What is mounted from a block device; read before anything is unmounted, undone in reverse. */
static void unmount_disks(void) {
    enum { DISKS = 64 };
    static char points[DISKS][256];
    unsigned count = 0;
    FILE *list = fopen("/proc/mounts", "re");
    char device[256];
    while (list != NULL && count < DISKS &&
           fscanf(list, "%255s %255s %*[^\n]", device, points[count]) == 2)
        if (strncmp(device, "/dev/", 5) == 0)
            count++;
    if (list != NULL)
        fclose(list);
    while (count-- > 0)
        if (umount2(points[count], 0) < 0)
            mount(NULL, points[count], NULL, MS_REMOUNT | MS_RDONLY, NULL);
}

void power_off(void) {
    enum { GRACE_MS = 2000, KILL_MS = 1000 };
    if (getpid() == 1) {
        kill(-1, SIGTERM);
        kill(-1, SIGCONT);
        wait_for_all(GRACE_MS);
        kill(-1, SIGKILL);
        wait_for_all(KILL_MS);
        sync();
        unmount_disks();
    }
    sync();
    reboot(RB_POWER_OFF);
    say("power off: %s", strerror(errno));
}
