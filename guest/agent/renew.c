/* A machine that goes on from a snapshot: time, randomness and, as a clone, an identity of its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <linux/ethtool.h>
#include <linux/random.h>
#include <linux/sockios.h>

#include "agent.h"

/* ---- Randomness and time ---- */

static int renew_randomness(const uint8_t seed[AGENT_SEED_SIZE]) {
    struct { /* struct rand_pool_info with its bytes */
        int entropy_count, size;
        uint8_t seed[AGENT_SEED_SIZE];
    } pool = {.entropy_count = 8 * AGENT_SEED_SIZE, .size = AGENT_SEED_SIZE};
    int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    memcpy(pool.seed, seed, AGENT_SEED_SIZE);
    /* The second has what was added come out at once. */
    int result =
        fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) < 0 || ioctl(fd, RNDRESEEDCRNG) < 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return result;
}

static int renew_clock(uint64_t wall_ns) {
    struct timespec now = {.tv_sec = (time_t)(wall_ns / 1000000000),
                           .tv_nsec = (long)(wall_ns % 1000000000)};
    return clock_settime(CLOCK_REALTIME, &now) < 0 ? -errno : 0;
}

/* ---- Names ---- */

static int write_text(const char *path, int flags, const char *text) {
    int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC | flags, 0444);
    int result = fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return result;
}

/* Where /etc cannot be written to, over it, as systemd does. */
static int renew_machine_id(const uint8_t id[16]) {
    static const char path[] = "/etc/machine-id", other[] = "/run/machine-id";
    char text[34];
    memcpy(put_hex(text, id, 16), "\n", 2);
    int result = write_text(path, O_CREAT, text);
    if (result == -EROFS && (result = write_text(other, O_CREAT, text)) == 0)
        result = mount(other, path, NULL, MS_BIND, NULL) < 0 ? -errno : 0;
    return result;
}

/* The line of /etc/hosts that Debian gives the machine's own name. */
static void renew_hosts(const char *name) {
    static const char path[] = "/etc/hosts", own[] = "127.0.1.1";
    char text[4096], line[512], *lines = NULL;
    size_t length = 0, size = 0;
    bool found = false;
    FILE *in = fopen(path, "re"), *out = in != NULL ? open_memstream(&lines, &size) : NULL;
    while (out != NULL && fgets(line, sizeof line, in) != NULL) {
        bool is_own = strncmp(line, own, sizeof own - 1) == 0;
        found |= is_own;
        length += (size_t)(is_own ? fprintf(out, "%s\t%s\n", own, name) : fprintf(out, "%s", line));
    }
    if (in != NULL)
        fclose(in);
    if (out != NULL)
        fclose(out);
    if (found && length < sizeof text)
        write_text(path, 0, lines);
    free(lines);
}

static int renew_host_name(const char *name) {
    char line[AGENT_HOST_NAME_MAX + 2];
    if (sethostname(name, strlen(name)) < 0)
        return -errno;
    snprintf(line, sizeof line, "%s\n", name);
    int result = write_text("/etc/hostname", 0, line);
    if (result == -ENOENT || result == -EROFS)
        return 0; /* it is nowhere, or not to be kept */
    renew_hosts(name);
    return result;
}

/* ---- The network device ---- */

static bool has_address(int fd, struct ifreq *request, const uint8_t mac[6]) {
    return ioctl(fd, SIOCGIFHWADDR, request) == 0 &&
           request->ifr_hwaddr.sa_family == ARPHRD_ETHER &&
           memcmp(request->ifr_hwaddr.sa_data, mac, 6) == 0;
}

/* Of a bus: what is a bridge or a bond has the address of a card, and none. */
static bool is_card(int fd, struct ifreq *request) {
    struct ethtool_drvinfo driver = {.cmd = ETHTOOL_GDRVINFO};
    struct ifreq asked = *request;
    asked.ifr_data = (void *)&driver;
    return ioctl(fd, SIOCETHTOOL, &asked) == 0 && driver.bus_info[0] != 0 &&
           strcmp(driver.bus_info, "N/A") != 0;
}

/* The card that has this address. Cards are there before all else that has a number. */
static bool find_card(int fd, const uint8_t mac[6], struct ifreq *request) {
    enum { NUMBERS = 256 };
    for (int number = 1; number < NUMBERS; number++) {
        *request = (struct ifreq){.ifr_ifindex = number};
        if (ioctl(fd, SIOCGIFNAME, request) == 0 && has_address(fd, request, mac) &&
            is_card(fd, request))
            return true;
    }
    return false;
}

static int set_flags(int fd, const char *name, short set, short clear) {
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%.15s", name);
    if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
        return -errno;
    request.ifr_flags = (short)((request.ifr_flags & ~clear) | set);
    return ioctl(fd, SIOCSIFFLAGS, &request) < 0 ? -errno : 0;
}

/* Whoever manages the network is told by the kernel, and asks for an address anew. */
static int renew_mac(const uint8_t old[6], const uint8_t mac[6]) {
    struct ifreq request;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), result = 0;
    if (fd < 0)
        return -errno;
    if (find_card(fd, old, &request)) { /* else the guest has given it one of its own */
        memcpy(request.ifr_hwaddr.sa_data, mac, 6);
        result = ioctl(fd, SIOCSIFHWADDR, &request) < 0 ? -errno : 0;
        if (result == -EBUSY && (result = set_flags(fd, request.ifr_name, 0, IFF_UP)) == 0) {
            result = ioctl(fd, SIOCSIFHWADDR, &request) < 0 ? -errno : 0;
            set_flags(fd, request.ifr_name, IFF_UP, 0);
        }
    }
    close(fd);
    return result;
}

/* ---- SSH ---- */

static int make_key(const char *type, const char *path) {
    char public[64];
    int status;
    snprintf(public, sizeof public, "%s.pub", path);
    unlink(path);
    unlink(public);
    pid_t pid = fork();
    if (pid == 0) {
        sigset_t none;
        sigemptyset(&none);
        sigprocmask(SIG_SETMASK, &none, NULL);
        execle("/usr/bin/ssh-keygen", "ssh-keygen", "-q", "-t", type, "-N", "", "-f", path,
               (char *)NULL, default_environment);
        _exit(127);
    }
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return pid < 0 ? -errno : WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EIO;
}

/* It reads its keys when it starts, and starts itself anew on SIGHUP. */
static void reload_sshd(void) {
    FILE *file = fopen("/run/sshd.pid", "re");
    int pid = 0;
    if (file != NULL && fscanf(file, "%d", &pid) == 1 && pid > 1)
        kill(pid, SIGHUP);
    if (file != NULL)
        fclose(file);
}

static int renew_ssh_keys(void) {
    static const char *const types[] = {"ed25519", "ecdsa", "rsa"};
    bool made = false;
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        char path[48];
        snprintf(path, sizeof path, "/etc/ssh/ssh_host_%s_key", types[i]);
        if (access(path, F_OK) < 0)
            continue;
        int result = make_key(types[i], path);
        if (result < 0)
            return result;
        made = true;
    }
    if (made)
        reload_sshd();
    return 0;
}

/* ---- All of it ---- */

static int renew_identity(const struct agent_renew *renew, const char *name, const char **what) {
    *what = "machine id";
    int result = renew_machine_id(renew->machine_id);
    if (result == 0) {
        *what = "host name";
        result = renew_host_name(name);
    }
    if (result == 0 && memcmp(renew->old_mac, renew->mac, sizeof renew->mac) != 0) {
        *what = "network address";
        result = renew_mac(renew->old_mac, renew->mac);
    }
    if (result == 0 && (renew->flags & AGENT_RENEW_SSH_KEYS)) {
        *what = "SSH host keys";
        result = renew_ssh_keys();
    }
    return result;
}

static int renew_all(const uint8_t *payload, size_t length, const char **what) {
    struct agent_renew renew;
    const char *name = (const char *)payload + sizeof renew;
    *what = "message";
    if (length < sizeof renew + 1 || length > sizeof renew + AGENT_HOST_NAME_MAX + 1 ||
        payload[length - 1] != 0)
        return -EBADMSG;
    memcpy(&renew, payload, sizeof renew);
    *what = "randomness";
    int result = renew_randomness(renew.seed);
    if (result == 0) {
        *what = "clock";
        result = renew_clock(renew.wall_ns);
    }
    return result == 0 && (renew.flags & AGENT_RENEW_IDENTITY) ? renew_identity(&renew, name, what)
                                                               : result;
}

bool renew(struct channel *channel, const uint8_t *payload, size_t length) {
    struct {
        uint32_t error;
        char what[64];
    } renewed = {0};
    const char *what;
    int result = renew_all(payload, length, &what);
    renewed.error = (uint32_t)-result;
    if (result < 0)
        snprintf(renewed.what, sizeof renewed.what, "%s", what);
    channel_send(channel, AGENT_RENEWED, 0, &renewed, sizeof renewed.error + strlen(renewed.what));
    return result == 0;
}
