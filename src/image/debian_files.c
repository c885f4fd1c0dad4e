/* What a Debian of lodge's has beside its packages. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "image/build.h"
#include "image/file.h"

const char debian_kernel_options[] = "ro console=ttyS0 quiet";

/* The drivers of a lodge machine's disks (and of most others'), and nothing more: initramfs-tools
 * would take nearly all there are. */
const char debian_initramfs_hook[] =
    "mkdir -p \"$1/etc/initramfs-tools/conf.d\" \"$1/usr/share/initramfs-tools/modules.d\" && "
    "printf 'MODULES=list\\nBUSYBOX=n\\nCOMPRESS=zstd\\n' "
    ">\"$1/etc/initramfs-tools/conf.d/lodge\" && "
    "printf '%s\\n' virtio_pci virtio_blk virtio_scsi nvme sd_mod ext4 crc32c_generic "
    ">\"$1/usr/share/initramfs-tools/modules.d/lodge\"";

struct guest_file {
    const char *path;
    unsigned mode;
    const char *text;
};

#define UNIT_DIRECTORY "etc/systemd/system/"

static const struct guest_file files[] = {
    {"etc/hostname", 0644, "debian\n"},
    {"etc/hosts", 0644, "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost ip6-localhost\n"},
    {"etc/systemd/network/80-lodge.network", 0644,
     "# Any Ethernet card, by DHCP.\n"
     "[Match]\nType=ether\n\n[Network]\nDHCP=ipv4\n"},
    {"etc/modules-load.d/lodge.conf", 0644,
     "# lodge-agent's way to the host.\nvmw_vsock_virtio_transport\n"},
    {"etc/udev/rules.d/80-lodge-cpus.rules", 0644,
     "# Processors that are plugged in (lodge cpus) are used at once.\n"
     "SUBSYSTEM==\"cpu\", ACTION==\"add\", ATTR{online}==\"0\", ATTR{online}=\"1\"\n"},
    {UNIT_DIRECTORY "lodge-agent.service", 0644,
     "[Unit]\n"
     "Description=lodge's agent: runs what the host asks for\n"
     "After=systemd-modules-load.service systemd-networkd.service systemd-resolved.service "
     "dbus.service\n"
     "ConditionPathExistsGlob=/sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio*\n\n"
     "[Service]\n"
     "# What is run first may want the network.\n"
     "ExecStartPre=-/bin/sh -c '[ ! -e /sys/class/net/e* ] || "
     "exec /lib/systemd/systemd-networkd-wait-online --any --timeout=20'\n"
     "ExecStart=/usr/local/sbin/lodge-agent\n"
     "Restart=on-failure\n"
     "OOMScoreAdjust=-900\n\n"
     "[Install]\nWantedBy=multi-user.target\n"},
    {UNIT_DIRECTORY "serial-getty@ttyS0.service.d/lodge.conf", 0644,
     "# Who has the serial port has the machine.\n"
     "[Service]\nExecStart=\n"
     "ExecStart=-/sbin/agetty --autologin root --keep-baud 115200,57600,38400,9600 - $TERM\n"},
    {UNIT_DIRECTORY "ssh.service.d/lodge.conf", 0644,
     "# Each machine gets a key of its own, when it first starts.\n"
     "[Service]\nExecStartPre=\n"
     "ExecStartPre=/bin/sh -c '[ -s /etc/ssh/ssh_host_ed25519_key ] || exec ssh-keygen -q -t "
     "ed25519 -N \"\" -f /etc/ssh/ssh_host_ed25519_key'\n"
     "ExecStartPre=/usr/sbin/sshd -t\n"},
    {"etc/ssh/sshd_config.d/lodge.conf", 0644, "HostKey /etc/ssh/ssh_host_ed25519_key\n"},
    {"etc/cloud/cloud.cfg.d/90_lodge.cfg", 0644,
     "# Without a disk labelled CIDATA (lodge run --cloud-init) cloud-init does nothing.\n"
     "datasource_list: [NoCloud, ConfigDrive]\n"
     "network: {config: disabled}\n"
     "locale: \"false\"\n"
     "ssh_deletekeys: false\n"
     "ssh_genkeytypes: [ed25519]\n"
     "apt: {preserve_sources_list: true}\n"},
    {"etc/cloud/ds-identify.cfg", 0644,
     "policy: search,found=first,maybe=none,notfound=disabled\n"},
};

static const char *const links[][2] = {
    {"etc/resolv.conf", "/run/systemd/resolve/stub-resolv.conf"},
    {UNIT_DIRECTORY "multi-user.target.wants/lodge-agent.service",
     "/" UNIT_DIRECTORY "lodge-agent.service"},
    {UNIT_DIRECTORY "multi-user.target.wants/systemd-networkd.service",
     "/lib/systemd/system/systemd-networkd.service"},
    {UNIT_DIRECTORY "dbus-org.freedesktop.network1.service",
     "/lib/systemd/system/systemd-networkd.service"},
    {UNIT_DIRECTORY "sockets.target.wants/systemd-networkd.socket",
     "/lib/systemd/system/systemd-networkd.socket"},
    {UNIT_DIRECTORY "network-online.target.wants/systemd-networkd-wait-online.service",
     "/lib/systemd/system/systemd-networkd-wait-online.service"},
};

/* The symbolic links are Debian's own, kept up to date by its kernel packages. */
static const char menu[] = "serial --unit=0 --speed=115200\n"
                           "terminal_input serial\nterminal_output serial\n"
                           "set timeout=0\n"
                           "linux /vmlinuz root=UUID=%s %s\n"
                           "initrd /initrd.img\n"
                           "boot\n";

/* ---- Writing ---- */

static int make_parent(const char *path, struct error *err) {
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%s", path);
    *strrchr(parent, '/') = 0;
    return make_directories(parent, err);
}

static int write_file(const char *directory, const struct guest_file *file, struct error *err) {
    char path[PATH_MAX];
    int result = path_join(path, directory, file->path, err);
    if (result == 0)
        result = make_parent(path, err);
    if (result < 0)
        return result;
    FILE *out = fopen(path, "we");
    bool good = out != NULL && fputs(file->text, out) >= 0 && fchmod(fileno(out), file->mode) == 0;
    if (out != NULL && fclose(out) != 0)
        good = false;
    return good ? 0 : error_set_errno(err, -errno, "%s", path);
}

static int make_link(const char *directory, const char *name, const char *target,
                     struct error *err) {
    char path[PATH_MAX];
    int result = path_join(path, directory, name, err);
    if (result == 0)
        result = make_parent(path, err);
    if (result == 0 && symlink(target, path) < 0)
        result = error_set_errno(err, -errno, "%s", path);
    return result;
}

static int copy_agent(const char *directory, const char *agent, struct error *err) {
    char path[PATH_MAX];
    int result = path_join(path, directory, "usr/local/sbin/lodge-agent", err);
    const char *const argv[] = {"install", "-D", "-m", "755", agent, path, NULL};
    return result == 0 ? program_run(&(struct program){.argv = argv}, err) : result;
}

int debian_write_files(const char *directory, const char *agent, const char *root_uuid,
                       struct error *err) {
    char grub[512], fstab[256];
    int result = 0;
    snprintf(grub, sizeof grub, menu, root_uuid, debian_kernel_options);
    snprintf(fstab, sizeof fstab, "UUID=%s / ext4 errors=remount-ro 0 1\n", root_uuid);
    for (size_t i = 0; i < sizeof files / sizeof files[0] && result == 0; i++)
        result = write_file(directory, &files[i], err);
    if (result == 0)
        result = write_file(directory, &(struct guest_file){"etc/fstab", 0644, fstab}, err);
    if (result == 0)
        result = write_file(directory, &(struct guest_file){"boot/grub/grub.cfg", 0644, grub}, err);
    for (size_t i = 0; i < sizeof links / sizeof links[0] && result == 0; i++)
        result = make_link(directory, links[i][0], links[i][1], err);
    return result == 0 ? copy_agent(directory, agent, err) : result;
}
