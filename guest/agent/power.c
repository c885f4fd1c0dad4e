#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/input.h>

#include "agent.h"

static bool has_power_key(int fd) {
    uint8_t keys[KEY_MAX / 8 + 1] = {0};
    return ioctl(fd, EVIOCGBIT(EV_KEY, sizeof keys), keys) >= 0 &&
           (keys[KEY_POWER / 8] >> (KEY_POWER % 8) & 1);
}

int power_button_open(void) {
    DIR *list = opendir("/dev/input");
    struct dirent *entry;
    int button = -1;
    while (list != NULL && button < 0 && (entry = readdir(list)) != NULL) {
        if (strncmp(entry->d_name, "event", 5) != 0)
            continue;
        button = openat(dirfd(list), entry->d_name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (button >= 0 && !has_power_key(button)) {
            close(button);
            button = -1;
        }
    }
    if (list != NULL)
        closedir(list);
    return button;
}

bool power_button_pressed(int fd) {
    struct input_event event;
    bool pressed = false;
    while (read(fd, &event, sizeof event) == sizeof event)
        pressed |= event.type == EV_KEY && event.code == KEY_POWER && event.value == 1;
    return pressed;
}

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

/* Another init ends its services first; this process is one of them. */
static bool ask_init(void) {
    static const char *const systemd[] = {"systemctl", "poweroff", "--no-block", NULL},
                             *const other[] = {"poweroff", NULL};
    const char *const *asked = access("/run/systemd/system", F_OK) == 0 ? systemd : other;
    pid_t pid = fork();
    if (pid == 0) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execvpe(asked[0], (char *const *)asked, default_environment);
        _exit(127);
    }
    int status;
    return pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status) &&
           WEXITSTATUS(status) == 0;
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
    } else if (ask_init()) {
        return;
    }
    sync();
    reboot(RB_POWER_OFF);
    say("power off: %s", strerror(errno));
}
