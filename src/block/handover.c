#include "block/handover.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "block/sync.h"

struct handover {
    struct block block;
    struct block *image; /* NULL: none */
    char name[256];      /* stays as nodes above keep it */
};

static struct handover *handover_of(struct block *block) {
    return container_of(block, struct handover, block);
}

static int handover_submit(struct block *block, struct block_request *request) {
    struct block *image = handover_of(block)->image;
    if (image != NULL)
        return block_submit(image, request);
    request->result = -EIO;
    return 1;
}

static void handover_cancel(struct block *block) {
    if (handover_of(block)->image != NULL)
        block_cancel(handover_of(block)->image);
}

static void handover_drain(struct block *block) {
    if (handover_of(block)->image != NULL)
        block_drain(handover_of(block)->image);
}

static void handover_close(struct block *block) {
    block_close(handover_of(block)->image);
    free(handover_of(block));
}

static int handover_resize(struct block *block, uint64_t size, struct error *err) {
    struct block *image = handover_of(block)->image;
    if (image == NULL)
        return error_set(err, -EBUSY, "the disk is just changing hands");
    int result = block_resize(image, size, err);
    block->info.size = image->info.size;
    return result;
}

static uint64_t handover_zero_run(struct block *block, uint64_t offset) {
    struct block *image = handover_of(block)->image;
    return image != NULL ? block_zero_run(image, offset) : 0;
}

static const struct block_class handover_class = {
    .name = "handover",
    .submit = handover_submit,
    .cancel = handover_cancel,
    .drain = handover_drain,
    .close = handover_close,
    .resize = handover_resize,
    .zero_run = handover_zero_run,
};

int handover_add(struct block *image, const struct block_info *info, struct block **block,
                 struct error *err) {
    struct handover *made = calloc(1, sizeof *made);
    if (made == NULL)
        return error_set(err, -ENOMEM, "out of memory");
    made->block =
        (struct block){.class = &handover_class, .info = image != NULL ? image->info : *info};
    made->image = image;
    snprintf(made->name, sizeof made->name, "%s", made->block.info.name);
    made->block.info.name = made->name;
    *block = &made->block;
    return 0;
}

int handover_release(struct block *block, struct error *err) {
    struct handover *handover = handover_of(block);
    struct block *image = handover->image;
    int result = image != NULL && !image->info.readonly ? block_flush(image) : 0;
    handover->image = NULL;
    block_close(image);
    return result < 0 ? error_set_errno(err, result, "a disk cannot be made durable") : 0;
}

int handover_take(struct block *block, struct block *image, struct error *err) {
    const struct block_info *told = &block->info, *is = &image->info;
    if (is->size != told->size || is->readonly != told->readonly)
        return error_set(err, -EINVAL, "%s has %llu bytes%s; the VM's disk has %llu%s", is->name,
                         (unsigned long long)is->size, is->readonly ? ", read only" : "",
                         (unsigned long long)told->size, told->readonly ? ", read only" : "");
    handover_of(block)->image = image;
    return 0;
}
