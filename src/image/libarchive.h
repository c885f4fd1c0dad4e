/*
 * libarchive's functions, loaded when they are needed (base/library.h): it
 * brings ten libraries along. Once libarchive_load has returned 0, any thread.
 */
#ifndef LODGE_IMAGE_LIBARCHIVE_H
#define LODGE_IMAGE_LIBARCHIVE_H

#include <archive.h>
#include <archive_entry.h>

#include "base/library.h"

#define LIBARCHIVE_FUNCTIONS(F)                                                                    \
    F(archive_entry_filetype)                                                                      \
    F(archive_entry_free)                                                                          \
    F(archive_entry_hardlink)                                                                      \
    F(archive_entry_new)                                                                           \
    F(archive_entry_pathname)                                                                      \
    F(archive_entry_perm)                                                                          \
    F(archive_entry_set_filetype)                                                                  \
    F(archive_entry_set_gid)                                                                       \
    F(archive_entry_set_gname)                                                                     \
    F(archive_entry_set_hardlink)                                                                  \
    F(archive_entry_set_pathname)                                                                  \
    F(archive_entry_set_perm)                                                                      \
    F(archive_entry_set_size)                                                                      \
    F(archive_entry_set_uid)                                                                       \
    F(archive_entry_set_uname)                                                                     \
    F(archive_entry_size)                                                                          \
    F(archive_error_string)                                                                        \
    F(archive_read_data)                                                                           \
    F(archive_read_disk_descend)                                                                   \
    F(archive_read_disk_new)                                                                       \
    F(archive_read_disk_open)                                                                      \
    F(archive_read_disk_set_symlink_physical)                                                      \
    F(archive_read_free)                                                                           \
    F(archive_read_new)                                                                            \
    F(archive_read_next_header)                                                                    \
    F(archive_read_next_header2)                                                                   \
    F(archive_read_open_fd)                                                                        \
    F(archive_read_support_format_empty)                                                           \
    F(archive_read_support_format_tar)                                                             \
    F(archive_write_close)                                                                         \
    F(archive_write_data)                                                                          \
    F(archive_write_disk_new)                                                                      \
    F(archive_write_disk_set_options)                                                              \
    F(archive_write_finish_entry)                                                                  \
    F(archive_write_free)                                                                          \
    F(archive_write_header)                                                                        \
    F(archive_write_new)                                                                           \
    F(archive_write_open_fd)                                                                       \
    F(archive_write_set_bytes_in_last_block)                                                       \
    F(archive_write_set_format_gnutar)                                                             \
    F(archive_write_set_format_iso9660)                                                            \
    F(archive_write_set_options)

extern struct libarchive { LIBARCHIVE_FUNCTIONS(LIBRARY_POINTER) } la;

int libarchive_load(struct error *err);

#endif
