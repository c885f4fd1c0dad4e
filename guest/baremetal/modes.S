/*
 * Code that leaves long mode and comes back, for modes.c. It runs where it is
 * linked, below 16 MiB; the 16-bit part is copied to 8000h.
 */
#include "runtime.h"

#define REAL_AT 0x8000

    .text
    .code64
/* visit(function): calls 32-bit code with paging and long mode off. */
    .globl visit_protected
visit_protected:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    pushfq
    cli
    movq %rsp, visit_rsp(%rip)
    movl %edi, visit_function(%rip)
    pushq $KERNEL_CS32
    leaq 1f(%rip), %rax
    pushq %rax
    lretq
    .code32
1:  movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl %cr4, %eax
    movl %eax, visit_cr4
    movl $0xc0000080, %ecx
    rdmsr
    andl $~0x100, %eax /* LME */
    wrmsr
    movl $visit_stack_end, %esp
    call *visit_function
    .globl visit_return
visit_return:
    cli
    movl $KERNEL_DS, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %cr0, %eax
    andl $0x7fffffff, %eax
    movl %eax, %cr0
    movl visit_cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    ljmpl $KERNEL_CS, $2f
    .code64
2:  movq visit_rsp(%rip), %rsp
    lidt visit_idt(%rip)
    popfq
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

/* ---- Protected mode without paging ---- */

    .code32
    .globl plain_protected
plain_protected:
    movl %cr0, %eax
    movl %eax, mode_result
    movl $0xc0000080, %ecx
    rdmsr
    movl %eax, mode_result + 4
    movl $0x7fffffff, %eax
    addl $1, %eax
    pushfl
    popl mode_result + 8
    movl $0xffffffff, %esi
    leal 2(%esi), %edi /* wraps at 32 bits */
    movl %edi, mode_result + 12
    ret

/* ---- 32-bit paging: a 4 MiB page and a page table ---- */

    .globl paged_protected
paged_protected:
    movl %cr4, %eax
    andl $~0x20, %eax /* PAE off */
    orl $0x10, %eax   /* PSE */
    movl %eax, %cr4
    movl $two_level, %eax
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    jmp 1f
1:  movl 0x40000000, %eax /* by the page table */
    movl %eax, mode_result
    movl $0x5a5a5a5a, 0x40000004
    movl two_level_table, %eax
    movl %eax, mode_result + 4
    movl two_level, %eax
    movl %eax, mode_result + 8
    ret

/* ---- PAE paging ---- */

    .globl pae_protected
pae_protected:
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl $pae_pointers, %eax
    movl %eax, %cr3
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    jmp 1f
1:  movl 0x40000000, %eax
    movl %eax, mode_result
    movl $0x6b6b6b6b, 0x40000004
    movl pae_table, %eax
    movl %eax, mode_result + 4
    ret

/* ---- Segments with a base and a limit ---- */

    .globl segmented_protected
segmented_protected:
    movl $GDT_FREE, %eax
    movl %eax, %fs
    movl %fs:4, %ecx
    movl %ecx, mode_result
    movl $0x12344321, %fs:8
    lsl %eax, %ecx
    movl %ecx, mode_result + 4
    lar %eax, %ecx
    movl %ecx, mode_result + 8
    verr %ax
    setz mode_result + 12
    movl $0, %eax
    movl %eax, %fs
    ret

/* ---- Real mode ---- */

    .globl enter_real
enter_real:
    ljmpl $KERNEL_CS16, $REAL_AT + (real_protected16 - real_code)

    .globl real_code, real_code_end
    .code16
real_code:
real_protected16: /* 16-bit protected mode */
    movw $KERNEL_DS16, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movl %cr0, %eax
    andl $~1, %eax
    movl %eax, %cr0
    ljmpw $0, $REAL_AT + (real_mode - real_code)
real_mode:
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %ss
    movw $0x7c00, %sp
    lidtw REAL_AT + (real_idt - real_code)
    /* Segments are shifted selectors. */
    movw $0x1234, %ax
    movw %ax, %es
    movb $0x77, %es:0x10       /* 12350h */
    movw %es, 0x9000
    /* Offsets wrap at 64 KiB in address computation. */
    movw $0xfff0, %bx
    movb $0x66, 0x40(%bx)      /* 30h */
    /* An interrupt by way of the table at 0. */
    movw $REAL_AT + (real_interrupt - real_code), 0x60 * 4
    movw $0, 0x60 * 4 + 2
    movw $0, 0x9002
    sti
    int $0x60
    pushfw
    popw 0x9004
    cli
    /* 32-bit registers and addresses with prefixes. */
    movl $0x12345678, %eax
    movl $0x9010, %ebx
    movl %eax, (%ebx)
    /* PUSH and POP of 16 bits; a far call and return. */
    movw %sp, %cx
    pushw %ax
    subw %sp, %cx
    popw %dx
    movw %cx, 0x9006
    movw %dx, 0x9008
    lcallw $0x0800, $real_far - real_code
    movw %ax, 0x900a
    /* #DE goes to vector 0. */
    movw $REAL_AT + (real_divide - real_code), 0
    movw $0, 2
    xorw %cx, %cx
    movw $0, 0x900c
    divw %cx
    /* LOOP, string instructions with 16-bit registers. */
    movw $5, %cx
    xorw %ax, %ax
1:  incw %ax
    loop 1b
    movw %ax, 0x900e
    movl %cr0, %eax
    movl %eax, 0x9014
    orl $1, %eax
    movl %eax, %cr0
    ljmpl $KERNEL_CS32, $visit_return

real_interrupt:
    pushfw
    popw 0x9002 /* flags inside: IF is clear */
    iretw
real_divide:
    movw $0xdddd, 0x900c
    movw %sp, %bp
    addw $2, (%bp) /* over the DIV */
    iretw
real_far:
    movw $0xfa12, %ax
    lretw
real_idt:
    .word 0x3ff
    .long 0
real_code_end:

    .code64
    .globl save_idt
save_idt:
    sidt visit_idt(%rip)
    ret

    .bss
    .globl mode_result
    .balign 8
mode_result:
    .fill 32
visit_rsp:
    .quad 0
visit_function:
    .long 0
visit_cr4:
    .long 0
visit_idt:
    .fill 16
    .balign 16
    .fill 4096
visit_stack_end:
    .balign 4096
    .globl two_level, two_level_table, pae_pointers, pae_directory, pae_table
two_level:
    .fill 4096
two_level_table:
    .fill 4096
pae_directory:
    .fill 4096
pae_table:
    .fill 4096
pae_pointers:
    .fill 32
