// Products of panels of 8-bit and 4-bit weights with many rows, by AMX. In: activations and a panel. Out: 32 outputs of
// each row. Sums of a group are exact integers here as in gemm.h, and all else is done by the same operations in the
// same order: a row has the same bits, whichever of the two computes it. Needs simd_avx512.h with VNNI before it.
//
// BF16 weights stay with VDPBF16PS, which adds the odd and the even product of a pair to a sum one after the other.
// TDPBF16PS sums odd and even products of a whole tile apart: other roundings, hence other bits.
#pragma once

#include "amx.h"
#include "step.h"

namespace ramet {
namespace {

constexpr int kTileRows = 16;
static_assert(kRowChunk % kTileRows == 0, "the rows that remain of a chunk are those that remain of the batch");

// Tile registers: sums of 16 rows times either half of a panel's columns, activations, either half of the weights; and
// sums and activations of the last rows, where these are fewer than 16.
enum { kSums = 0, kActs = 2, kLeft = 3, kRight = 4, kLastSums = 5, kLastActs = 7 };

// Rows that a product of `rows` rows computes next by tiles; 0: none. What one tile of VNNI holds is left to that.
inline int64_t tiled_rows(int64_t kind, int64_t rows) {
    if (kind == RAMET_BF16 || rows <= kTileInt8) return 0;
    return least<int64_t>(rows, kTileRows);
}

// The tile registers while a thread computes products of `rows` rows; they are released before it waits for others.
class TileRegisters {
   public:
    TileRegisters(int64_t kind, int64_t rows) : used_(tiled_rows(kind, rows) > 0) {
        if (!used_) return;
        const int64_t inputs = kind == RAMET_INT8 ? kGroup : kHalf;
        const auto last = static_cast<uint8_t>(most<int64_t>(rows % kTileRows, 1));  // every register has a shape
        TileConfig config{};
        config.palette = 1;
        for (int i = 0; i < kTileNames; i++) {
            const bool weights = i == kLeft || i == kRight, acts = i == kActs || i == kLastActs;
            config.bytes[i] = static_cast<uint16_t>(acts ? inputs : kTileRows * 4);
            config.rows[i] = weights ? static_cast<uint8_t>(inputs / 4) : i < kLastSums ? kTileRows : last;
        }
        tile_configure(config);
    }
    ~TileRegisters() {
        if (used_) tile_release();
    }
    TileRegisters(const TileRegisters &) = delete;
    TileRegisters &operator=(const TileRegisters &) = delete;

   private:
    const bool used_;
};

// Sums of one group: [half][row][16].
using Sums = int32_t[2][kTileRows * 16];

// `weights`: [inputs / 4][32 columns][4]; one row of 16 columns is one of a register.
template <int C, int A>
inline void tiled_group(const int8_t *acts, int64_t k, const void *weights, Sums &sums) {
    const char *at = static_cast<const char *>(weights);
    tile_load<A>(acts, k);
    tile_load<kLeft>(at, 4 * kPanel);
    tile_load<kRight>(at + 64, 4 * kPanel);
    tile_zero<C>();
    tile_zero<C + 1>();
    tile_dot<C, A, kLeft>();
    tile_dot<C + 1, A, kRight>();
    tile_store<C>(sums[0], 64);
    tile_store<C + 1>(sums[1], 64);
}

inline Int load_int(const int32_t *p) { return {_mm512_loadu_si512(p)}; }

template <int C, int A>
void tiled_int8(const Acts &acts, int64_t row, int64_t rows, const char *panel, float *out) {
    alignas(64) Sums sums;
    const int64_t k = acts.k, groups = k / kGroup;
    const int8_t *values = static_cast<const int8_t *>(acts.data) + row * k;
    const float *scale = acts.scale + row * groups;
    const int32_t *part = acts.sum + row * groups * 2;
    for (int64_t i = 0; i < rows * 2; i++) store(out + 16 * i, set(0));
    for (int64_t g = 0; g < groups; g++, panel += kInt8Group) {
        tiled_group<C, A>(values + g * kGroup, k, panel, sums);
        const uint16_t *w = reinterpret_cast<const uint16_t *>(panel + kGroup * kPanel);
        const Vec left = load_bf16(w), right = load_bf16(w + 16);
        for (int64_t i = 0; i < rows; i++) {
            const int32_t *s = part + (i * groups + g) * 2;
            const Int offset = set_int(-kOffset * (s[0] + s[1]));
            const Vec by = set(scale[i * groups + g]);
            float *f = out + i * kPanel;
            store(f, fma(to_float(add(load_int(sums[0] + 16 * i), offset)), mul(left, by), load(f)));
            store(f + 16, fma(to_float(add(load_int(sums[1] + 16 * i), offset)), mul(right, by), load(f + 16)));
        }
    }
}

template <int C, int A>
void tiled_int4(const Acts &acts, int64_t row, int64_t rows, const char *panel, float *out) {
    alignas(64) Sums sums;
    alignas(64) uint8_t nibbles[kHalf * kPanel];  // the low ones, inputs 0..15 of the group, then the high ones
    constexpr int64_t kBytes = kHalf * kPanel / 2;
    const int64_t k = acts.k, groups = k / kHalf;
    const int8_t *values = static_cast<const int8_t *>(acts.data) + row * k;
    const float *scale = acts.scale + row * (groups / 2);
    const int32_t *part = acts.sum + row * groups;
    for (int64_t i = 0; i < rows * 2; i++) store(out + 16 * i, set(0));
    for (int64_t g = 0; g < groups; g++, panel += kInt4Group) {
        for (int64_t i = 0; i < kBytes; i += 64) {
            const uint8_t *b = reinterpret_cast<const uint8_t *>(panel) + i;
            _mm512_store_si512(nibbles + i, low_nibbles(b).v);
            _mm512_store_si512(nibbles + kBytes + i, high_nibbles(b).v);
        }
        tiled_group<C, A>(values + g * kHalf, k, nibbles, sums);
        const uint16_t *w = reinterpret_cast<const uint16_t *>(panel + kBytes);
        for (int64_t i = 0; i < rows; i++) {
            const float s = scale[i * (groups / 2) + g / 2];
            const Vec by = set(s), offset = set(s * static_cast<float>(part[i * groups + g]));
            for (int h = 0; h < 2; h++) {
                float *f = out + i * kPanel + 16 * h;
                const Vec sum = to_float(load_int(sums[h] + 16 * i));
                const Vec scaled = fma(sum, mul(load_f16(w + 16 * h), by), load(f));
                store(f, fma(load_f16(w + kPanel + 16 * h), offset, scaled));
            }
        }
    }
}

// `rows` is what tiled_rows said, and TileRegisters were made for the product.
inline void tiled(int64_t kind, const Acts &acts, int64_t row, int64_t rows, const char *panel, float *out) {
    const bool whole = rows == kTileRows, eight = kind == RAMET_INT8;
    if (whole && eight) return tiled_int8<kSums, kActs>(acts, row, rows, panel, out);
    if (whole) return tiled_int4<kSums, kActs>(acts, row, rows, panel, out);
    if (eight) return tiled_int8<kLastSums, kLastActs>(acts, row, rows, panel, out);
    tiled_int4<kLastSums, kLastActs>(acts, row, rows, panel, out);
}

}  // namespace
}  // namespace ramet
