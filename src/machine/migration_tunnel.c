#include "machine/migration_tunnel.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/* In the range that nobody has registered; written out in the man page. */
static const char default_port[] = "49320";

struct tunnel {
    int fd;
    SSL *tls; /* NULL: a Unix socket */
    SSL_CTX *context;
    bool heard; /* something has come, after the handshake */
};

struct tunnel_listener {
    int fd;
    char path[TUNNEL_ADDRESS_MAX]; /* empty: TCP */
    SSL_CTX *context;              /* NULL: a Unix socket */
};

/* ---- Addresses ---- */

/* The path of a Unix socket; NULL: TCP. */
static const char *unix_path(const char *address) {
    return strncmp(address, "unix:", 5) == 0 ? address + 5 : NULL;
}

static int unix_address(const char *path, struct sockaddr_un *name, struct error *err) {
    *name = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (path[0] == 0 || strlen(path) >= sizeof name->sun_path)
        return error_set(err, -EINVAL, "unix:%.80s: a socket's path has 1 to %zu bytes", path,
                         sizeof name->sun_path - 1);
    snprintf(name->sun_path, sizeof name->sun_path, "%s", path);
    return 0;
}

/* Cut up: host (empty: everywhere) and port. */
static int tcp_address(const char *address, bool listening, char host[TUNNEL_ADDRESS_MAX],
                       const char **port, struct error *err) {
    const char *from = strncmp(address, "tcp:", 4) == 0 ? address + 4 : address;
    if (from[0] == 0 || strlen(from) >= TUNNEL_ADDRESS_MAX)
        return error_set(err, -EINVAL, "'%.80s' is no address: HOST[:PORT] or unix:PATH", address);
    bool bracket = from[0] == '[';
    snprintf(host, TUNNEL_ADDRESS_MAX, "%s", from + bracket);
    char *end = bracket ? strchr(host, ']') : strrchr(host, ':');
    *port = default_port;
    if (bracket && (end == NULL || (end[1] != 0 && end[1] != ':')))
        return error_set(err, -EINVAL, "'%.80s' is no address: [IPv6]:PORT", address);
    if (end != NULL && end[bracket] != 0)
        *port = end + 1 + bracket;
    if (end != NULL)
        *end = 0;
    if (listening && end == NULL && strspn(host, "0123456789") == strlen(host)) {
        *port = from;
        host[0] = 0;
    }
    return 0;
}

static int look_up(const char *host, const char *port, bool listening, struct addrinfo **found,
                   struct error *err) {
    struct addrinfo wanted = {.ai_socktype = SOCK_STREAM, .ai_flags = listening ? AI_PASSIVE : 0};
    int result = getaddrinfo(host[0] != 0 ? host : NULL, port, &wanted, found);
    return result == 0
               ? 0
               : error_set(err, -EHOSTUNREACH, "%.80s:%.20s: %s", host, port, gai_strerror(result));
}

/* ---- TLS ---- */

/* The newest thing that OpenSSL has to say. */
static const char *tls_words(void) {
    unsigned long code = ERR_peek_last_error();
    const char *words = code != 0 ? ERR_reason_error_string(code) : NULL;
    return words != NULL ? words : "the connection broke";
}

static int load_keys(SSL_CTX *context, const struct tunnel_keys *keys, struct error *err) {
    ERR_clear_error();
    if (SSL_CTX_load_verify_file(context, keys->authority) != 1)
        return error_set(err, -EINVAL, "--ca %.150s: %s", keys->authority, tls_words());
    if (SSL_CTX_use_certificate_chain_file(context, keys->certificate) != 1)
        return error_set(err, -EINVAL, "--cert %.150s: %s", keys->certificate, tls_words());
    if (SSL_CTX_use_PrivateKey_file(context, keys->key, SSL_FILETYPE_PEM) != 1)
        return error_set(err, -EINVAL, "--key %.150s: %s", keys->key, tls_words());
    return 0;
}

static int make_context(const struct tunnel_keys *keys, SSL_CTX **context, struct error *err) {
    if (keys->authority == NULL || keys->certificate == NULL || keys->key == NULL)
        return error_set(err, -EINVAL,
                         "over TCP both sides show certificates: give --ca, --cert and --key");
    SSL_CTX *made = SSL_CTX_new(TLS_method());
    if (made == NULL || SSL_CTX_set_min_proto_version(made, TLS1_3_VERSION) != 1) {
        SSL_CTX_free(made);
        return error_set(err, -ENOMEM, "out of memory");
    }
    SSL_CTX_set_verify(made, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    SSL_CTX_set_mode(made, SSL_MODE_AUTO_RETRY);
    int result = load_keys(made, keys, err);
    if (result < 0)
        SSL_CTX_free(made);
    else
        *context = made;
    return result;
}

/* ---- Connections ---- */

static void prepare(int fd) {
    struct timeval silence = {.tv_sec = TUNNEL_SILENCE_SECONDS};
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &silence, sizeof silence);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &silence, sizeof silence);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on); /* of no meaning for Unix sockets */
}

static int refused(struct tunnel *tunnel, struct error *err) {
    long verdict = SSL_get_verify_result(tunnel->tls);
    if (verdict != X509_V_OK)
        return error_set(err, -EACCES, "the other side's certificate is refused: %s",
                         X509_verify_cert_error_string(verdict));
    return error_set(err, -EACCES, "no TLS connection comes about: %s", tls_words());
}

/* name: whose certificate it has to be; NULL: anybody's that the authority has signed. */
static int shake_hands(struct tunnel *tunnel, const char *name, struct error *err) {
    ERR_clear_error();
    tunnel->tls = SSL_new(tunnel->context);
    if (tunnel->tls == NULL || SSL_set_fd(tunnel->tls, tunnel->fd) != 1)
        return error_set(err, -ENOMEM, "out of memory");
    if (name == NULL)
        return SSL_accept(tunnel->tls) == 1 ? 0 : refused(tunnel, err);
    X509_VERIFY_PARAM *rules = SSL_get0_param(tunnel->tls);
    if (X509_VERIFY_PARAM_set1_ip_asc(rules, name) != 1 && SSL_set1_host(tunnel->tls, name) != 1)
        return error_set(err, -EINVAL, "'%.80s' is no name of a host", name);
    return SSL_connect(tunnel->tls) == 1 ? 0 : refused(tunnel, err);
}

/* fd and context become the tunnel's, which may be NULL. */
static int make_tunnel(int fd, SSL_CTX *context, const char *name, struct tunnel **tunnel,
                       struct error *err) {
    struct tunnel *made = calloc(1, sizeof *made);
    if (made == NULL) {
        close(fd);
        SSL_CTX_free(context);
        return error_set(err, -ENOMEM, "out of memory");
    }
    *made = (struct tunnel){.fd = fd, .context = context};
    prepare(fd);
    int result = context != NULL ? shake_hands(made, name, err) : 0;
    if (result < 0)
        tunnel_close(made);
    else
        *tunnel = made;
    return result;
}

static int connect_unix(const char *path, int *fd, struct error *err) {
    struct sockaddr_un name;
    int result = unix_address(path, &name, err);
    if (result < 0)
        return result;
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*fd >= 0 && connect(*fd, (const struct sockaddr *)&name, sizeof name) == 0)
        return 0;
    result = error_set_errno(err, -errno, "unix:%s", path);
    if (*fd >= 0)
        close(*fd);
    return result;
}

static int connect_tcp(const char *host, const char *port, int *fd, struct error *err) {
    struct addrinfo *found;
    int result = look_up(host, port, false, &found, err);
    if (result < 0)
        return result;
    result = -EHOSTUNREACH;
    for (const struct addrinfo *one = found; one != NULL && result < 0; one = one->ai_next) {
        *fd = socket(one->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        result = *fd < 0 || connect(*fd, one->ai_addr, one->ai_addrlen) < 0 ? -errno : 0;
        if (result < 0 && *fd >= 0)
            close(*fd);
    }
    freeaddrinfo(found);
    return result < 0 ? error_set_errno(err, result, "%.80s:%.20s", host, port) : 0;
}

int tunnel_connect(const char *address, const struct tunnel_keys *keys, struct tunnel **tunnel,
                   struct error *err) {
    const char *path = unix_path(address), *port = default_port;
    char host[TUNNEL_ADDRESS_MAX] = "";
    SSL_CTX *context = NULL;
    int fd = -1, result = path == NULL ? tcp_address(address, false, host, &port, err) : 0;
    if (result == 0 && path == NULL)
        result = make_context(keys, &context, err);
    if (result == 0)
        result = path != NULL ? connect_unix(path, &fd, err) : connect_tcp(host, port, &fd, err);
    if (result < 0) {
        SSL_CTX_free(context);
        return result;
    }
    return make_tunnel(fd, context, host, tunnel, err);
}

/* ---- Listening ---- */

/* A socket that a killed listener has left is in the way; one that somebody listens at stays. */
static void clear_path(const struct sockaddr_un *name) {
    struct stat status;
    int fd;
    if (lstat(name->sun_path, &status) < 0 || !S_ISSOCK(status.st_mode))
        return;
    if (connect_unix(name->sun_path, &fd, NULL) == 0)
        close(fd);
    else
        unlink(name->sun_path);
}

static int listen_unix(struct tunnel_listener *listener, struct error *err) {
    struct sockaddr_un name;
    int result = unix_address(listener->path, &name, err);
    if (result < 0)
        return result;
    clear_path(&name);
    listener->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    mode_t old = umask(0177); /* of the same user, or root */
    bool good = listener->fd >= 0 &&
                bind(listener->fd, (const struct sockaddr *)&name, sizeof name) == 0 &&
                listen(listener->fd, 16) == 0;
    result = good ? 0 : error_set_errno(err, -errno, "unix:%s", listener->path);
    umask(old);
    return result;
}

static int listen_tcp(struct tunnel_listener *listener, const char *host, const char *port,
                      struct error *err) {
    struct addrinfo *found;
    int on = 1, result = look_up(host, port, true, &found, err);
    if (result < 0)
        return result;
    listener->fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener->fd >= 0)
        setsockopt(listener->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    bool good = listener->fd >= 0 && bind(listener->fd, found->ai_addr, found->ai_addrlen) == 0 &&
                listen(listener->fd, 16) == 0;
    result = good ? 0 : error_set_errno(err, -errno, "%.80s:%.20s", host, port);
    freeaddrinfo(found);
    return result;
}

int tunnel_listen(const char *address, const struct tunnel_keys *keys,
                  struct tunnel_listener **listener, struct error *err) {
    const char *path = unix_path(address), *port = default_port;
    char host[TUNNEL_ADDRESS_MAX] = "";
    struct tunnel_listener *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->fd = -1;
    int result = path == NULL ? tcp_address(address, true, host, &port, err) : 0;
    if (result == 0 && path == NULL)
        result = make_context(keys, &made->context, err);
    if (result == 0 && path != NULL) {
        snprintf(made->path, sizeof made->path, "%s", path);
        result = strlen(path) < sizeof made->path
                     ? listen_unix(made, err)
                     : error_set(err, -EINVAL, "unix:%.80s: the path is too long", path);
    } else if (result == 0) {
        result = listen_tcp(made, host, port, err);
    }
    if (result < 0) {
        made->path[0] = 0; /* whosever that is, it stays */
        tunnel_listener_close(made);
    } else {
        *listener = made;
    }
    return result;
}

int tunnel_listener_fd(const struct tunnel_listener *listener) {
    return listener->fd;
}

void tunnel_listener_close(struct tunnel_listener *listener) {
    if (listener == NULL)
        return;
    if (listener->fd >= 0)
        close(listener->fd);
    if (listener->path[0] != 0)
        unlink(listener->path);
    SSL_CTX_free(listener->context);
    free(listener);
}

/* Only the same user and root move VMs here by a Unix socket. */
static bool is_friend(const struct tunnel_listener *listener, int fd) {
    struct ucred peer = {.uid = (uid_t)-1};
    socklen_t size = sizeof peer;
    return listener->path[0] == 0 || (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 &&
                                      (peer.uid == geteuid() || peer.uid == 0));
}

int tunnel_accept(struct tunnel_listener *listener, int *fd, struct error *err) {
    *fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC);
    if (*fd < 0)
        return error_set_errno(err, -errno, "accept");
    if (is_friend(listener, *fd))
        return 0;
    close(*fd);
    return error_set(err, -EACCES, "another user has tried to connect");
}

int tunnel_open(const struct tunnel_listener *listener, int fd, struct tunnel **tunnel,
                struct error *err) {
    if (listener->context != NULL)
        SSL_CTX_up_ref(listener->context);
    return make_tunnel(fd, listener->context, NULL, tunnel, err);
}

/* ---- Bytes ---- */

/* What a call that moved nothing means; 0: again. */
static int why(const struct tunnel *tunnel, ssize_t done, struct error *err) {
    int error = errno;
    if (done < 0 && error == EINTR)
        return 0;
    if (done < 0 && (error == EAGAIN || error == EWOULDBLOCK))
        return error_set(err, -ETIMEDOUT, "the other side has not answered for %d s",
                         TUNNEL_SILENCE_SECONDS);
    if (tunnel->tls != NULL && !tunnel->heard) /* in TLS 1.3 it looks at ours after the handshake */
        return error_set(err, -ECONNRESET,
                         "the other side has ended the connection at once; does it trust this "
                         "host's certificate?");
    if (done == 0 || error == 0 || error == EPIPE || error == ECONNRESET || tunnel->tls != NULL)
        return error_set(err, -ECONNRESET, "the connection broke");
    return error_set_errno(err, -error, "the connection broke");
}

static int clipped(size_t length) {
    enum { PIECE = 1 << 20 };
    return length < PIECE ? (int)length : PIECE;
}

int tunnel_read(struct tunnel *tunnel, void *to, size_t length, struct error *err) {
    uint8_t *at = to;
    while (length > 0) {
        errno = 0;
        ERR_clear_error();
        ssize_t done = tunnel->tls != NULL ? SSL_read(tunnel->tls, at, clipped(length))
                                           : recv(tunnel->fd, at, length, 0);
        int result = done <= 0 ? why(tunnel, done, err) : 0;
        if (result < 0)
            return result;
        tunnel->heard |= done > 0;
        at += done > 0 ? done : 0;
        length -= done > 0 ? (size_t)done : 0;
    }
    return 0;
}

int tunnel_write(struct tunnel *tunnel, const void *from, size_t length, struct error *err) {
    const uint8_t *at = from;
    while (length > 0) {
        errno = 0;
        ERR_clear_error();
        ssize_t done = tunnel->tls != NULL ? SSL_write(tunnel->tls, at, clipped(length))
                                           : send(tunnel->fd, at, length, MSG_NOSIGNAL);
        int result = done <= 0 ? why(tunnel, done, err) : 0;
        if (result < 0)
            return result;
        at += done > 0 ? done : 0;
        length -= done > 0 ? (size_t)done : 0;
    }
    return 0;
}

int tunnel_adopt(int fd, struct tunnel **tunnel, struct error *err) {
    return make_tunnel(fd, NULL, NULL, tunnel, err);
}

int tunnel_fd(const struct tunnel *tunnel) {
    return tunnel->fd;
}

/* Of no meaning for Unix sockets, which hold no more than that. */
void tunnel_be_prompt(struct tunnel *tunnel) {
    int unsent = 128 << 10;
    setsockopt(tunnel->fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof unsent);
}

bool tunnel_wait(struct tunnel *tunnel, int ms) {
    struct pollfd ready = {.fd = tunnel->fd, .events = POLLIN};
    return (tunnel->tls != NULL && SSL_has_pending(tunnel->tls)) || poll(&ready, 1, ms) > 0;
}

void tunnel_break(struct tunnel *tunnel) {
    shutdown(tunnel->fd, SHUT_RDWR);
}

void tunnel_close(struct tunnel *tunnel) {
    if (tunnel == NULL)
        return;
    SSL_free(tunnel->tls);
    SSL_CTX_free(tunnel->context);
    close(tunnel->fd);
    free(tunnel);
}
