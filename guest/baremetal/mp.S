/*
 * Where other processors begin: real mode at MP_PAGE (copied there), then as
 * start.S does, on a stack each, to mp_arrive.
 */
#include "mp.h"

    .text
    .globl mp_trampoline, mp_trampoline_end
    .code16
mp_trampoline:
    cli
    cld
    movw %cs, %bx
    movw %bx, %ds
    movl %cr0, %esi
    movl %edx, %edi /* the processor's signature */
    lgdtl gdt_copy - mp_trampoline
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $KERNEL_CS32, $mp_start32
    .balign 8
gdt_copy:
    .word 0x97 /* all of it */
    .long gdt
mp_trampoline_end:

    .code32
mp_start32:
    movl $KERNEL_DS, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl $0x20, %eax
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    movl $0x901, %eax
    xorl %edx, %edx
    wrmsr
    movl $0x80050033, %eax
    movl %eax, %cr0
    ljmpl $KERNEL_CS, $mp_start64

    .code64
mp_start64:
    movl $0xfee00020, %eax /* the local APIC's id */
    movl (%rax), %eax
    shrl $24, %eax
    movl %eax, %ecx
    shlq $13, %rcx /* MP_STACK */
    leaq mp_stacks + 0x2000(%rip), %rsp
    addq %rcx, %rsp
    xorl %ebp, %ebp
    movl %esi, %edx
    movl %ebx, %esi
    movl %edi, %ecx
    movl %eax, %edi
    call mp_arrive /* (id, CS, CR0, EDX) */
1:  hlt
    jmp 1b
