/*
 * Start of a bare-metal program: from the PVH entry (32-bit protected mode,
 * paging off, flat segments) to long mode, then program(). Also the trap stubs
 * and the ways into code that may fault (runtime.h).
 */
#include "runtime.h"

    .section .note.pvh, "a"
    .balign 4
    .long 4, 4, 18 /* name size, value size, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long start32

    .section .text.start, "ax"
    .code32
    .globl start32
start32:
    cli
    cld
    movl $boot_stack_end, %esp
    lgdtl gdt_pointer
    ljmpl $KERNEL_CS32, $1f
1:  movl $KERNEL_DS, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $0x20, %eax /* PAE */
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    movl $0x901, %eax /* NXE, LME, SCE */
    xorl %edx, %edx
    wrmsr
    movl $0x80050033, %eax /* PG, AM, WP, NE, ET, MP, PE */
    movl %eax, %cr0
    ljmpl $KERNEL_CS, $start64

    .code64
start64:
    leaq boot_stack_end(%rip), %rsp
    xorl %ebp, %ebp
    call runtime_init
    call program
    xorl %edi, %edi
    call finish
2:  hlt
    jmp 2b

/* ---- Traps: a stub for each vector, 16 bytes apart ---- */

    .text
    .balign 16
    .globl trap_stubs
trap_stubs:
    .set vector, 0
    .rept 256
    .balign 16
    .if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21
    .else
    pushq $0
    .endif
    pushq $vector
    jmp trap_common
    .set vector, vector + 1
    .endr

trap_common:
    cld
    pushq %rax
    pushq %rcx
    pushq %rdx
    pushq %rbx
    pushq %rbp
    pushq %rsi
    pushq %rdi
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rbx
    movq %rsp, %rdi
    andq $-16, %rsp
    call trap_dispatch
    movq %rbx, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rdi
    popq %rsi
    popq %rbp
    popq %rbx
    popq %rdx
    popq %rcx
    popq %rax
    addq $16, %rsp
    iretq

/* ---- Ways into code that may trap. Landing: RAX is the vector. ---- */

    .macro save_for_landing
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    movq %rsp, landing_rsp(%rip)
    .endm

    .globl try_call
try_call: /* (function, argument) */
    save_for_landing
    movq %rdi, %rax
    movq %rsi, %rdi
    subq $8, %rsp
    andq $-16, %rsp
    call *%rax
    movl $NO_TRAP, %eax
    .globl landing
landing:
    movq landing_rsp(%rip), %rsp
    movq $0, landing_rsp(%rip)
    movl $KERNEL_DS, %ecx
    movl %ecx, %ds
    movl %ecx, %es
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

    .globl try_iret
try_iret: /* (struct iret_frame *, argument): IRETQ into it */
    save_for_landing
    pushq 32(%rdi)
    pushq 24(%rdi)
    pushq 16(%rdi)
    pushq 8(%rdi)
    pushq (%rdi)
    movq %rsi, %rdi
    .globl try_iret_instruction
try_iret_instruction:
    iretq

    .globl try_stack
try_stack: /* (function, argument, stack): like try_call on another stack */
    save_for_landing
    movq %rdi, %rax
    movq %rsi, %rdi
    movq %rdx, %rsp
    call *%rax
    movl $NO_TRAP, %eax
    jmp landing

/* ---- Tables ---- */

    .data
    .balign 16
    .globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff /* KERNEL_CS */
    .quad 0x00cf93000000ffff /* KERNEL_DS */
    .quad 0x00cffb000000ffff /* USER_CS32 */
    .quad 0x00cff3000000ffff /* USER_DS */
    .quad 0x00affb000000ffff /* USER_CS */
    .quad 0, 0               /* TSS_SELECTOR, runtime.c */
    .quad 0x00cf9b000000ffff /* KERNEL_CS32 */
    .quad 0x00009b000000ffff /* KERNEL_CS16 */
    .quad 0x000093000000ffff /* KERNEL_DS16 */
    .fill GDT_FREE_ENTRIES, 8, 0
gdt_end:
    .globl gdt_pointer
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .balign 4096
    .globl boot_pml4
boot_pml4:
    .quad boot_pdpt + 7
    .fill 511, 8, 0
boot_pdpt:
    .quad boot_pds + 7, boot_pds + 0x1007, boot_pds + 0x2007, boot_pds + 0x3007
    .fill 508, 8, 0
    /* 4 GiB as they are, for the supervisor, in 2 MiB pages, accessed and dirty. */
    .globl boot_pds
boot_pds:
    .set page, 0
    .rept 2048
    .quad (page << 21) + 0xe3
    .set page, page + 1
    .endr

    .bss
    .balign 16
    .globl landing_rsp
landing_rsp:
    .quad 0
    .balign 4096
    .fill 16384
boot_stack_end:
