/*
 * What a CD-ROM drive with a disc in it answers to SCSI commands: the part
 * without queues. Sources: SPC-3 and MMC-5 (INCITS T10).
 *
 * Pure functions; the caller moves the data.
 */
#ifndef LODGE_VIRTIO_SCSI_CD_H
#define LODGE_VIRTIO_SCSI_CD_H

#include <stdbool.h>
#include <stdint.h>

enum { SCSI_CD_BLOCK = 2048, SCSI_CDB_SIZE = 16, SCSI_DATA_MAX = 128, SCSI_SENSE_SIZE = 18 };
enum { SCSI_GOOD = 0, SCSI_CHECK_CONDITION = 2 };

struct scsi_answer {
    uint8_t status;
    uint8_t key, code; /* with SCSI_CHECK_CONDITION: sense key, additional sense code */
    /* GOOD: either data for the guest, or blocks of the disc, which are within it. */
    uint32_t length;
    uint8_t data[SCSI_DATA_MAX];
    uint64_t first_block;
    uint32_t blocks;
};

/* One command; blocks: of SCSI_CD_BLOCK bytes, that the disc has. */
void scsi_cd_command(uint64_t blocks, const uint8_t cdb[SCSI_CDB_SIZE], struct scsi_answer *answer);

/* Fixed-format sense data of an answer with SCSI_CHECK_CONDITION. */
void scsi_sense(const struct scsi_answer *answer, uint8_t sense[SCSI_SENSE_SIZE]);

#endif
