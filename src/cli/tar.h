/*
 * Files as a stream of the tar format, by libarchive, for `lodge cp`. What is
 * packed is this user's; what is unpacked comes from a guest and is not
 * trusted: it lands below one directory and nowhere else, however its names
 * and links are made, and carries no rights that this user has not given.
 */
#ifndef LODGE_CLI_TAR_H
#define LODGE_CLI_TAR_H

#include "base/error.h"

/* A file or directory with all that is in it, called `name` in the stream; owned by root there. */
int tar_pack(const char *path, const char *name, int fd, struct error *err);

/*
 * Members that are not `from` or in it are refused; `from` is called `to` in the present
 * directory. Owners and the bits beyond rwx are not taken over, devices and pipes left out. -EPERM:
 * a name or link that leads out.
 */
int tar_unpack(int fd, const char *from, const char *to, struct error *err);

#endif
