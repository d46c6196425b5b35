// Rows of weights as files hold them. In: a row's bytes. Out: float32 values, or 4-bit blocks' nibbles as they are.
#pragma once

#include <cstdint>

namespace ramet {

// Bytes of a row of k values, 0 for an unknown type or a k that is no whole number of blocks.
int64_t source_row_bytes(int64_t source, int64_t k);
void read_row(int64_t source, const void *row, int64_t k, float *out);

// 32 weights: scale * nibble + minimum.
struct Nibbles {
    float scale, minimum;
    uint8_t value[32];
};
bool has_nibbles(int64_t source);
Nibbles read_nibbles(int64_t source, const void *row, int64_t block);

}  // namespace ramet
