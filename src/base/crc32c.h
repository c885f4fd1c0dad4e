/*
 * CRC-32C (Castagnoli), as in RFC 3720, appendix B.4: reflected polynomial
 * 0x82f63b78, initial value and final inversion all ones. Pure, any thread.
 */
#ifndef LODGE_BASE_CRC32C_H
#define LODGE_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* Of `length` bytes, going on from `crc`, the sum of what came before (0 at the start). */
uint32_t crc32c(uint32_t crc, const void *data, size_t length);

#endif
