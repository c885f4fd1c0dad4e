/* Rows by family, and the rows that cannot be compared this way, with the reason. */
#include <string.h>

#include "base/bytes.h"
#include "silicon.h"

struct reason {
    const char *name; /* the row's, whole */
    const char *why;
};

static const struct reason excluded[] = {
    {"syscall", "enters the host's kernel"},
    {"sysenter", "enters the host's kernel"},
    {"sysret", "privileged, and its host counterpart is not"},
    {"sysexit", "privileged, and its host counterpart is not"},
    {"cpuid", "answers what the guest is told, not what the host has"},
    {"xgetbv", "the host has more state components"},
    {"xsave", "which components count as in use is the processor's choice"},
    {"xsave64", "which components count as in use is the processor's choice"},
    {"xsaveopt", "which components count as in use is the processor's choice"},
    {"xsaveopt64", "which components count as in use is the processor's choice"},
    {"xsavec", "which components count as in use is the processor's choice"},
    {"xsavec64", "which components count as in use is the processor's choice"},
    {"sgdt", "the host's kernel emulates it for user code"},
    {"sidt", "the host's kernel emulates it for user code"},
    {"sldt", "the host's kernel emulates it for user code"},
    {"str", "the host's kernel emulates it for user code"},
    {"smsw", "the host's kernel emulates it for user code"},
    {"monitor", "not offered to guests"},
    {"mwait", "not offered to guests"},
    {"int1", "the host's own hypervisor intercepts it and reports another RIP"},
    {"vmmcall", "leaves the host's own virtual machine"},
    {"rdpmc", "depends on the host's kernel"},
};

const char *row_excluded(const struct insn_row *row) {
    for (unsigned i = 0; i < ARRAY_SIZE(excluded); i++) {
        if (strcmp(row->name, excluded[i].name) == 0)
            return excluded[i].why;
    }
    if (row->feature == FEAT_SVM)
        return "the host's own virtual machine does not offer it";
    if (row->properties & INSN_NO_TEST)
        return "depends on more than registers and memory";
    return NULL;
}

static bool one_of(const struct insn_row *row, const char *names) {
    size_t length = strlen(row->name);
    for (const char *at = names; (at = strstr(at, row->name)) != NULL; at += length) {
        if ((at == names || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
            return true;
    }
    return false;
}

static bool in_table(const struct insn_row *row, const struct insn_table *table) {
    return row >= table->rows && row < table->rows + table->count;
}

static const char *integer_class(const struct insn_row *row) {
    if (row->properties & INSN_REP)
        return "string";
    if (row->feature == FEAT_BMI1 || row->feature == FEAT_BMI2 || row->feature == FEAT_ADX)
        return "bmi-adx";
    if (one_of(row, "shl sal shr sar rol ror rcl rcr shld shrd"))
        return "shift";
    if (one_of(row, "mul imul div idiv"))
        return "muldiv";
    if (one_of(row, "bt bts btr btc bsf bsr lzcnt tzcnt popcnt crc32"))
        return "bit";
    if (one_of(row, "aaa aas aad aam daa das"))
        return "decimal";
    if (one_of(row, "push pop pusha popa pushad popad pushf popf pushfd popfd pushfq popfq enter "
                    "leave"))
        return "stack";
    if (row->properties & INSN_BRANCH)
        return "branch";
    if (one_of(row, "add adc sub sbb and or xor cmp test inc dec neg not xadd cmpxchg cmpxchg8b "
                    "cmpxchg16b"))
        return "alu";
    return "move";
}

static const char *vector_class(const struct insn_row *row) {
    if (row->feature == FEAT_AES || row->feature == FEAT_PCLMUL || row->feature == FEAT_SHA ||
        row->feature == FEAT_VAES || row->feature == FEAT_VPCLMUL)
        return "crypto";
    if (row->feature == FEAT_FMA)
        return "fma";
    if (row->encoding == ENC_VEX)
        return row->properties & INSN_FP ? "avx-fp" : "avx-int";
    if (row_has_operand(row, OPERAND_Pq, OPERAND_Nq) || row->feature == FEAT_MMX)
        return "mmx";
    return row->properties & INSN_FP ? "sse-fp" : "sse-int";
}

const char *row_class(const struct insn_row *row) {
    if (in_table(row, &insn_table_integer))
        return integer_class(row);
    if (in_table(row, &insn_table_system))
        return "system";
    return in_table(row, &insn_table_x87) ? "x87" : vector_class(row);
}
