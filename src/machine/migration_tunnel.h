/*
 * The connection that a VM moves over: a Unix socket, or TCP with TLS 1.3 on
 * which both sides show a certificate that the same authority has signed.
 * Everything waits, up to TUNNEL_SILENCE_SECONDS for the other side; for threads that may.
 */
#ifndef LODGE_MACHINE_MIGRATION_TUNNEL_H
#define LODGE_MACHINE_MIGRATION_TUNNEL_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

enum { TUNNEL_SILENCE_SECONDS = 60, TUNNEL_ADDRESS_MAX = 300 };

/* Files in PEM. All NULL for Unix sockets, all given for TCP. */
struct tunnel_keys {
    const char *authority, *certificate, *key;
};

struct tunnel;
struct tunnel_listener;

/*
 * address: "unix:PATH", "HOST", "HOST:PORT" or "[IPv6]:PORT", with or without "tcp:" before it.
 * -EINVAL: no address, or keys are missing; -ECONNREFUSED and so on; -EACCES: the other side's
 * certificate is not to be trusted, or it does not trust ours.
 */
int tunnel_connect(const char *address, const struct tunnel_keys *keys, struct tunnel **tunnel,
                   struct error *err);

/* As tunnel_connect; "tcp:PORT" listens everywhere. */
int tunnel_listen(const char *address, const struct tunnel_keys *keys,
                  struct tunnel_listener **listener, struct error *err);
int tunnel_listener_fd(const struct tunnel_listener *listener);
void tunnel_listener_close(struct tunnel_listener *listener); /* removes a Unix socket's file */
/* A connection as it came, then the handshake on it, perhaps in another process. */
int tunnel_accept(struct tunnel_listener *listener, int *fd, struct error *err);
int tunnel_open(const struct tunnel_listener *listener, int fd, struct tunnel **tunnel,
                struct error *err);

/* A connected socket that is to be trusted becomes a tunnel's; closed when it cannot. */
int tunnel_adopt(int fd, struct tunnel **tunnel, struct error *err);

/* All of it or an error: -ECONNRESET (the other side is gone), -ETIMEDOUT. */
int tunnel_read(struct tunnel *tunnel, void *to, size_t length, struct error *err);
int tunnel_write(struct tunnel *tunnel, const void *from, size_t length, struct error *err);
/* Something can be read, within that time. */
bool tunnel_wait(struct tunnel *tunnel, int ms);
/* To wait for more things at a time, once tunnel_wait says that nothing is there. */
int tunnel_fd(const struct tunnel *tunnel);
/* Little is to wait in the kernel from now on, so that what is sent next is there soon. */
void tunnel_be_prompt(struct tunnel *tunnel);
/* Any thread: whatever waits for the other side ends with -ECONNRESET. */
void tunnel_break(struct tunnel *tunnel);
void tunnel_close(struct tunnel *tunnel); /* NULL is fine */

#endif
