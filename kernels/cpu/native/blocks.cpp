// Block formats of GGUF, by the layout that ggml documents: 32 weights, or 256 in eight (Q4_K, Q5_K) or sixteen (Q6_K)
// sub-blocks.
#include "blocks.h"

#include "numeric.h"
#include "ramet_cpu.h"

namespace ramet {

namespace {

struct Format {
    int64_t values, bytes;
};

Format format(int64_t source) {
    switch (source) {
        case RAMET_FROM_F32: return {1, 4};
        case RAMET_FROM_F16: return {1, 2};
        case RAMET_FROM_BF16: return {1, 2};
        case RAMET_FROM_Q8_0: return {32, 34};
        case RAMET_FROM_Q4_0: return {32, 18};
        case RAMET_FROM_Q4_1: return {32, 20};
        case RAMET_FROM_Q5_0: return {32, 22};
        case RAMET_FROM_Q4_K: return {256, 144};
        case RAMET_FROM_Q5_K: return {256, 176};
        case RAMET_FROM_Q6_K: return {256, 210};
        default: return {0, 0};
    }
}

uint16_t half_at(const uint8_t *p) {
    uint16_t bits;
    std::memcpy(&bits, p, sizeof bits);
    return bits;
}

float f16_at(const uint8_t *p) { return from_f16(half_at(p)); }

// Scale and minimum of sub-block j of Q4_K and Q5_K: 6 bits each, of which 2 lie apart for the last four.
void k_scales(const uint8_t *block, int j, float *scale, float *minimum) {
    const uint8_t *q = block + 4;
    const int s = j < 4 ? q[j] & 63 : (q[j + 4] & 15) | (q[j - 4] >> 6) << 4;
    const int m = j < 4 ? q[j + 4] & 63 : q[j + 4] >> 4 | (q[j] >> 6) << 4;
    *scale = f16_at(block) * static_cast<float>(s);
    *minimum = -f16_at(block + 2) * static_cast<float>(m);
}

void read_q8_0(const uint8_t *block, float *out) {
    const float d = f16_at(block);
    for (int i = 0; i < 32; i++) out[i] = d * static_cast<float>(static_cast<int8_t>(block[2 + i]));
}

void read_q5_0(const uint8_t *block, float *out) {
    const float d = f16_at(block);
    uint32_t high;
    std::memcpy(&high, block + 2, sizeof high);
    for (int i = 0; i < 32; i++) {
        const int nibble = block[6 + i % 16] >> (i < 16 ? 0 : 4) & 15, bit = static_cast<int>(high >> i & 1u);
        out[i] = d * static_cast<float>((nibble | bit << 4) - 16);
    }
}

void read_q5_k(const uint8_t *block, float *out) {
    const uint8_t *high = block + 16, *low = block + 48;
    for (int j = 0; j < 8; j++) {
        float scale, minimum;
        k_scales(block, j, &scale, &minimum);
        for (int i = 0; i < 32; i++) {
            const int nibble = low[j / 2 * 32 + i] >> (j % 2 * 4) & 15, bit = high[i] >> j & 1;
            out[j * 32 + i] = scale * static_cast<float>(nibble | bit << 4) + minimum;
        }
    }
}

void read_q6_k(const uint8_t *block, float *out) {
    const float d = f16_at(block + 208);
    const uint8_t *scales = block + 192;
    for (int i = 0; i < 256; i++) {
        const int half = i / 128, quarter = i % 128 / 32, lane = i % 32;
        const int low = block[half * 64 + quarter % 2 * 32 + lane] >> (quarter / 2 * 4) & 15;
        const int high = block[128 + half * 32 + lane] >> (quarter * 2) & 3;
        const float scale = d * static_cast<float>(static_cast<int8_t>(scales[i / 16]));
        out[i] = scale * static_cast<float>((low | high << 4) - 32);
    }
}

void read_block(int64_t source, const uint8_t *row, int64_t block, float *out) {
    const uint8_t *at = row + block * format(source).bytes;
    switch (source) {
        case RAMET_FROM_F32: std::memcpy(out, at, 4); return;
        case RAMET_FROM_F16: *out = f16_at(at); return;
        case RAMET_FROM_BF16: *out = from_bf16(half_at(at)); return;
        case RAMET_FROM_Q8_0: return read_q8_0(at, out);
        case RAMET_FROM_Q5_0: return read_q5_0(at, out);
        case RAMET_FROM_Q5_K: return read_q5_k(at, out);
        case RAMET_FROM_Q6_K: return read_q6_k(at, out);
        default: break;
    }
    const int64_t parts = format(source).values / 32;
    for (int64_t part = 0; part < parts; part++) {
        const Nibbles n = read_nibbles(source, row, block * parts + part);
        for (int i = 0; i < 32; i++) out[part * 32 + i] = n.scale * static_cast<float>(n.value[i]) + n.minimum;
    }
}

}  // namespace

int64_t source_row_bytes(int64_t source, int64_t k) {
    const Format f = format(source);
    return f.values == 0 || k < 1 || k % f.values ? 0 : k / f.values * f.bytes;
}

void read_row(int64_t source, const void *row, int64_t k, float *out) {
    const int64_t values = format(source).values;
    for (int64_t block = 0; block * values < k; block++)
        read_block(source, static_cast<const uint8_t *>(row), block, out + block * values);
}

bool has_nibbles(int64_t source) {
    return source == RAMET_FROM_Q4_0 || source == RAMET_FROM_Q4_1 || source == RAMET_FROM_Q4_K;
}

Nibbles read_nibbles(int64_t source, const void *row, int64_t block) {
    const uint8_t *bytes = static_cast<const uint8_t *>(row);
    Nibbles n;
    if (source == RAMET_FROM_Q4_K) {
        const uint8_t *at = bytes + block / 8 * 144;
        const int j = static_cast<int>(block % 8);
        k_scales(at, j, &n.scale, &n.minimum);
        for (int i = 0; i < 32; i++) n.value[i] = at[16 + j / 2 * 32 + i] >> (j % 2 * 4) & 15;
        return n;
    }
    const bool plain = source == RAMET_FROM_Q4_0;
    const uint8_t *at = bytes + block * (plain ? 18 : 20);
    n.scale = f16_at(at);
    n.minimum = plain ? -8.0f * n.scale : f16_at(at + 2);
    for (int i = 0; i < 32; i++) n.value[i] = at[(plain ? 2 : 4) + i % 16] >> (i < 16 ? 0 : 4) & 15;
    return n;
}

}  // namespace ramet
