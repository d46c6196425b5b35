// Products of packed weights with a few rows at a time. In: activations and a panel. Out: 32 outputs of each row,
// handed to the caller while they are in registers or the first cache. A row's sums run over K in one order, whatever
// the number of rows beside it. Panels are read from front to back without software prefetch: the processor's own
// prefetchers follow, and asking for lines beside them costs up to half of what comes out of the caches. Needs a
// simd_*.h before it.
#pragma once

#include "step.h"

#if defined(__AMX_INT8__)
#include "gemm_amx.h"
#endif

namespace ramet {
namespace {

#if !defined(__AMX_INT8__)
// Levels without AMX have no tile registers to make ready.
struct TileRegisters {
    TileRegisters(int64_t, int64_t) {}
};
constexpr int kTileRows = 0;
#endif

// What a tile reads: M rows of activations and one panel.
struct Tile {
    const Acts *acts;
    int64_t row;
    const char *panel;
};

template <int M>
void tile_bf16(const Tile &tile, float *out) {
    const int64_t k = tile.acts->k;
    const uint16_t *rows = static_cast<const uint16_t *>(tile.acts->data) + tile.row * k;
    Vec c[M][2];
    for (int i = 0; i < M; i++) c[i][0] = c[i][1] = set(0);
    const char *at = tile.panel;
    for (int64_t j = 0; j < k; j += 2, at += 128) {
        const uint16_t *b = reinterpret_cast<const uint16_t *>(at);
        const Pairs left = load_pairs(b), right = load_pairs(b + 32);
#pragma GCC unroll 12
        for (int i = 0; i < M; i++) {
            const Two a = two(rows + i * k + j);
            c[i][0] = dot(c[i][0], a, left);
            c[i][1] = dot(c[i][1], a, right);
        }
    }
    for (int i = 0; i < M; i++) {
        store(out + i * kPanel, c[i][0]);
        store(out + i * kPanel + 16, c[i][1]);
    }
}

template <int M>
void tile_int8(const Tile &tile, float *out) {
    const int64_t k = tile.acts->k, groups = k / kGroup;
    const int8_t *rows = static_cast<const int8_t *>(tile.acts->data) + tile.row * k;
    const float *scale = tile.acts->scale + tile.row * groups;
    const int32_t *sums = tile.acts->sum + tile.row * groups * 2;
    Vec f[M][2];
    for (int i = 0; i < M; i++) f[i][0] = f[i][1] = set(0);
    const char *at = tile.panel;
    for (int64_t g = 0; g < groups; g++) {
        Int c[M][2];
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
            const int32_t *s = sums + (i * groups + g) * 2;
            c[i][0] = c[i][1] = set_int(kOffset ? -kOffset * (s[0] + s[1]) : 0);
        }
        for (int64_t j = g * kGroup; j < (g + 1) * kGroup; j += 4, at += 128) {
            const uint8_t *b = reinterpret_cast<const uint8_t *>(at);
            const Quads left = load_quads(b), right = load_quads(b + 64);
#pragma GCC unroll 6
            for (int i = 0; i < M; i++) {
                const Four a = four(rows + i * k + j);
                c[i][0] = dot(c[i][0], a, left);
                c[i][1] = dot(c[i][1], a, right);
            }
        }
        const uint16_t *w = reinterpret_cast<const uint16_t *>(at);
        const Vec left = load_bf16(w), right = load_bf16(w + 16);
        at += 2 * kPanel;
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
            const Vec s = set(scale[i * groups + g]);
            f[i][0] = fma(to_float(c[i][0]), mul(left, s), f[i][0]);
            f[i][1] = fma(to_float(c[i][1]), mul(right, s), f[i][1]);
        }
    }
    for (int i = 0; i < M; i++) {
        store(out + i * kPanel, f[i][0]);
        store(out + i * kPanel + 16, f[i][1]);
    }
}

template <int M>
void tile_int4(const Tile &tile, float *out) {
    const int64_t k = tile.acts->k, groups = k / kHalf;
    const int8_t *rows = static_cast<const int8_t *>(tile.acts->data) + tile.row * k;
    const float *scale = tile.acts->scale + tile.row * (groups / 2);
    const int32_t *sums = tile.acts->sum + tile.row * groups;
    Vec f[M][2];
    for (int i = 0; i < M; i++) f[i][0] = f[i][1] = set(0);
    const char *at = tile.panel;
    for (int64_t g = 0; g < groups; g++) {
        Int c[M][2];
        for (int i = 0; i < M; i++) c[i][0] = c[i][1] = set_int(0);
        for (int64_t j = g * kHalf; j < g * kHalf + kHalf / 2; j += 4, at += 128) {
            const uint8_t *b = reinterpret_cast<const uint8_t *>(at);
            const Quads low[2] = {low_nibbles(b), low_nibbles(b + 64)};
            const Quads high[2] = {high_nibbles(b), high_nibbles(b + 64)};
#pragma GCC unroll 6
            for (int i = 0; i < M; i++) {
                const Four first = four(rows + i * k + j), second = four(rows + i * k + j + kHalf / 2);
                c[i][0] = dot(dot(c[i][0], first, low[0]), second, high[0]);
                c[i][1] = dot(dot(c[i][1], first, low[1]), second, high[1]);
            }
        }
        const uint16_t *w = reinterpret_cast<const uint16_t *>(at);
        at += 4 * kPanel;
#pragma GCC unroll 6
        for (int i = 0; i < M; i++) {
            const float s = scale[i * (groups / 2) + g / 2];
            const Vec by = set(s), offset = set(s * static_cast<float>(sums[i * groups + g]));
            for (int h = 0; h < 2; h++) {
                f[i][h] = fma(to_float(c[i][h]), mul(load_f16(w + 16 * h), by), f[i][h]);
                f[i][h] = fma(load_f16(w + kPanel + 16 * h), offset, f[i][h]);
            }
        }
    }
    for (int i = 0; i < M; i++) {
        store(out + i * kPanel, f[i][0]);
        store(out + i * kPanel + 16, f[i][1]);
    }
}

template <int M>
void tiles_of(int64_t kind, int64_t rows, const Tile &tile, float *out) {
    if constexpr (M > 1) {
        if (rows < M) return tiles_of<M - 1>(kind, rows, tile, out);
    }
    if (kind == RAMET_BF16) return tile_bf16<M>(tile, out);
    if constexpr (M <= kTileInt8) {
        if (kind == RAMET_INT8) return tile_int8<M>(tile, out);
        return tile_int4<M>(tile, out);
    }
}

inline int64_t panel_bytes(int64_t kind, int64_t k) {
    if (kind == RAMET_BF16) return k * kPanel * 2;
    return kind == RAMET_INT8 ? k / kGroup * kInt8Group : k / kHalf * kInt4Group;
}

inline int64_t panels(const RametWeight &weight) { return (weight.n + kPanel - 1) / kPanel; }

inline void add_bias(const RametWeight &weight, int64_t panel, int64_t rows, float *out) {
    const int64_t width = least(kPanel, weight.n - panel * kPanel);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j++) out[i * kPanel + j] += weight.bias[panel * kPanel + j];
}

// use(row, outputs[32]) for rows first..last-1 of one panel: by AMX where there are enough of them, the others in tiles
// of nearly equal height.
template <class Use>
inline void multiply(const RametWeight &weight, int64_t panel, const Acts &acts, int64_t first, int64_t last, Use use) {
    constexpr int kTall = most(kTileBf16, kTileInt8);
    alignas(64) float out[most(kTall, kTileRows) * kPanel];
    const int64_t height = weight.kind == RAMET_BF16 ? kTileBf16 : kTileInt8;
    const char *data = static_cast<const char *>(weight.data) + panel * panel_bytes(weight.kind, acts.k);
#if defined(__AMX_INT8__)
    for (int64_t rows; (rows = tiled_rows(weight.kind, last - first)) > 0; first += rows) {
        tiled(weight.kind, acts, first, rows, data, out);
        if (weight.bias) add_bias(weight, panel, rows, out);
        for (int64_t i = 0; i < rows; i++) use(first + i, out + i * kPanel);
    }
#endif
    for (int64_t row = first, left = (last - first + height - 1) / height; row < last; left--) {
        const int64_t rows = (last - row + left - 1) / left;
        tiles_of<kTall>(weight.kind, rows, Tile{&acts, row, data}, out);
        if (weight.bias) add_bias(weight, panel, rows, out);
        for (int64_t i = 0; i < rows; i++) use(row + i, out + i * kPanel);
        row += rows;
    }
}

}  // namespace
}  // namespace ramet
