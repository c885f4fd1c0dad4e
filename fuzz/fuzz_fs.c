/*
 * The server of shared directories under a guest that the input spells out: requests of all kinds
 * with numbers from both sides of what is known, names good and bad, any lengths. Nothing beside
 * the directory may change, and every answer must fit its room.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../tests/unit/fuse_client.h"
#include "base/bytes.h"

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            __builtin_trap();                                                                      \
    } while (0)

enum { STEPS_MAX = 64, KNOWN_MAX = 16, FILE_MAX = 1 << 20 };

struct input {
    const uint8_t *bytes;
    size_t length;
};

static struct {
    char top[64];
    int top_fd;
    uint64_t nodes[KNOWN_MAX], handles[KNOWN_MAX];
    unsigned node_count, handle_count;
} guest;

static uint64_t take(struct input *input, unsigned size) {
    size_t n = size < input->length ? size : input->length;
    uint64_t value = load_le(input->bytes, (unsigned)n);
    input->bytes += n;
    input->length -= n;
    return value;
}

/* ---- The directory, the same before each input ---- */

static void put_file(const char *path, const char *text) {
    int fd = openat(guest.top_fd, path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    close(fd);
}

static void clear_directory(int at, const char *name) {
    fchmodat(at, name, 0700, 0);
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
    DIR *list = fd >= 0 ? fdopendir(fd) : NULL;
    struct dirent *entry;
    while (list != NULL && (entry = readdir(list)) != NULL) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        if (unlinkat(dirfd(list), entry->d_name, 0) < 0) {
            clear_directory(dirfd(list), entry->d_name);
            unlinkat(dirfd(list), entry->d_name, AT_REMOVEDIR);
        }
    }
    if (list != NULL)
        closedir(list);
}

static void make_directory(void) {
    clear_directory(guest.top_fd, "share");
    put_file("share/file", "a file of some bytes");
    mkdirat(guest.top_fd, "share/sub", 0755);
    put_file("share/sub/file", "another");
    symlinkat("../secret", guest.top_fd, "share/away");
    mkfifoat(guest.top_fd, "share/fifo", 0644);
}

static void remove_all(void) {
    clear_directory(guest.top_fd, ".");
    rmdir(guest.top);
}

static void prepare(void) {
    const struct rlimit limit = {FILE_MAX, FILE_MAX};
    strcpy(guest.top, "/dev/shm/lodge-fuzz-fs-XXXXXX");
    CHECK(mkdtemp(guest.top) != NULL);
    guest.top_fd = open(guest.top, O_RDONLY | O_DIRECTORY);
    CHECK(guest.top_fd >= 0);
    mkdirat(guest.top_fd, "share", 0755);
    mkdirat(guest.top_fd, "secret", 0755);
    put_file("secret/key", "outside");
    atexit(remove_all);
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
}

static unsigned count_entries(const char *name) {
    int fd = openat(guest.top_fd, name, O_RDONLY | O_DIRECTORY);
    DIR *list = fdopendir(fd);
    unsigned count = 0;
    CHECK(list != NULL);
    while (readdir(list) != NULL)
        count++;
    closedir(list);
    return count;
}

static void check_secret(void) {
    struct stat key;
    CHECK(fstatat(guest.top_fd, "secret/key", &key, AT_SYMLINK_NOFOLLOW) == 0);
    CHECK(key.st_size == 7 && key.st_nlink == 1 && key.st_mode == (S_IFREG | 0644));
    CHECK(count_entries(".") == 4 && count_entries("secret") == 3);
}

/* ---- The guest ---- */

static uint64_t pick(struct input *input, const uint64_t *known, unsigned count) {
    uint8_t which = (uint8_t)take(input, 1);
    return which < 240 && count > 0 ? known[which % count] : take(input, 8);
}

static void add_name(struct fuse_client *client, struct input *input) {
    static const char *const names[] = {"file", "sub", "away", "fifo", "new",           "x",
                                        "..",   ".",   "",     "a/b",  "../secret/key", "user.a"};
    uint8_t which = (uint8_t)take(input, 1);
    client_add_text(client, names[which % ARRAY_SIZE(names)]);
}

/* What a good answer tells the guest of. */
static void learn(struct fuse_client *client, uint32_t opcode) {
    const uint8_t *answer = client_answer(client);
    size_t length = client_answer_length(client);
    bool entry = opcode == FUSE_LOOKUP || opcode == FUSE_MKDIR || opcode == FUSE_MKNOD ||
                 opcode == FUSE_SYMLINK || opcode == FUSE_LINK || opcode == FUSE_CREATE;
    size_t handle = opcode == FUSE_CREATE ? sizeof(struct fuse_entry_out) : 0;
    if (entry && length >= sizeof(struct fuse_entry_out))
        guest.nodes[guest.node_count++ % KNOWN_MAX] = load_le64(answer);
    if ((opcode == FUSE_OPEN || opcode == FUSE_OPENDIR || opcode == FUSE_CREATE) &&
        length >= handle + sizeof(struct fuse_open_out))
        guest.handles[guest.handle_count++ % KNOWN_MAX] = load_le64(answer + handle);
}

static unsigned known(unsigned count) {
    return count < KNOWN_MAX ? count : KNOWN_MAX;
}

static void step(struct fuse_client *client, struct input *input) {
    static uint8_t data[4096];
    uint32_t opcode = (uint32_t)take(input, 1) % 56;
    uint8_t how = (uint8_t)take(input, 1);
    client_start(client, opcode, pick(input, guest.nodes, known(guest.node_count)));
    if (how & 1) {
        uint64_t handle = pick(input, guest.handles, known(guest.handle_count));
        client_add(client, &handle, sizeof handle);
    }
    uint8_t length = (uint8_t)take(input, 1) % 96;
    if (length > input->length)
        length = (uint8_t)input->length;
    client_add(client, input->bytes, length);
    take(input, length);
    if (how & 2)
        add_name(client, input);
    if (how & 4)
        add_name(client, input);
    if (opcode == FUSE_READ || opcode == FUSE_WRITE)
        client->data = (struct iovec){.iov_base = data, .iov_len = how & 8 ? sizeof data : 16};
    if (how & 16)
        client->out_room = sizeof(struct fuse_out_header) + (size_t)(how >> 5) * 24;
    int error;
    if (how == 255)
        client_serve(client), error = -1; /* the header's length is 0 */
    else
        error = client_send(client);
    CHECK(error <= 0 && error > -512);
    CHECK(client->message.out_length <= client->out_room);
    CHECK(client->message.data_filled <= client->data.iov_len);
    if (error == 0 && client->message.out_length > 0)
        learn(client, opcode);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size) {
    static struct fuse_client client;
    struct input input = {bytes, size};
    char path[96];
    if (guest.top_fd == 0)
        prepare();
    make_directory();
    snprintf(path, sizeof path, "%s/share", guest.top);
    /* One of many, so that descriptors run short. */
    CHECK(fs_open(path, take(&input, 1) % 8 == 0, 1 << 16, &client.fs, NULL) == 0);
    guest.nodes[0] = FUSE_ROOT_ID;
    guest.node_count = 1;
    guest.handle_count = 0;
    CHECK(client_init(&client) == 0);
    for (unsigned i = 0; i < STEPS_MAX && input.length > 0; i++)
        step(&client, &input);
    fs_close(client.fs);
    check_secret();
    return 0;
}
