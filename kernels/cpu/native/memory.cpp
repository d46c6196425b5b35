// See memory.h.
#include "memory.h"

#include <sys/mman.h>

#include <cassert>

#include "numeric.h"

namespace ramet {

namespace {

constexpr int64_t kHuge = 2 << 20;

}  // namespace

// More is mapped than asked for, and what lies before and behind the aligned part is given back.
void *map_zeroed(int64_t bytes) {
    if (bytes < 1 || bytes > INT64_MAX / 4) return nullptr;
    const int64_t size = round_up(bytes, kHuge);
    const int access = PROT_READ | PROT_WRITE, kind = MAP_PRIVATE | MAP_ANONYMOUS;
    void *all = mmap(nullptr, static_cast<size_t>(size + kHuge), access, kind, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    char *start = static_cast<char *>(all);
    const int64_t before = (kHuge - static_cast<int64_t>(reinterpret_cast<uintptr_t>(start) % kHuge)) % kHuge;
    if (before) munmap(start, static_cast<size_t>(before));
    if (before < kHuge) munmap(start + before + size, static_cast<size_t>(kHuge - before));
#if defined(MADV_HUGEPAGE)
    madvise(start + before, static_cast<size_t>(size), MADV_HUGEPAGE);  // advice: nothing is lost when it is not taken
#endif
    return start + before;
}

void unmap(void *memory, int64_t bytes) {
    if (memory && bytes > 0) munmap(memory, static_cast<size_t>(round_up(bytes, kHuge)));
}

Arena::~Arena() { unmap(base_, size_); }

bool Arena::reserve(int64_t bytes) {
    used_ = 0;
    if (bytes <= size_) return true;
    unmap(base_, size_);
    size_ = 0;
    base_ = static_cast<char *>(map_zeroed(bytes));
    if (!base_) return false;
    size_ = bytes;
    return true;
}

char *Arena::take(int64_t bytes) {
    char *at = base_ + used_;
    used_ += round_up(bytes, 64);
    assert(used_ <= size_ && "more was taken than reserved");
    return at;
}

}  // namespace ramet
