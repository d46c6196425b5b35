// Scalar number formats. In: bits of bfloat16, float16, float32. Out: the other ones. Plain code that all levels share;
// functions are static so that no level's instructions leak into another's through the linker.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "packed weights and GGUF blocks are little-endian: this CPU is served by torch"
#endif

namespace ramet {

static inline float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float from_bf16(uint16_t bits) { return float_of_bits(static_cast<uint32_t>(bits) << 16); }

// Round to nearest even; a nan stays one.
static inline uint16_t to_bf16(float value) {
    const uint32_t bits = bits_of_float(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

static inline float from_f16(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    if (rest >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
    if (rest >= 0x0400u) return float_of_bits(sign | ((rest << 13) + 0x38000000u));
    const float small = static_cast<float>(rest) * 5.9604644775390625e-8f;  // subnormal: units of 2^-24
    return float_of_bits(sign | bits_of_float(small));
}

// Round to nearest even, saturating at the largest finite value: weights of a model are finite.
static inline uint16_t to_f16(float value) {
    const uint32_t bits = bits_of_float(value), rest = bits & 0x7fffffffu;
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    if (rest >= 0x477ff000u) return static_cast<uint16_t>(sign | (rest > 0x7f800000u ? 0x7e00u : 0x7bffu));
    if (rest < 0x38800000u) {  // subnormal: adding 0.5 puts the result's unit at the last bit of the sum
        const float shifted = float_of_bits(rest) + 0.5f;
        return static_cast<uint16_t>(sign | (bits_of_float(shifted) - bits_of_float(0.5f)));
    }
    const uint32_t rounded = rest + 0xfffu + ((rest >> 13) & 1u) - 0x38000000u;
    return static_cast<uint16_t>(sign | (rounded >> 13));
}

static constexpr int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

template <class T>
static constexpr T least(T a, T b) {
    return b < a ? b : a;
}

template <class T>
static constexpr T most(T a, T b) {
    return a < b ? b : a;
}

}  // namespace ramet
