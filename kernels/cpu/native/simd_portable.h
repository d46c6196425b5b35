// Vectors of 16 lanes in plain C++: the definition of what other levels compute, and the level of CPUs without AVX2.
// In an anonymous namespace, so that every level has its own copy.
#pragma once

#include <cmath>

#include "numeric.h"

namespace ramet {
namespace {

constexpr int kTileBf16 = 4, kTileInt8 = 4, kTileAttend = 4;
constexpr int kOffset = 0;  // what Quads adds to an INT8 weight

struct Vec {
    float v[16];
};
struct Int {
    int32_t v[16];
};
struct Pairs {
    Vec even, odd;
};
struct Two {
    float even, odd;
};
struct Quads {
    int16_t v[64];
};
struct Four {
    int8_t v[4];
};

#define RAMET_LANES for (int i = 0; i < 16; i++)

inline Vec set(float x) {
    Vec r;
    RAMET_LANES r.v[i] = x;
    return r;
}
inline Vec load(const float *p) {
    Vec r;
    std::memcpy(r.v, p, sizeof r.v);
    return r;
}
inline void store(float *p, Vec a) { std::memcpy(p, a.v, sizeof a.v); }
inline Vec load_bf16(const uint16_t *p) {
    Vec r;
    RAMET_LANES r.v[i] = from_bf16(p[i]);
    return r;
}
inline void store_bf16(uint16_t *p, Vec a) { RAMET_LANES p[i] = to_bf16(a.v[i]); }
inline Vec load_f16(const uint16_t *p) {
    Vec r;
    RAMET_LANES r.v[i] = from_f16(p[i]);
    return r;
}
inline Vec add(Vec a, Vec b) {
    RAMET_LANES a.v[i] += b.v[i];
    return a;
}
inline Vec sub(Vec a, Vec b) {
    RAMET_LANES a.v[i] -= b.v[i];
    return a;
}
inline Vec mul(Vec a, Vec b) {
    RAMET_LANES a.v[i] *= b.v[i];
    return a;
}
inline Vec div(Vec a, Vec b) {
    RAMET_LANES a.v[i] /= b.v[i];
    return a;
}
inline Vec fma(Vec a, Vec b, Vec c) {
    RAMET_LANES c.v[i] += a.v[i] * b.v[i];
    return c;
}
// The second operand where one is a nan, as the processors do it.
inline Vec max(Vec a, Vec b) {
    RAMET_LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
}
inline Vec min(Vec a, Vec b) {
    RAMET_LANES a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
}
inline Vec abs(Vec a) {
    RAMET_LANES a.v[i] = std::fabs(a.v[i]);
    return a;
}
// Lanes first..last-1, `other` elsewhere.
inline Vec keep(Vec a, int64_t first, int64_t last, float other) {
    RAMET_LANES a.v[i] = i >= first && i < last ? a.v[i] : other;
    return a;
}
// Lanes whose bit is set, `other` elsewhere.
inline Vec pick(Vec a, uint32_t bits, float other) {
    RAMET_LANES a.v[i] = bits >> i & 1u ? a.v[i] : other;
    return a;
}
// Halves are added, then halves of the sums: the order of every level.
inline float sum(Vec a) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) a.v[i] += a.v[i + half];
    return a.v[0];
}
inline float top(Vec a) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
    return a.v[0];
}
inline Vec round(Vec a) {
    RAMET_LANES a.v[i] = std::nearbyint(a.v[i]);
    return a;
}
// a * 2^n for integers n in -126..126.
inline Vec scale2(Vec a, Vec n) {
    RAMET_LANES a.v[i] *= float_of_bits(static_cast<uint32_t>(static_cast<int32_t>(n.v[i]) + 127) << 23);
    return a;
}

inline Int set_int(int32_t x) {
    Int r;
    RAMET_LANES r.v[i] = x;
    return r;
}
inline Int add(Int a, Int b) {
    RAMET_LANES a.v[i] += b.v[i];
    return a;
}
inline int32_t sum(Int a) {
    int32_t r = 0;
    RAMET_LANES r += a.v[i];
    return r;
}
inline Vec to_float(Int a) {
    Vec r;
    RAMET_LANES r.v[i] = static_cast<float>(a.v[i]);
    return r;
}
// To nearest even; what no int32 holds is the smallest one.
inline Int to_int(Vec a) {
    Int r;
    RAMET_LANES r.v[i] = std::fabs(a.v[i]) < 2147483520.0f ? static_cast<int32_t>(std::nearbyint(a.v[i])) : INT32_MIN;
    return r;
}
inline void store_int8(int8_t *p, Int a) { RAMET_LANES p[i] = static_cast<int8_t>(a.v[i]); }

// 16 columns of bfloat16 pairs, and the product of one pair of activations with them.
inline Pairs load_pairs(const uint16_t *p) {
    Pairs r;
    RAMET_LANES r.even.v[i] = from_bf16(p[2 * i]);
    RAMET_LANES r.odd.v[i] = from_bf16(p[2 * i + 1]);
    return r;
}
inline Two two(const uint16_t *p) { return {from_bf16(p[0]), from_bf16(p[1])}; }
inline Vec dot(Vec c, Two a, const Pairs &b) { return fma(set(a.odd), b.odd, fma(set(a.even), b.even, c)); }

// 16 columns of four INT8 weights, or of four nibbles, and their products with four activations.
inline Quads load_quads(const uint8_t *p) {
    Quads r;
    for (int i = 0; i < 64; i++) r.v[i] = static_cast<int16_t>(p[i] - 128);
    return r;
}
inline Quads low_nibbles(const uint8_t *p) {
    Quads r;
    for (int i = 0; i < 64; i++) r.v[i] = static_cast<int16_t>(p[i] & 15);
    return r;
}
inline Quads high_nibbles(const uint8_t *p) {
    Quads r;
    for (int i = 0; i < 64; i++) r.v[i] = static_cast<int16_t>(p[i] >> 4);
    return r;
}
inline Four four(const int8_t *p) {
    Four r;
    std::memcpy(r.v, p, 4);
    return r;
}
inline Int dot(Int c, Four a, const Quads &b) {
    RAMET_LANES for (int j = 0; j < 4; j++) c.v[i] += a.v[j] * b.v[4 * i + j];
    return c;
}

// Words 0..words-1 of 16 rows become the columns of `out` [words][stride]. words is a multiple of 8.
inline void transpose(const uint16_t *const *rows, int64_t words, uint32_t *out, int64_t stride) {
    for (int64_t w = 0; w < words; w++) RAMET_LANES std::memcpy(out + w * stride + i, rows[i] + 2 * w, 4);
}
// The values of two rows side by side: out[d] = (a[d], b[d]).
inline void interleave(const uint16_t *a, const uint16_t *b, int64_t dim, uint32_t *out) {
    for (int64_t d = 0; d < dim; d++) out[d] = a[d] | static_cast<uint32_t>(b[d]) << 16;
}

}  // namespace
}  // namespace ramet
