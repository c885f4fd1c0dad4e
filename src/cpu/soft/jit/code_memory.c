#include "cpu/soft/jit/code_memory.h"

#include <sys/mman.h>
#include <unistd.h>

int code_memory_create(struct code_memory *memory, size_t size, struct error *err) {
    int fd = memfd_create("lodge-code", MFD_CLOEXEC);
    if (fd < 0)
        return error_set_errno(err, -errno, "cannot make memory for translated code");
    int code = 0;
    void *writable = MAP_FAILED, *executable = MAP_FAILED;
    if (ftruncate(fd, (off_t)size) == 0) {
        writable = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        executable = mmap(NULL, size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    }
    if (writable == MAP_FAILED || executable == MAP_FAILED)
        code = error_set_errno(err, -errno, "cannot map %zu bytes for translated code", size);
    close(fd);
    if (code == 0) {
        *memory =
            (struct code_memory){.writable = writable, .executable = executable, .size = size};
        return 0;
    }
    if (writable != MAP_FAILED)
        munmap(writable, size);
    if (executable != MAP_FAILED)
        munmap(executable, size);
    return code;
}

void code_memory_destroy(struct code_memory *memory) {
    if (memory->writable == NULL)
        return;
    munmap(memory->writable, memory->size);
    munmap((void *)(uintptr_t)memory->executable, memory->size);
    memory->writable = NULL;
}
