// Vectors of 16 lanes as two AVX2 registers. See simd_portable.h for what each function means.
#pragma once

#include <immintrin.h>

#include "numeric.h"

namespace ramet {
namespace {

constexpr int kTileBf16 = 2, kTileInt8 = 2, kTileAttend = 1;
constexpr int kOffset = 0;

struct Vec {
    __m256 lo, hi;
};
struct Int {
    __m256i lo, hi;
};
struct Pairs {
    Vec even, odd;
};
struct Two {
    __m256 even, odd;
};
// Bytes 0 and 2 of each quad, and bytes 1 and 3, as int16: two multiply-adds then need no intermediate saturation.
struct Quads {
    Int even, odd;
};
struct Four {
    __m256i even, odd;
};

inline Vec set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vec load(const float *p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float *p, Vec a) {
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
inline __m256i load_bits(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
inline __m128i load_half(const void *p) { return _mm_loadu_si128(static_cast<const __m128i *>(p)); }
inline __m256 widen(__m128i bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)); }
inline Vec load_bf16(const uint16_t *p) { return {widen(load_half(p)), widen(load_half(p + 8))}; }
inline __m256i bf16_bits(__m256 a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
inline void store_bf16(uint16_t *p, Vec a) {
    const __m256i packed = _mm256_packus_epi32(bf16_bits(a.lo), bf16_bits(a.hi));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
inline Vec load_f16(const uint16_t *p) { return {_mm256_cvtph_ps(load_half(p)), _mm256_cvtph_ps(load_half(p + 8))}; }
inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline Vec abs(Vec a) {
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    return {_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask)};
}
inline Vec keep(Vec a, int64_t first, int64_t last, float other) {
    const __m256i from = _mm256_set1_epi32(static_cast<int>(first) - 1), to = _mm256_set1_epi32(static_cast<int>(last));
    const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
    const auto inside = [&](__m256i lane) {
        return _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(lane, from), _mm256_cmpgt_epi32(to, lane)));
    };
    const __m256 rest = _mm256_set1_ps(other);
    return {_mm256_blendv_ps(rest, a.lo, inside(low)), _mm256_blendv_ps(rest, a.hi, inside(high))};
}
inline __m256 pick8(__m256 a, uint32_t bits, float other) {
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lanes), lanes);
    return _mm256_blendv_ps(_mm256_set1_ps(other), a, _mm256_castsi256_ps(set));
}
inline Vec pick(Vec a, uint32_t bits, float other) { return {pick8(a.lo, bits, other), pick8(a.hi, bits >> 8, other)}; }
inline float sum(Vec a) {
    const __m256 eight = _mm256_add_ps(a.lo, a.hi);
    const __m128 quad = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 pair = _mm_add_ps(quad, _mm_movehl_ps(quad, quad));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
inline float top(Vec a) {
    const __m256 eight = _mm256_max_ps(a.lo, a.hi);
    const __m128 quad = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 pair = _mm_max_ps(quad, _mm_movehl_ps(quad, quad));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_shuffle_ps(pair, pair, 1)));
}
inline Vec round(Vec a) { return {_mm256_round_ps(a.lo, 8), _mm256_round_ps(a.hi, 8)}; }
inline __m256 power2(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline Vec scale2(Vec a, Vec n) { return {_mm256_mul_ps(a.lo, power2(n.lo)), _mm256_mul_ps(a.hi, power2(n.hi))}; }

inline Int set_int(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Int add(Int a, Int b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline int32_t sum(Int a) {
    const __m256i eight = _mm256_add_epi32(a.lo, a.hi);
    const __m128i quad = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i pair = _mm_add_epi32(quad, _mm_shuffle_epi32(quad, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32(pair, 0xb1)));
}
inline Vec to_float(Int a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline Int to_int(Vec a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
// The lowest byte of each lane: activations are within -127..127, and a lane that held a nan counts for nothing.
inline void store_int8(int8_t *p, Int a) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), bytes);
}

inline __m256 even_half(__m256i bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16)); }
inline __m256 odd_half(__m256i bits) {
    return _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
inline Pairs load_pairs(const uint16_t *p) {
    const __m256i lo = load_bits(p), hi = load_bits(p + 16);
    return {{even_half(lo), even_half(hi)}, {odd_half(lo), odd_half(hi)}};
}
inline Two two(const uint16_t *p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    const __m256i bits = _mm256_set1_epi32(word);
    return {even_half(bits), odd_half(bits)};
}
inline Vec dot(Vec c, Two a, const Pairs &b) {
    c = {_mm256_fmadd_ps(a.even, b.even.lo, c.lo), _mm256_fmadd_ps(a.even, b.even.hi, c.hi)};
    return {_mm256_fmadd_ps(a.odd, b.odd.lo, c.lo), _mm256_fmadd_ps(a.odd, b.odd.hi, c.hi)};
}

inline __m256i even_bytes(__m256i bytes) { return _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8); }
inline __m256i odd_bytes(__m256i bytes) { return _mm256_srai_epi16(bytes, 8); }
inline Quads quads(__m256i lo, __m256i hi) {
    return {{even_bytes(lo), even_bytes(hi)}, {odd_bytes(lo), odd_bytes(hi)}};
}
inline Quads load_quads(const uint8_t *p) {
    const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
    return quads(_mm256_xor_si256(load_bits(p), flip), _mm256_xor_si256(load_bits(p + 32), flip));
}
inline Quads low_nibbles(const uint8_t *p) {
    const __m256i mask = _mm256_set1_epi8(15);
    return quads(_mm256_and_si256(load_bits(p), mask), _mm256_and_si256(load_bits(p + 32), mask));
}
inline Quads high_nibbles(const uint8_t *p) {
    const __m256i mask = _mm256_set1_epi8(15), lo = load_bits(p), hi = load_bits(p + 32);
    return quads(_mm256_and_si256(_mm256_srli_epi16(lo, 4), mask), _mm256_and_si256(_mm256_srli_epi16(hi, 4), mask));
}
inline Four four(const int8_t *p) {
    int32_t word;
    std::memcpy(&word, p, 4);
    const __m256i bytes = _mm256_set1_epi32(word);
    return {even_bytes(bytes), odd_bytes(bytes)};
}
inline Int dot(Int c, const Four &a, const Quads &b) {
    c = add(c, Int{_mm256_madd_epi16(a.even, b.even.lo), _mm256_madd_epi16(a.even, b.even.hi)});
    return add(c, Int{_mm256_madd_epi16(a.odd, b.odd.lo), _mm256_madd_epi16(a.odd, b.odd.hi)});
}

// Eight words of eight rows.
inline void transpose8(const uint16_t *const *rows, int64_t word, uint32_t *out, int64_t stride) {
    __m256i r[8], t[8];
    for (int i = 0; i < 8; i++) r[i] = load_bits(rows[i] + 2 * word);
    for (int i = 0; i < 4; i++) {
        t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        r[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        uint32_t *to = out + (word + i) * stride;
        const __m256i low = _mm256_permute2x128_si256(r[i], r[i + 4], 0x20);
        const __m256i high = _mm256_permute2x128_si256(r[i], r[i + 4], 0x31);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), low);
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(to + 4 * stride), high);
    }
}
inline void transpose(const uint16_t *const *rows, int64_t words, uint32_t *out, int64_t stride) {
    for (int64_t w = 0; w < words; w += 8) {
        transpose8(rows, w, out, stride);
        transpose8(rows + 8, w, out + 8, stride);
    }
}
inline void interleave(const uint16_t *a, const uint16_t *b, int64_t dim, uint32_t *out) {
    for (int64_t d = 0; d < dim; d += 8) {
        const __m256i x = _mm256_cvtepu16_epi32(load_half(a + d)), y = _mm256_cvtepu16_epi32(load_half(b + d));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + d), _mm256_or_si256(x, _mm256_slli_epi32(y, 16)));
    }
}

}  // namespace
}  // namespace ramet
