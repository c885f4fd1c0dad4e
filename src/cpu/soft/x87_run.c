/*
 * x87 instructions on the host: a stub for each encoding, made by the
 * assembler (host code is never written at run time).
 */
#include "cpu/soft/x87.h"

#if defined(__x86_64__)

/*
 * Stubs of four bytes, instruction and RET: x87_stubs[opcode - D8][modrm - C0] for registers, then
 * x87_stubs_memory[opcode - D8][reg] with the operand at (%rax).
 */
__asm__(".pushsection .text\n"
        ".balign 16\n"
        "x87_stubs:\n"
        ".set x87_opcode, 0xd8\n"
        ".rept 8\n"
        "  .set x87_modrm, 0xc0\n"
        "  .rept 64\n"
        "    .byte x87_opcode, x87_modrm, 0xc3, 0x90\n"
        "    .set x87_modrm, x87_modrm + 1\n"
        "  .endr\n"
        "  .set x87_opcode, x87_opcode + 1\n"
        ".endr\n"
        ".set x87_opcode, 0xd8\n"
        ".rept 8\n"
        "  .set x87_modrm, 0\n"
        "  .rept 8\n"
        "    .byte x87_opcode, x87_modrm, 0xc3, 0x90\n"
        "    .set x87_modrm, x87_modrm + 8\n"
        "  .endr\n"
        "  .set x87_opcode, x87_opcode + 1\n"
        ".endr\n"
        /* uint64_t x87_run_stub(image rdi, stub rsi, operand rdx, flags rcx) */
        ".type x87_run_stub, @function\n"
        "x87_run_stub:\n"
        "  mov %rdx, %r8\n"
        "  mov %ecx, %eax\n"
        "  shl $8, %eax\n"
        "  frstor (%rdi)\n"
        "  sahf\n"
        "  mov %r8, %rax\n"
        "  call *%rsi\n"
        "  fnsave (%rdi)\n"
        "  lahf\n"
        "  movzbl %ah, %eax\n"
        "  ret\n"
        ".size x87_run_stub, . - x87_run_stub\n"
        ".popsection\n");

extern const uint8_t x87_stubs[8 * 64 + 8 * 8][4] __attribute__((visibility("hidden")));
uint64_t x87_run_stub(struct x87_image *image, const void *stub, void *operand, uint64_t flags)
    __attribute__((visibility("hidden")));

uint8_t x87_host_run(struct x87_image *image, unsigned opcode, unsigned modrm, void *operand,
                     uint8_t flags) {
    unsigned row = opcode - 0xd8;
    unsigned stub = modrm >= 0xc0 ? row * 64 + (modrm - 0xc0) : 8 * 64 + row * 8 + (modrm >> 3 & 7);
    return (uint8_t)x87_run_stub(image, x87_stubs[stub], operand, flags);
}

#endif
