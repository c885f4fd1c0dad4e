/*
 * Numbers of NVM Express Base Specification 1.4: registers (3.1), commands (5, 6), status codes
 * (4.6.1), features (5.21). Section numbers in this folder are of that text.
 */
#ifndef LODGE_NVME_SPEC_H
#define LODGE_NVME_SPEC_H

/* Registers: 3.1. */
enum {
    NVME_REG_CAP = 0x00,
    NVME_REG_VS = 0x08,
    NVME_REG_INTMS = 0x0c,
    NVME_REG_INTMC = 0x10,
    NVME_REG_CC = 0x14,
    NVME_REG_CSTS = 0x1c,
    NVME_REG_NSSR = 0x20,
    NVME_REG_AQA = 0x24,
    NVME_REG_ASQ = 0x28,
    NVME_REG_ACQ = 0x30,
    NVME_REG_END = 0x40, /* what follows reads as 0: no memory buffer, no boot partitions */
    NVME_REG_DOORBELLS = 0x1000,
};

#define NVME_VERSION 0x00010400u

enum {
    NVME_CC_EN = 1,
    NVME_CC_SHN = 3 << 14,
    NVME_CC_IOSQES_SHIFT = 16,
    NVME_CC_IOCQES_SHIFT = 20,
    NVME_CSTS_RDY = 1,
    NVME_CSTS_CFS = 2,
    NVME_CSTS_SHST = 3 << 2,
    NVME_CSTS_SHST_OCCURRING = 1 << 2,
    NVME_CSTS_SHST_COMPLETE = 2 << 2,
    NVME_CSTS_NSSRO = 1 << 4,
};
#define NVME_NSSR_RESET 0x4e564d65u /* "NVMe" */

/* Sizes that are fixed, as powers of two where the text has them so. */
enum { NVME_SQE = 64, NVME_CQE = 16, NVME_SQES = 6, NVME_CQES = 4 };

/* Admin commands: 5. */
enum {
    NVME_ADMIN_DELETE_SQ = 0x00,
    NVME_ADMIN_CREATE_SQ = 0x01,
    NVME_ADMIN_GET_LOG_PAGE = 0x02,
    NVME_ADMIN_DELETE_CQ = 0x04,
    NVME_ADMIN_CREATE_CQ = 0x05,
    NVME_ADMIN_IDENTIFY = 0x06,
    NVME_ADMIN_ABORT = 0x08,
    NVME_ADMIN_SET_FEATURES = 0x09,
    NVME_ADMIN_GET_FEATURES = 0x0a,
    NVME_ADMIN_ASYNC_EVENT = 0x0c,
    NVME_ADMIN_DOORBELL_BUFFER = 0x7c,
    NVME_ADMIN_FORMAT = 0x80,
};

/* I/O commands: 6. */
enum {
    NVME_IO_FLUSH = 0x00,
    NVME_IO_WRITE = 0x01,
    NVME_IO_READ = 0x02,
    NVME_IO_COMPARE = 0x05,
    NVME_IO_WRITE_ZEROES = 0x08,
    NVME_IO_DATASET = 0x09,
    NVME_IO_VERIFY = 0x0c,
};

#define NVME_ALL_NAMESPACES UINT32_MAX

/* Status: code in bits 7:0, type in 10:8, "more" and "do not retry" as in the entry's 15 bits. */
enum {
    NVME_OK = 0x000,
    NVME_INVALID_OPCODE = 0x001,
    NVME_INVALID_FIELD = 0x002,
    NVME_DATA_TRANSFER = 0x004,
    NVME_INTERNAL = 0x006,
    NVME_ABORTED = 0x007,
    NVME_INVALID_NAMESPACE = 0x00b,
    NVME_SEQUENCE = 0x00c,
    NVME_SGL_SEGMENT = 0x00d,
    NVME_SGL_COUNT = 0x00e,
    NVME_SGL_LENGTH = 0x00f,
    NVME_SGL_TYPE = 0x011,
    NVME_PRP_OFFSET = 0x013,
    NVME_WRITE_PROTECTED = 0x020,
    NVME_LBA_RANGE = 0x080,
    NVME_CAPACITY = 0x081,
    NVME_FORMATTING = 0x084,
    NVME_INVALID_CQ = 0x100,
    NVME_INVALID_QUEUE = 0x101,
    NVME_QUEUE_SIZE = 0x102,
    NVME_EVENT_LIMIT = 0x105,
    NVME_INVALID_VECTOR = 0x108,
    NVME_INVALID_LOG = 0x109,
    NVME_INVALID_FORMAT = 0x10a,
    NVME_QUEUE_DELETION = 0x10c,
    NVME_NOT_SAVEABLE = 0x10d,
    NVME_NOT_CHANGEABLE = 0x10e,
    NVME_WRITE_FAULT = 0x280,
    NVME_READ_ERROR = 0x281,
    NVME_COMPARE_FAILURE = 0x285,
    NVME_MORE = 0x2000,
    NVME_DO_NOT_RETRY = 0x4000,
};

/* Features: 5.21.1. */
enum {
    NVME_FEATURE_ARBITRATION = 0x01,
    NVME_FEATURE_POWER = 0x02,
    NVME_FEATURE_TEMPERATURE = 0x04,
    NVME_FEATURE_ERROR_RECOVERY = 0x05,
    NVME_FEATURE_WRITE_CACHE = 0x06,
    NVME_FEATURE_QUEUES = 0x07,
    NVME_FEATURE_COALESCING = 0x08,
    NVME_FEATURE_VECTOR = 0x09,
    NVME_FEATURE_ATOMICITY = 0x0a,
    NVME_FEATURE_EVENTS = 0x0b,
    NVME_FEATURE_TIMESTAMP = 0x0e,
};

/* Log pages: 5.14.1. */
enum {
    NVME_LOG_ERROR = 0x01,
    NVME_LOG_HEALTH = 0x02,
    NVME_LOG_FIRMWARE = 0x03,
    NVME_LOG_CHANGED = 0x04,
    NVME_LOG_EFFECTS = 0x05,
};

/* Asynchronous events: 5.2. Type in bits 2:0 of the completion's result, information in 15:8, the
 * log page that tells more in 23:16. */
enum { NVME_EVENT_ERROR = 0, NVME_EVENT_HEALTH = 1, NVME_EVENT_NOTICE = 2, NVME_EVENT_TYPES = 3 };
enum {
    NVME_ERROR_DOORBELL_REGISTER = 0,
    NVME_ERROR_DOORBELL_VALUE = 1,
    NVME_HEALTH_TEMPERATURE = 1,
    NVME_NOTICE_NAMESPACE = 0,
};

#endif
