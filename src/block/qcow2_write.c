/*
 * Writing a qcow2 image in one go: header, L1 table, then clusters and their
 * L2 tables as they come, reference counts last.
 */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "block/qcow2.h"
#include "block/sync.h"

enum { CLUSTER_BITS = 16, PER_TABLE = QCOW2_CLUSTER / 8, REFCOUNTS = QCOW2_CLUSTER / 2 };
static const uint64_t COPIED = UINT64_C(1) << 63;

struct qcow2_writer {
    struct block *file;
    uint64_t size;
    uint64_t next; /* the cluster of the file to write next */
    uint64_t *l1;
    uint64_t l1_entries, l1_clusters;
    uint64_t table; /* which L2 table `l2` is; UINT64_MAX: none yet */
    bool table_used;
    uint64_t l2[PER_TABLE]; /* as stored */
};

static int put(struct qcow2_writer *w, uint64_t cluster, const void *bytes, size_t length) {
    return block_write(w->file, cluster * QCOW2_CLUSTER, bytes, length);
}

int qcow2_writer_create(struct block *file, uint64_t size, struct qcow2_writer **writer,
                        struct error *err) {
    struct qcow2_writer *w = calloc(1, sizeof *w);
    uint64_t clusters = (size + QCOW2_CLUSTER - 1) / QCOW2_CLUSTER;
    if (w == NULL)
        return error_set(err, -ENOMEM, "no memory to write %s", file->info.name);
    w->file = file;
    w->size = size;
    w->table = UINT64_MAX;
    w->l1_entries = (clusters + PER_TABLE - 1) / PER_TABLE;
    w->l1_clusters = (w->l1_entries + PER_TABLE - 1) / PER_TABLE;
    w->next = 1 + w->l1_clusters;
    w->l1 = calloc(w->l1_clusters, QCOW2_CLUSTER);
    if (w->l1 == NULL) {
        free(w);
        return error_set(err, -ENOMEM, "no memory to write %s", file->info.name);
    }
    *writer = w;
    return 0;
}

static int end_table(struct qcow2_writer *w) {
    int result = 0;
    if (w->table_used) {
        w->l1[w->table] = __builtin_bswap64(w->next * QCOW2_CLUSTER | COPIED);
        result = put(w, w->next++, w->l2, sizeof w->l2);
    }
    memset(w->l2, 0, sizeof w->l2);
    w->table_used = false;
    return result;
}

int qcow2_writer_add(struct qcow2_writer *w, uint64_t index, const uint8_t *cluster) {
    int result = index / PER_TABLE != w->table ? end_table(w) : 0;
    w->table = index / PER_TABLE;
    if (result == 0) {
        w->l2[index % PER_TABLE] = __builtin_bswap64(w->next * QCOW2_CLUSTER | COPIED);
        w->table_used = true;
        result = put(w, w->next++, cluster, QCOW2_CLUSTER);
    }
    return result;
}

/* Every cluster up to the end is in use once, those with the counts included. */
static int write_refcounts(struct qcow2_writer *w, uint64_t *table_at, uint32_t *table_clusters) {
    uint64_t blocks = 1, tables = 1;
    while (blocks * REFCOUNTS < w->next + blocks + tables) {
        blocks++;
        tables = (blocks + PER_TABLE - 1) / PER_TABLE;
    }
    uint64_t total = w->next + blocks + tables, first = w->next;
    uint16_t *counts = malloc(QCOW2_CLUSTER);
    uint64_t *table = calloc(tables, QCOW2_CLUSTER);
    int result = counts == NULL || table == NULL ? -ENOMEM : 0;
    for (uint64_t b = 0; b < blocks && result == 0; b++) {
        for (uint64_t i = 0; i < REFCOUNTS; i++)
            counts[i] = b * REFCOUNTS + i < total ? __builtin_bswap16(1) : 0;
        table[b] = __builtin_bswap64((first + b) * QCOW2_CLUSTER);
        result = put(w, first + b, counts, QCOW2_CLUSTER);
    }
    if (result == 0)
        result = put(w, first + blocks, table, tables * QCOW2_CLUSTER);
    *table_at = (first + blocks) * QCOW2_CLUSTER;
    *table_clusters = (uint32_t)tables;
    free(counts);
    free(table);
    return result;
}

int qcow2_writer_finish(struct qcow2_writer *w) {
    uint8_t header[BLOCK_SECTOR] = {0};
    uint64_t refcounts = 0;
    uint32_t refcount_clusters = 0;
    int result = end_table(w);
    if (result == 0)
        result = write_refcounts(w, &refcounts, &refcount_clusters);
    if (result == 0)
        result = put(w, 1, w->l1, w->l1_clusters * QCOW2_CLUSTER);
    store_be32(header, 0x514649fb);
    store_be32(header + 4, 3);
    store_be32(header + 20, CLUSTER_BITS);
    store_be64(header + 24, w->size);
    store_be32(header + 36, (uint32_t)w->l1_entries);
    store_be64(header + 40, QCOW2_CLUSTER);
    store_be64(header + 48, refcounts);
    store_be32(header + 56, refcount_clusters);
    store_be32(header + 96, 4);    /* reference counts of 2^4 bits */
    store_be32(header + 100, 104); /* the header's length; no extensions */
    return result == 0 ? put(w, 0, header, sizeof header) : result;
}

void qcow2_writer_free(struct qcow2_writer *w) {
    free(w->l1);
    free(w);
}
