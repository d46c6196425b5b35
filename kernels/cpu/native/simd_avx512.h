// Vectors of 16 lanes as one AVX-512 register, with VNNI and BF16 products where the level has them. See
// simd_portable.h for what each function means.
#pragma once

#include <immintrin.h>

#include "numeric.h"

namespace ramet {
namespace {

constexpr int kTileBf16 = 12, kTileInt8 = 6, kTileAttend = 6;

using Vec = __m512;
// Integers and bit patterns are one type for the compiler; Int and Quads are kept apart for overloading.
struct Int {
    __m512i v;
};

inline Vec set(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float *p) { return _mm512_loadu_ps(p); }
inline void store(float *p, Vec a) { _mm512_storeu_ps(p, a); }
inline __m256i load_half(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
inline Vec load_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_half(p)), 16));
}
inline Vec load_f16(const uint16_t *p) { return _mm512_cvtph_ps(load_half(p)); }
inline void store_bf16(uint16_t *p, Vec a) {
    // Not VCVTNEPS2BF16, which takes denormals for zeros: all levels round alike.
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i chosen = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16)));
}
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec abs(Vec a) { return _mm512_abs_ps(a); }
inline Vec keep(Vec a, int64_t first, int64_t last, float other) {
    const auto below = [](int64_t n) { return n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1u; };
    return _mm512_mask_mov_ps(set(other), static_cast<__mmask16>(below(last) & ~below(first)), a);
}
// Lanes whose bit is set, `other` elsewhere.
inline Vec pick(Vec a, uint32_t bits, float other) {
    return _mm512_mask_mov_ps(set(other), static_cast<__mmask16>(bits), a);
}
inline float sum(Vec a) { return _mm512_reduce_add_ps(a); }
inline float top(Vec a) { return _mm512_reduce_max_ps(a); }
inline Vec round(Vec a) { return _mm512_roundscale_ps(a, 0); }
inline Vec scale2(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }

inline Int set_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Int add(Int a, Int b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline int32_t sum(Int a) { return _mm512_reduce_add_epi32(a.v); }
inline Vec to_float(Int a) { return _mm512_cvtepi32_ps(a.v); }
inline Int to_int(Vec a) { return {_mm512_cvtps_epi32(a)}; }
inline void store_int8(int8_t *p, Int a) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtepi32_epi8(a.v));
}

#if defined(__AVX512BF16__)
using Pairs = __m512bh;
using Two = __m512bh;
inline Pairs load_pairs(const uint16_t *p) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(p)); }
inline Two two(const uint16_t *p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return reinterpret_cast<__m512bh>(_mm512_set1_epi32(word));
}
inline Vec dot(Vec c, Two a, Pairs b) { return _mm512_dpbf16_ps(c, a, b); }
#else
struct Pairs {
    Vec even, odd;
};
using Two = Pairs;
inline Pairs halves(__m512i bits) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 16)), _mm512_castsi512_ps(_mm512_and_si512(bits, high))};
}
inline Pairs load_pairs(const uint16_t *p) { return halves(_mm512_loadu_si512(p)); }
inline Two two(const uint16_t *p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return halves(_mm512_set1_epi32(word));
}
inline Vec dot(Vec c, const Two &a, const Pairs &b) { return fma(a.odd, b.odd, fma(a.even, b.even, c)); }
#endif

#if defined(__AVX512VNNI__)
constexpr int kOffset = 128;  // VPDPBUSD multiplies unsigned weights
struct Quads {
    __m512i v;
};
using Four = Quads;
inline Quads load_quads(const uint8_t *p) { return {_mm512_loadu_si512(p)}; }
inline Quads low_nibbles(const uint8_t *p) {
    return {_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(15))};
}
inline Quads high_nibbles(const uint8_t *p) {
    return {_mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(p), 4), _mm512_set1_epi8(15))};
}
inline Four four(const int8_t *p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return {_mm512_set1_epi32(word)};
}
inline Int dot(Int c, Four a, Quads b) { return {_mm512_dpbusd_epi32(c.v, b.v, a.v)}; }
#else
constexpr int kOffset = 0;
struct Quads {
    __m512i even, odd;
};
using Four = Quads;
inline Quads split(__m512i bytes) {
    return {_mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8), _mm512_srai_epi16(bytes, 8)};
}
inline Quads load_quads(const uint8_t *p) {
    return split(_mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80))));
}
inline Quads low_nibbles(const uint8_t *p) {
    return split(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(15)));
}
inline Quads high_nibbles(const uint8_t *p) {
    return split(_mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(p), 4), _mm512_set1_epi8(15)));
}
inline Four four(const int8_t *p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    return split(_mm512_set1_epi32(word));
}
inline Int dot(Int c, const Four &a, const Quads &b) {
    c = add(c, Int{_mm512_madd_epi16(a.even, b.even)});
    return add(c, Int{_mm512_madd_epi16(a.odd, b.odd)});
}
#endif

// 16 rows of 16 words in registers.
inline void transpose16(__m512i *r) {
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}
inline void transpose(const uint16_t *const *rows, int64_t words, uint32_t *out, int64_t stride) {
    for (int64_t w = 0; w < words; w += 16) {
        const int64_t n = least<int64_t>(16, words - w);
        const __mmask16 inside = static_cast<__mmask16>((1u << n) - 1u);
        __m512i r[16];
        for (int i = 0; i < 16; i++) r[i] = _mm512_maskz_loadu_epi32(inside, rows[i] + 2 * w);
        transpose16(r);
        for (int i = 0; i < n; i++) _mm512_storeu_si512(out + (w + i) * stride, r[i]);
    }
}
inline void interleave(const uint16_t *a, const uint16_t *b, int64_t dim, uint32_t *out) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i both = _mm512_or_si512(lane, _mm512_slli_epi32(lane, 16));              // 0, 0, 1, 1, ...
    const __m512i low = _mm512_add_epi16(both, _mm512_set1_epi32(32 << 16));              // 0, 32, 1, 33, ...
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));                    // 16, 48, 17, 49, ...
    int64_t d = 0;
    for (; d + 32 <= dim; d += 32) {
        const __m512i x = _mm512_loadu_si512(a + d), y = _mm512_loadu_si512(b + d);
        _mm512_storeu_si512(out + d, _mm512_permutex2var_epi16(x, low, y));
        _mm512_storeu_si512(out + d + 16, _mm512_permutex2var_epi16(x, high, y));
    }
    for (; d < dim; d += 16) {
        const __m512i x = _mm512_cvtepu16_epi32(load_half(a + d)), y = _mm512_cvtepu16_epi32(load_half(b + d));
        _mm512_storeu_si512(out + d, _mm512_or_si512(x, _mm512_slli_epi32(y, 16)));
    }
}

}  // namespace
}  // namespace ramet
