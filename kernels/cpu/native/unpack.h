// One column of a packed panel as float32: the definition of the three formats. In: a panel. Out: n values.
#pragma once

#include "numeric.h"
#include "step.h"

namespace ramet {

static inline void unpack_bf16(const char *panel, int64_t column, int64_t n, float *out) {
    const uint16_t *data = reinterpret_cast<const uint16_t *>(panel);
    for (int64_t i = 0; i < n; i++) out[i] = from_bf16(data[(i / 2 * kPanel + column) * 2 + i % 2]);
}

static inline void unpack_int8(const char *panel, int64_t column, int64_t n, float *out) {
    constexpr int64_t bytes = kGroup * kPanel + kPanel * 2;
    for (int64_t i = 0; i < n; i++) {
        const char *group = panel + i / kGroup * bytes;
        const int64_t j = i % kGroup;
        const uint8_t *data = reinterpret_cast<const uint8_t *>(group);
        const uint16_t *scale = reinterpret_cast<const uint16_t *>(group + kGroup * kPanel);
        const int value = data[(j / 4 * kPanel + column) * 4 + j % 4] - 128;
        out[i] = static_cast<float>(value) * from_bf16(scale[column]);
    }
}

static inline void unpack_int4(const char *panel, int64_t column, int64_t n, float *out) {
    constexpr int64_t nibbles = kHalf * kPanel / 2, bytes = nibbles + 2 * kPanel * 2;
    for (int64_t i = 0; i < n; i++) {
        const char *group = panel + i / kHalf * bytes;
        const int64_t j = i % (kHalf / 2), shift = i % kHalf < kHalf / 2 ? 0 : 4;
        const uint8_t *data = reinterpret_cast<const uint8_t *>(group);
        const uint16_t *scale = reinterpret_cast<const uint16_t *>(group + nibbles);
        const int value = (data[(j / 4 * kPanel + column) * 4 + j % 4] >> shift) & 15;
        out[i] = static_cast<float>(value) * from_f16(scale[column]) + from_f16(scale[kPanel + column]);
    }
}

static inline void unpack_column(int64_t kind, const char *panel, int64_t column, int64_t n, float *out) {
    if (kind == RAMET_BF16) return unpack_bf16(panel, column, n, out);
    if (kind == RAMET_INT8) return unpack_int8(panel, column, n, out);
    unpack_int4(panel, column, n, out);
}

}  // namespace ramet
