#include "cpu/soft/jit/code_memory.h"

#include <sys/mman.h>

/*
 * Shared anonymous memory, which mremap() with a length of 0 maps once more.
 * Not a memfd, which would do as well: perf(1) takes this for anonymous memory
 * and looks for the names of its code in a perf map.
 */
int code_memory_create(struct code_memory *memory, size_t size, struct error *err) {
    void *writable =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void *executable = MAP_FAILED;
    if (writable != MAP_FAILED)
        executable = mremap(writable, 0, size, MREMAP_MAYMOVE);
    if (executable != MAP_FAILED && mprotect(executable, size, PROT_READ | PROT_EXEC) == 0) {
        *memory =
            (struct code_memory){.writable = writable, .executable = executable, .size = size};
        return 0;
    }
    int code = error_set_errno(err, -errno, "cannot map %zu bytes for translated code", size);
    if (writable != MAP_FAILED)
        munmap(writable, size);
    if (executable != MAP_FAILED)
        munmap(executable, size);
    return code;
}

void code_memory_empty(struct code_memory *memory, size_t used) {
    enum { PAGE = 4096 };
    size_t kept = (used + PAGE - 1) / PAGE * PAGE;
    memory->used = used;
    memory->at_end = 0;
    madvise(memory->writable + kept, memory->size - kept, MADV_REMOVE);
}

void code_memory_destroy(struct code_memory *memory) {
    if (memory->writable == NULL)
        return;
    munmap(memory->writable, memory->size);
    munmap((void *)(uintptr_t)memory->executable, memory->size);
    memory->writable = NULL;
}
