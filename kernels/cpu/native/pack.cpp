// See pack.h. 8-bit scales are rounded up to bfloat16 before the weights are divided by them, so that rounding the
// scale costs nothing; 4-bit blocks of a file keep their nibbles.
#include "pack.h"

#include <algorithm>
#include <cmath>

#include "blocks.h"
#include "numeric.h"
#include "step.h"

namespace ramet {

namespace {

constexpr int64_t kInt8Bytes = kGroup * kPanel + kPanel * 2, kNibbleBytes = kHalf * kPanel / 2;
constexpr int64_t kInt4Bytes = kNibbleBytes + 2 * kPanel * 2;

void put_half(char *base, int64_t index, uint16_t bits) { std::memcpy(base + index * 2, &bits, sizeof bits); }

uint16_t bf16_above(float value) {
    const uint16_t bits = to_bf16(value);
    return from_bf16(bits) < value ? static_cast<uint16_t>(bits + 1) : bits;
}

void pack_bf16(const float *row, int64_t k, int64_t column, char *panel) {
    for (int64_t i = 0; i < k; i++) put_half(panel, (i / 2 * kPanel + column) * 2 + i % 2, to_bf16(row[i]));
}

void pack_int8(const float *row, int64_t k, int64_t column, char *panel) {
    for (int64_t g = 0; g * kGroup < k; g++, panel += kInt8Bytes) {
        float peak = 0;
        for (int64_t i = 0; i < kGroup; i++) peak = std::max(peak, std::fabs(row[g * kGroup + i]));
        const uint16_t scale = peak < 1e-30f ? uint16_t{0} : bf16_above(peak / 127.0f);
        const float by = scale ? 1.0f / from_bf16(scale) : 0.0f;
        for (int64_t i = 0; i < kGroup; i++) {
            const float value = std::nearbyint(row[g * kGroup + i] * by);
            panel[(i / 4 * kPanel + column) * 4 + i % 4] = static_cast<char>(static_cast<int>(value) + 128);
        }
        put_half(panel + kGroup * kPanel, column, scale);
    }
}

// Nearest of 16 steps between the extremes; both are float16 before weights are rounded to them.
Nibbles nibbles_of(const float *values) {
    const auto [low, high] = std::minmax_element(values, values + kHalf);
    Nibbles n;
    n.minimum = from_f16(to_f16(*low));
    n.scale = from_f16(to_f16((*high - n.minimum) / 15.0f));
    for (int64_t i = 0; i < kHalf; i++) {
        const float step = n.scale > 0 ? std::nearbyint((values[i] - n.minimum) / n.scale) : 0.0f;
        n.value[i] = static_cast<uint8_t>(std::min(15.0f, std::max(0.0f, step)));
    }
    return n;
}

void put_nibbles(const Nibbles &n, int64_t column, char *group) {
    for (int64_t j = 0; j < kHalf / 2; j++) {
        const int both = n.value[j] | n.value[j + kHalf / 2] << 4;
        group[(j / 4 * kPanel + column) * 4 + j % 4] = static_cast<char>(both);
    }
    put_half(group + kNibbleBytes, column, to_f16(n.scale));
    put_half(group + kNibbleBytes, kPanel + column, to_f16(n.minimum));
}

}  // namespace

int64_t packed_panel_bytes(int64_t kind, int64_t k) {
    const int64_t padded = round_up(k, kGroup);
    if (kind == RAMET_BF16) return padded * kPanel * 2;
    return kind == RAMET_INT8 ? padded / kGroup * kInt8Bytes : padded / kHalf * kInt4Bytes;
}

void pack_row(const Packing &p, int64_t i, float *row) {
    const char *source = p.values + i * p.row_bytes;
    const int64_t column = p.column[i] % kPanel, k = p.k;
    char *panel = p.packed + p.column[i] / kPanel * packed_panel_bytes(p.kind, k);
    if (p.kind == RAMET_INT4 && has_nibbles(p.source)) {
        for (int64_t b = 0; b < k / kHalf; b++)
            put_nibbles(read_nibbles(p.source, source, b), column, panel + b * kInt4Bytes);
        return;
    }
    read_row(p.source, source, k, row);
    std::fill(row + k, row + round_up(k, kGroup), 0.0f);
    if (p.kind == RAMET_BF16) return pack_bf16(row, k, column, panel);
    if (p.kind == RAMET_INT8) return pack_int8(row, k, column, panel);
    for (int64_t b = 0; b * kHalf < k; b++) put_nibbles(nibbles_of(row + b * kHalf), column, panel + b * kInt4Bytes);
}

}  // namespace ramet
