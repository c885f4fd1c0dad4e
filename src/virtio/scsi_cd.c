#include "virtio/scsi_cd.h"

#include "base/bytes.h"

enum {
    TEST_UNIT_READY = 0x00,
    REQUEST_SENSE = 0x03,
    INQUIRY = 0x12,
    MODE_SENSE_6 = 0x1a,
    START_STOP_UNIT = 0x1b,
    PREVENT_ALLOW_REMOVAL = 0x1e,
    READ_CAPACITY = 0x25,
    READ_10 = 0x28,
    WRITE_10 = 0x2a,
    READ_TOC = 0x43,
    GET_CONFIGURATION = 0x46,
    GET_EVENT_STATUS = 0x4a,
    READ_DISC_INFORMATION = 0x51,
    MODE_SENSE_10 = 0x5a,
    REPORT_LUNS = 0xa0,
    READ_12 = 0xa8,
    WRITE_12 = 0xaa,
    MECHANISM_STATUS = 0xbd,
};
enum { KEY_ILLEGAL_REQUEST = 5, KEY_DATA_PROTECT = 7 };
enum {
    CODE_INVALID_COMMAND = 0x20,
    CODE_OUT_OF_RANGE = 0x21,
    CODE_INVALID_FIELD = 0x24,
    CODE_WRITE_PROTECTED = 0x27,
};
enum { TYPE_CD = 5, REMOVABLE = 0x80, SPC_3 = 5, LEAD_OUT = 0xaa, DATA_TRACK = 0x14 };
enum { PROFILE_CD = 0x08, PROFILE_DVD = 0x10, CD_BLOCKS_MAX = 80 * 60 * 75 };

static void refuse(struct scsi_answer *answer, uint8_t key, uint8_t code) {
    *answer = (struct scsi_answer){.status = SCSI_CHECK_CONDITION, .key = key, .code = code};
}

static void invalid_field(struct scsi_answer *answer) {
    refuse(answer, KEY_ILLEGAL_REQUEST, CODE_INVALID_FIELD);
}

/* No more than the command has room for. */
static void give(struct scsi_answer *answer, uint32_t length, uint32_t room) {
    answer->length = length < room ? length : room;
}

static uint8_t *append(struct scsi_answer *answer, uint32_t length) {
    uint8_t *at = answer->data + answer->length;
    answer->length += length;
    return at;
}

/* ---- What it is ---- */

static void inquiry_page(uint8_t page, uint32_t room, struct scsi_answer *answer) {
    if (page != 0) {
        invalid_field(answer);
        return;
    }
    answer->data[0] = TYPE_CD;
    answer->data[3] = 1; /* the list of pages: this one */
    give(answer, 5, room);
}

static void inquiry(const uint8_t *cdb, struct scsi_answer *answer) {
    uint32_t room = load_be16(cdb + 3);
    uint8_t *data = answer->data;
    if (cdb[1] & 1) {
        inquiry_page(cdb[2], room, answer);
        return;
    }
    if (cdb[2] != 0) {
        invalid_field(answer);
        return;
    }
    data[0] = TYPE_CD;
    data[1] = REMOVABLE;
    data[2] = SPC_3;
    data[3] = 2; /* format */
    data[4] = 36 - 5;
    memcpy(data + 8, "LODGE   CD-ROM          1.0 ", 28);
    give(answer, 36, room);
}

/* Capabilities (page 2Ah): it reads, ejects and locks, and does nothing else. */
static void mode_sense(const uint8_t *cdb, bool ten, struct scsi_answer *answer) {
    enum { PAGE_CAPABILITIES = 0x2a, PAGE_ALL = 0x3f, PAGE_SIZE_2A = 20 };
    uint32_t header = ten ? 8 : 4, room = ten ? load_be16(cdb + 7) : cdb[4];
    uint8_t page = cdb[2] & 0x3f;
    uint8_t *at = answer->data + header;
    if (page != PAGE_CAPABILITIES && page != PAGE_ALL) {
        invalid_field(answer);
        return;
    }
    at[0] = PAGE_CAPABILITIES;
    at[1] = PAGE_SIZE_2A - 2;
    at[2] = 3;    /* reads CD-R and CD-RW */
    at[4] = 1;    /* mode 2 */
    at[6] = 0x29; /* a tray that ejects and locks */
    store_be16(at + 8, 706);
    store_be16(at + 14, 706);
    uint32_t length = header + PAGE_SIZE_2A;
    if (ten)
        store_be16(answer->data, (uint16_t)(length - 2));
    else
        answer->data[0] = (uint8_t)(length - 1);
    give(answer, length, room);
}

static void feature(struct scsi_answer *answer, uint16_t code, uint8_t flags, uint32_t value,
                    uint8_t length) {
    uint8_t *at = append(answer, 4u + length);
    store_be16(at, code);
    at[2] = flags;
    at[3] = length;
    if (length >= 4)
        store_be32(at + 4, value);
}

static void configuration(uint64_t blocks, const uint8_t *cdb, struct scsi_answer *answer) {
    enum { PERSISTENT_CURRENT = 3, CURRENT = 1, VERSION = 2 << 2 };
    uint16_t profile = blocks > CD_BLOCKS_MAX ? PROFILE_DVD : PROFILE_CD;
    append(answer, 8);
    feature(answer, 0, PERSISTENT_CURRENT, (uint32_t)profile << 16 | CURRENT << 8, 4);
    feature(answer, 1, VERSION | PERSISTENT_CURRENT, 1, 8); /* core: SCSI */
    feature(answer, 3, PERSISTENT_CURRENT, 0x29000000, 4);  /* removable medium: tray */
    feature(answer, 0x10, CURRENT, SCSI_CD_BLOCK, 8);       /* random readable */
    store_be16(answer->data + answer->length - 4, 1);       /* its blocking factor */
    store_be32(answer->data, answer->length - 4);
    store_be16(answer->data + 6, profile);
    give(answer, answer->length, load_be16(cdb + 7));
}

/* ---- The disc ---- */

static void put_address(uint8_t *at, uint64_t block, bool msf) {
    uint64_t frame = block + 150;
    if (!msf) {
        store_be32(at, (uint32_t)block);
        return;
    }
    at[0] = 0;
    at[1] = (uint8_t)(frame / (60 * 75));
    at[2] = (uint8_t)(frame / 75 % 60);
    at[3] = (uint8_t)(frame % 75);
}

static void put_track(struct scsi_answer *answer, uint8_t number, uint64_t block, bool msf) {
    uint8_t *at = append(answer, 8);
    at[1] = DATA_TRACK;
    at[2] = number;
    put_address(at + 4, block, msf);
}

/* One data track; a table of contents or the sessions (format 1). */
static void toc(uint64_t blocks, const uint8_t *cdb, struct scsi_answer *answer) {
    bool msf = cdb[1] & 2;
    uint8_t format = cdb[2] & 15, first = cdb[6];
    if (format > 1 || (format == 0 && first > 1 && first != LEAD_OUT)) {
        invalid_field(answer);
        return;
    }
    uint8_t *header = append(answer, 4);
    header[2] = header[3] = 1;
    if (format == 1 || first <= 1)
        put_track(answer, 1, 0, msf);
    if (format == 0)
        put_track(answer, LEAD_OUT, blocks, msf);
    store_be16(header, (uint16_t)(answer->length - 2));
    give(answer, answer->length, load_be16(cdb + 7));
}

static void disc_information(const uint8_t *cdb, struct scsi_answer *answer) {
    uint8_t *data = answer->data;
    store_be16(data, 32);
    data[2] = 0x0e; /* complete */
    data[3] = data[4] = data[5] = data[6] = 1;
    data[7] = 0x20;
    give(answer, 34, load_be16(cdb + 7));
}

/* Polled for changes of the medium: there are none. */
static void event_status(const uint8_t *cdb, struct scsi_answer *answer) {
    enum { POLLED = 1, CLASS_MEDIA = 4, NOTHING = 0x80, PRESENT = 2 };
    uint8_t *data = answer->data;
    bool media = cdb[4] & 1 << CLASS_MEDIA;
    if (!(cdb[1] & POLLED)) {
        invalid_field(answer);
        return;
    }
    store_be16(data, media ? 6 : 2);
    data[2] = media ? CLASS_MEDIA : NOTHING;
    data[3] = 1 << CLASS_MEDIA;
    data[5] = media ? PRESENT : 0;
    give(answer, media ? 8 : 4, load_be16(cdb + 7));
}

static void capacity(uint64_t blocks, struct scsi_answer *answer) {
    uint64_t last = blocks - 1;
    store_be32(answer->data, last < UINT32_MAX ? (uint32_t)last : UINT32_MAX);
    store_be32(answer->data + 4, SCSI_CD_BLOCK);
    answer->length = 8;
}

static void read_blocks(uint64_t blocks, uint32_t first, uint32_t count,
                        struct scsi_answer *answer) {
    if (!range_within(first, count, blocks)) {
        refuse(answer, KEY_ILLEGAL_REQUEST, CODE_OUT_OF_RANGE);
        return;
    }
    answer->first_block = first;
    answer->blocks = count;
}

/* ---- Commands ---- */

void scsi_cd_command(uint64_t blocks, const uint8_t cdb[SCSI_CDB_SIZE],
                     struct scsi_answer *answer) {
    *answer = (struct scsi_answer){.status = SCSI_GOOD};
    switch (cdb[0]) {
    case TEST_UNIT_READY:
    case START_STOP_UNIT:
    case PREVENT_ALLOW_REMOVAL: break;
    case REQUEST_SENSE:
        answer->data[0] = 0x70;
        answer->data[7] = SCSI_SENSE_SIZE - 8;
        give(answer, SCSI_SENSE_SIZE, cdb[4]);
        break;
    case INQUIRY: inquiry(cdb, answer); break;
    case MODE_SENSE_6: mode_sense(cdb, false, answer); break;
    case MODE_SENSE_10: mode_sense(cdb, true, answer); break;
    case READ_CAPACITY: capacity(blocks, answer); break;
    case READ_10: read_blocks(blocks, load_be32(cdb + 2), load_be16(cdb + 7), answer); break;
    case READ_12: read_blocks(blocks, load_be32(cdb + 2), load_be32(cdb + 6), answer); break;
    case WRITE_10:
    case WRITE_12: refuse(answer, KEY_DATA_PROTECT, CODE_WRITE_PROTECTED); break;
    case READ_TOC: toc(blocks, cdb, answer); break;
    case GET_CONFIGURATION: configuration(blocks, cdb, answer); break;
    case GET_EVENT_STATUS: event_status(cdb, answer); break;
    case READ_DISC_INFORMATION: disc_information(cdb, answer); break;
    case REPORT_LUNS:
        store_be32(answer->data, 8);
        give(answer, 16, load_be32(cdb + 6));
        break;
    case MECHANISM_STATUS: give(answer, 8, load_be16(cdb + 8)); break;
    default: refuse(answer, KEY_ILLEGAL_REQUEST, CODE_INVALID_COMMAND); break;
    }
}

void scsi_sense(const struct scsi_answer *answer, uint8_t sense[SCSI_SENSE_SIZE]) {
    memset(sense, 0, SCSI_SENSE_SIZE);
    sense[0] = 0x70; /* fixed format, current error */
    sense[2] = answer->key;
    sense[7] = SCSI_SENSE_SIZE - 8;
    sense[12] = answer->code;
}
