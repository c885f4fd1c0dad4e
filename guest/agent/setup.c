#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

/* ---- File systems ---- */

static const struct {
    const char *type, *at, *options;
    unsigned long flags;
    mode_t mode;
} mounts[] = {
    {"proc", "/proc", "", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0755},
    {"sysfs", "/sys", "", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0755},
    {"devtmpfs", "/dev", "mode=0755", MS_NOSUID, 0755},
    {"devpts", "/dev/pts", "gid=5,mode=0620,ptmxmode=0666", MS_NOSUID | MS_NOEXEC, 0755},
    {"tmpfs", "/dev/shm", "mode=1777", MS_NOSUID | MS_NODEV, 01777},
    {"tmpfs", "/run", "mode=0755", MS_NOSUID | MS_NODEV, 0755},
    {"tmpfs", "/tmp", "mode=1777", MS_NOSUID | MS_NODEV, 01777},
    {"cgroup2", "/sys/fs/cgroup", "", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0755},
};

static const char *const links[][2] = {
    {"/proc/self/fd", "/dev/fd"},
    {"/proc/self/fd/0", "/dev/stdin"},
    {"/proc/self/fd/1", "/dev/stdout"},
    {"/proc/self/fd/2", "/dev/stderr"},
};

void setup_mounts(void) {
    for (size_t i = 0; i < sizeof mounts / sizeof mounts[0]; i++) {
        mkdir(mounts[i].at, mounts[i].mode);
        if (mount(mounts[i].type, mounts[i].at, mounts[i].type, mounts[i].flags,
                  mounts[i].options) < 0 &&
            errno != EBUSY)
            say("mount %s: %s", mounts[i].at, strerror(errno));
    }
    for (size_t i = 0; i < sizeof links / sizeof links[0]; i++)
        if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
            say("%s: %s", links[i][1], strerror(errno));
}

/* ---- Memory ---- */

static bool write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    if (fd >= 0)
        close(fd);
    return done;
}

static bool file_says(const char *path, const char *text) {
    char bytes[64] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = fd >= 0 ? read(fd, bytes, sizeof bytes - 1) : -1;
    if (fd >= 0)
        close(fd);
    return length > 0 && strncmp(bytes, text, strlen(text)) == 0;
}

/* Blocks that came before anybody said what is to become of them. */
static void online_blocks(void) {
    DIR *list = opendir("/sys/devices/system/memory");
    struct dirent *entry;
    while (list != NULL && (entry = readdir(list)) != NULL) {
        char path[300];
        snprintf(path, sizeof path, "/sys/devices/system/memory/%s/state", entry->d_name);
        if (strncmp(entry->d_name, "memory", 6) == 0 && file_says(path, "offline"))
            write_file(path, "online");
    }
    if (list != NULL)
        closedir(list);
}

/* Most of it for what can be moved, so that it can be unplugged again: as much as the kernel's own
 * structures elsewhere can serve. */
void setup_memory(void) {
    static const char automatic[] = "/sys/devices/system/memory/auto_online_blocks";
    if (!file_says(automatic, "offline"))
        return;
    write_file("/sys/module/memory_hotplug/parameters/online_policy", "auto-movable");
    write_file(automatic, "online");
    online_blocks();
}

/* ---- Network ---- */

static int interface_call(int fd, unsigned long call, const char *name, struct ifreq *request) {
    snprintf(request->ifr_name, sizeof request->ifr_name, "%s", name);
    return ioctl(fd, call, request);
}

static int interface_up(int fd, const char *name) {
    struct ifreq request = {0};
    if (interface_call(fd, SIOCGIFFLAGS, name, &request) < 0)
        return -errno;
    request.ifr_flags |= IFF_UP;
    return interface_call(fd, SIOCSIFFLAGS, name, &request) < 0 ? -errno : 0;
}

static int interface_address(int fd, const char *name, struct in_addr address, unsigned prefix) {
    struct ifreq request = {0};
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr = address};
    memcpy(&request.ifr_addr, &in, sizeof in);
    if (interface_call(fd, SIOCSIFADDR, name, &request) < 0)
        return -errno;
    in.sin_addr.s_addr = prefix == 0 ? 0 : htonl(UINT32_MAX << (32 - prefix));
    memcpy(&request.ifr_netmask, &in, sizeof in);
    return interface_call(fd, SIOCSIFNETMASK, name, &request) < 0 ? -errno : 0;
}

static int default_route(int fd, struct in_addr gateway) {
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
    struct sockaddr_in any = {.sin_family = AF_INET}, via = any;
    via.sin_addr = gateway;
    memcpy(&route.rt_dst, &any, sizeof any);
    memcpy(&route.rt_genmask, &any, sizeof any);
    memcpy(&route.rt_gateway, &via, sizeof via);
    return ioctl(fd, SIOCADDRT, &route) < 0 ? -errno : 0;
}

static void name_server(const char *server) {
    int fd = open("/etc/resolv.conf", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return;
    dprintf(fd, "nameserver %s\n", server);
    close(fd);
}

struct network {
    struct in_addr address, gateway;
    unsigned prefix;
    char server[64];
};

/* "lodge.net=ADDRESS/PREFIX,GATEWAY,SERVER" on the kernel's command line: what DHCP would say,
 * known beforehand to the host, without its round trips. */
static bool read_network(struct network *network) {
    char line[4096], address[64], gateway[64];
    int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t length = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
    if (fd >= 0)
        close(fd);
    if (length < 0)
        return false;
    line[length] = 0;
    const char *at = strstr(line, "lodge.net=");
    return at != NULL &&
           sscanf(at, "lodge.net=%63[0-9.]/%2u,%63[0-9.],%63[0-9.]", address, &network->prefix,
                  gateway, network->server) == 4 &&
           network->prefix <= 32 && inet_pton(AF_INET, address, &network->address) == 1 &&
           inet_pton(AF_INET, gateway, &network->gateway) == 1;
}

/* Nothing known: ask by DHCP, in the background. */
static void start_dhcp(const char *name) {
    if (fork() != 0)
        return;
    execl("/bin/busybox", "udhcpc", "-q", "-b", "-i", name, "-s", "/etc/udhcpc.script",
          (char *)NULL);
    _exit(127);
}

void setup_network(void) {
    static const char name[] = "eth0";
    struct network network;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    interface_up(fd, "lo");
    if (interface_up(fd, name) == 0) {
        int result = 0;
        if (!read_network(&network))
            start_dhcp(name);
        else if ((result = interface_address(fd, name, network.address, network.prefix)) == 0 &&
                 (result = default_route(fd, network.gateway)) == 0)
            name_server(network.server);
        if (result < 0)
            say("%s: %s", name, strerror(-result));
    }
    close(fd);
    if (sethostname("lodge", 5) < 0)
        say("host name: %s", strerror(errno));
}
