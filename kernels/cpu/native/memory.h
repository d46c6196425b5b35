// Memory on huge pages where the system grants them: reading weights from 4 KiB pages costs up to half the bandwidth.
#pragma once

#include <cstdint>

namespace ramet {

void *map_zeroed(int64_t bytes);  // at a multiple of 2 MiB; null when there is none
void unmap(void *memory, int64_t bytes);

// Memory that only grows, for what every forward needs anew.
class Arena {
   public:
    Arena() = default;
    ~Arena();
    Arena(const Arena &) = delete;
    Arena &operator=(const Arena &) = delete;

    bool reserve(int64_t bytes);  // forgets what was taken; false: no memory
    char *take(int64_t bytes);    // of what was reserved; at a multiple of 64

   private:
    char *base_ = nullptr;
    int64_t size_ = 0, used_ = 0;
};

}  // namespace ramet
