// Vectors of 16 lanes as four registers of AArch64's Advanced SIMD, which every AArch64 CPU has; with DOTPROD, where the
// compiler's flags have it, for 8-bit products. See simd_portable.h for what each function means.
#pragma once

#include <arm_neon.h>

#include "numeric.h"

namespace ramet {
namespace {

constexpr int kTileBf16 = 2, kTileInt8 = 2, kTileAttend = 1;  // 32 registers hold eight vectors
constexpr int kOffset = 0;

struct Vec {
    float32x4_t v[4];
};
struct Int {
    int32x4_t v[4];
};
struct Pairs {
    Vec even, odd;
};
struct Two {
    float32x4_t pair;  // even, odd, even, odd
};
struct Quads {
    int8x16_t v[4];
};
struct Four {
    int8x16_t v;
};

#define RAMET_QUARTERS for (int i = 0; i < 4; i++)

inline Vec set(float x) {
    const float32x4_t q = vdupq_n_f32(x);
    return {{q, q, q, q}};
}
inline Vec load(const float *p) { return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}}; }
inline void store(float *p, Vec a) { RAMET_QUARTERS vst1q_f32(p + 4 * i, a.v[i]); }
inline Vec load_bf16(const uint16_t *p) {
    Vec r;
    RAMET_QUARTERS r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
    return r;
}
inline uint16x4_t bf16_bits(float32x4_t a) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(a, a), rounded, quiet), 16);
}
inline void store_bf16(uint16_t *p, Vec a) { RAMET_QUARTERS vst1_u16(p + 4 * i, bf16_bits(a.v[i])); }
inline Vec load_f16(const uint16_t *p) {
    Vec r;
    RAMET_QUARTERS r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
    return r;
}
inline Vec add(Vec a, Vec b) {
    RAMET_QUARTERS a.v[i] = vaddq_f32(a.v[i], b.v[i]);
    return a;
}
inline Vec sub(Vec a, Vec b) {
    RAMET_QUARTERS a.v[i] = vsubq_f32(a.v[i], b.v[i]);
    return a;
}
inline Vec mul(Vec a, Vec b) {
    RAMET_QUARTERS a.v[i] = vmulq_f32(a.v[i], b.v[i]);
    return a;
}
inline Vec div(Vec a, Vec b) {
    RAMET_QUARTERS a.v[i] = vdivq_f32(a.v[i], b.v[i]);
    return a;
}
inline Vec fma(Vec a, Vec b, Vec c) {
    RAMET_QUARTERS c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
    return c;
}
// vmaxq and vminq would give a nan for a nan on either side.
inline float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline Vec max(Vec a, Vec b) {
    RAMET_QUARTERS a.v[i] = larger(a.v[i], b.v[i]);
    return a;
}
inline Vec min(Vec a, Vec b) {
    RAMET_QUARTERS a.v[i] = vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]);
    return a;
}
inline Vec abs(Vec a) {
    RAMET_QUARTERS a.v[i] = vabsq_f32(a.v[i]);
    return a;
}
inline Vec keep(Vec a, int64_t first, int64_t last, float other) {
    const int32_t lanes[4] = {0, 1, 2, 3};
    const int32x4_t low = vld1q_s32(lanes), from = vdupq_n_s32(static_cast<int32_t>(first));
    const int32x4_t to = vdupq_n_s32(static_cast<int32_t>(last));
    RAMET_QUARTERS {
        const int32x4_t lane = vaddq_s32(low, vdupq_n_s32(4 * i));
        a.v[i] = vbslq_f32(vandq_u32(vcgeq_s32(lane, from), vcltq_s32(lane, to)), a.v[i], vdupq_n_f32(other));
    }
    return a;
}
inline Vec pick(Vec a, uint32_t bits, float other) {
    const uint32_t lanes[4] = {1, 2, 4, 8};
    const uint32x4_t lane = vld1q_u32(lanes);
    RAMET_QUARTERS a.v[i] = vbslq_f32(vtstq_u32(vdupq_n_u32(bits >> (4 * i)), lane), a.v[i], vdupq_n_f32(other));
    return a;
}
inline float sum(Vec a) {
    const float32x4_t quad = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
    const float32x2_t pair = vadd_f32(vget_low_f32(quad), vget_high_f32(quad));
    return vget_lane_f32(pair, 0) + vget_lane_f32(pair, 1);
}
inline float top(Vec a) {
    const float32x4_t quad = larger(larger(a.v[0], a.v[2]), larger(a.v[1], a.v[3]));
    const float32x4_t pair = larger(quad, vextq_f32(quad, quad, 2));
    return vgetq_lane_f32(larger(pair, vextq_f32(pair, pair, 1)), 0);
}
inline Vec round(Vec a) {
    RAMET_QUARTERS a.v[i] = vrndnq_f32(a.v[i]);
    return a;
}
inline Vec scale2(Vec a, Vec n) {
    RAMET_QUARTERS {
        const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n.v[i]), vdupq_n_s32(127));
        a.v[i] = vmulq_f32(a.v[i], vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
    }
    return a;
}

inline Int set_int(int32_t x) {
    const int32x4_t q = vdupq_n_s32(x);
    return {{q, q, q, q}};
}
inline Int add(Int a, Int b) {
    RAMET_QUARTERS a.v[i] = vaddq_s32(a.v[i], b.v[i]);
    return a;
}
inline int32_t sum(Int a) { return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[2]), vaddq_s32(a.v[1], a.v[3]))); }
inline Vec to_float(Int a) {
    Vec r;
    RAMET_QUARTERS r.v[i] = vcvtq_f32_s32(a.v[i]);
    return r;
}
// The conversion alone would saturate.
inline Int to_int(Vec a) {
    Int r;
    RAMET_QUARTERS {
        const uint32x4_t inside = vcltq_f32(vabsq_f32(a.v[i]), vdupq_n_f32(2147483520.0f));
        r.v[i] = vbslq_s32(inside, vcvtnq_s32_f32(a.v[i]), vdupq_n_s32(INT32_MIN));
    }
    return r;
}
inline void store_int8(int8_t *p, Int a) {
    const int16x8_t low = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
    vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}

inline uint32x4_t load_words(const void *p) { return vreinterpretq_u32_u8(vld1q_u8(static_cast<const uint8_t *>(p))); }
inline Pairs load_pairs(const uint16_t *p) {
    Pairs r;
    RAMET_QUARTERS {
        const uint32x4_t bits = load_words(p + 8 * i);
        r.even.v[i] = vreinterpretq_f32_u32(vshlq_n_u32(bits, 16));
        r.odd.v[i] = vreinterpretq_f32_u32(vandq_u32(bits, vdupq_n_u32(0xffff0000u)));
    }
    return r;
}
inline uint32_t word_at(const void *p) {
    uint32_t word;
    std::memcpy(&word, p, 4);
    return word;
}
inline Two two(const uint16_t *p) {
    return {vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u32(vdup_n_u32(word_at(p))), 16))};
}
inline Vec dot(Vec c, Two a, const Pairs &b) {
    RAMET_QUARTERS c.v[i] = vfmaq_laneq_f32(c.v[i], b.even.v[i], a.pair, 0);
    RAMET_QUARTERS c.v[i] = vfmaq_laneq_f32(c.v[i], b.odd.v[i], a.pair, 1);
    return c;
}

inline Quads load_quads(const uint8_t *p) {
    Quads r;
    RAMET_QUARTERS r.v[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p + 16 * i), vdupq_n_u8(0x80)));
    return r;
}
inline Quads low_nibbles(const uint8_t *p) {
    Quads r;
    RAMET_QUARTERS r.v[i] = vreinterpretq_s8_u8(vandq_u8(vld1q_u8(p + 16 * i), vdupq_n_u8(15)));
    return r;
}
inline Quads high_nibbles(const uint8_t *p) {
    Quads r;
    RAMET_QUARTERS r.v[i] = vreinterpretq_s8_u8(vshrq_n_u8(vld1q_u8(p + 16 * i), 4));
    return r;
}
inline Four four(const int8_t *p) { return {vreinterpretq_s8_u32(vdupq_n_u32(word_at(p)))}; }
// Four columns: the sums of four products each.
inline int32x4_t dot4(int32x4_t c, int8x16_t a, int8x16_t b) {
#if defined(__ARM_FEATURE_DOTPROD)
    return vdotq_s32(c, a, b);
#else
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));  // 127 * 128 twice fits no int16
    return vaddq_s32(c, vpaddq_s32(low, vpaddlq_s16(vmull_high_s8(a, b))));
#endif
}
inline Int dot(Int c, Four a, const Quads &b) {
    RAMET_QUARTERS c.v[i] = dot4(c.v[i], a.v, b.v[i]);
    return c;
}

// Four words of four rows.
inline void transpose4(const uint16_t *const *rows, int64_t word, uint32_t *out, int64_t stride) {
    const uint32x4_t a = load_words(rows[0] + 2 * word), b = load_words(rows[1] + 2 * word);
    const uint32x4_t c = load_words(rows[2] + 2 * word), d = load_words(rows[3] + 2 * word);
    const uint64x2_t ab[2] = {vreinterpretq_u64_u32(vtrn1q_u32(a, b)), vreinterpretq_u64_u32(vtrn2q_u32(a, b))};
    const uint64x2_t cd[2] = {vreinterpretq_u64_u32(vtrn1q_u32(c, d)), vreinterpretq_u64_u32(vtrn2q_u32(c, d))};
    for (int i = 0; i < 2; i++) {
        uint32_t *to = out + (word + i) * stride;
        vst1q_u32(to, vreinterpretq_u32_u64(vtrn1q_u64(ab[i], cd[i])));
        vst1q_u32(to + 2 * stride, vreinterpretq_u32_u64(vtrn2q_u64(ab[i], cd[i])));
    }
}
inline void transpose(const uint16_t *const *rows, int64_t words, uint32_t *out, int64_t stride) {
    for (int64_t w = 0; w < words; w += 4)
        RAMET_QUARTERS transpose4(rows + 4 * i, w, out + 4 * i, stride);
}
inline void interleave(const uint16_t *a, const uint16_t *b, int64_t dim, uint32_t *out) {
    for (int64_t d = 0; d < dim; d += 8) {
        const uint16x8_t x = vld1q_u16(a + d), y = vld1q_u16(b + d);
        vst1q_u16(reinterpret_cast<uint16_t *>(out + d), vzip1q_u16(x, y));
        vst1q_u16(reinterpret_cast<uint16_t *>(out + d + 4), vzip2q_u16(x, y));
    }
}

}  // namespace
}  // namespace ramet
