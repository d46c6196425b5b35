// Operations on one token's row of float32. In: a row. Out: a row, or activations in the form that a weight wants.
// Needs a simd_*.h, gemm.h and unpack.h before it.
#pragma once

#include <cmath>

#include "step.h"

namespace ramet {
namespace {

// 2^x for x in -126..126, relative error below 2^-22 (Taylor series of degree 6 on -1/2..1/2).
inline Vec exp2(Vec x) {
    x = max(min(x, set(126.0f)), set(-126.0f));
    const Vec n = round(x), r = sub(x, n);
    Vec p = set(1.54035304e-4f);
    p = fma(p, r, set(1.33335581e-3f));
    p = fma(p, r, set(9.61812911e-3f));
    p = fma(p, r, set(5.55041087e-2f));
    p = fma(p, r, set(2.40226507e-1f));
    p = fma(p, r, set(6.93147181e-1f));
    return scale2(fma(p, r, set(1.0f)), n);
}

// gate * sigmoid(gate) * up.
inline Vec silu_mul(Vec gate, Vec up) {
    const Vec e = exp2(mul(gate, set(-1.44269504f)));
    return mul(div(gate, add(set(1.0f), e)), up);
}

// 1 / sqrt(mean(x^2) + eps) of n values, n a multiple of 16.
inline float inverse_rms(const float *x, int64_t n, float eps) {
    Vec total = set(0);
    for (int64_t i = 0; i < n; i += 16) {
        const Vec v = load(x + i);
        total = fma(v, v, total);
    }
    return 1.0f / std::sqrt(sum(total) / static_cast<float>(n) + eps);
}

// One group of 64 values to int8: the largest magnitude becomes 127. A group that is all but zero is zero.
inline void quantise(const Acts &acts, int64_t row, int64_t group, const float *x) {
    const int64_t at = row * (acts.k / kGroup) + group;
    Vec v[4], peaks = set(0);
    for (int i = 0; i < 4; i++) {
        v[i] = load(x + 16 * i);
        peaks = max(peaks, abs(v[i]));
    }
    const float peak = top(peaks);
    const bool zero = peak < 1e-30f;  // 127 / peak would overflow
    const Vec by = set(zero ? 0.0f : 127.0f / peak);
    acts.scale[at] = zero ? 0.0f : peak / 127.0f;
    int8_t *out = static_cast<int8_t *>(acts.data) + row * acts.k + group * kGroup;
    for (int half = 0; half < 2; half++) {
        const Int low = to_int(mul(v[2 * half], by)), high = to_int(mul(v[2 * half + 1], by));
        store_int8(out + 32 * half, low);
        store_int8(out + 32 * half + 16, high);
        acts.sum[at * 2 + half] = sum(add(low, high));
    }
}

// One group of 64 values as `acts` wants it.
inline void put(const Acts &acts, int64_t row, int64_t group, const float *x) {
    if (acts.quantised) return quantise(acts, row, group, x);
    uint16_t *out = static_cast<uint16_t *>(acts.data) + row * acts.k + group * kGroup;
    for (int i = 0; i < 64; i += 16) store_bf16(out + i, load(x + i));
}

// A row of n values, n a multiple of 16, times `by` and (where it is given) `weight`; zeros up to acts.k.
inline void put_row(const Acts &acts, int64_t row, const float *x, int64_t n, float by, const float *weight) {
    alignas(64) float part[kGroup];
    const Vec factor = set(by);
    for (int64_t group = 0; group * kGroup < acts.k; group++) {
        for (int64_t i = 0; i < kGroup; i += 16) {
            const int64_t at = group * kGroup + i;
            Vec v = set(0);
            if (at < n) v = mul(load(x + at), factor);
            if (at < n && weight) v = mul(v, load(weight + at));
            store(part + i, v);
        }
        put(acts, row, group, part);
    }
}

// RMS norm (Zhang and Sennrich 2019) of a row into activations.
inline void put_norm(const Acts &acts, int64_t row, const float *x, int64_t n, float eps, const float *weight) {
    put_row(acts, row, x, n, inverse_rms(x, n, eps), weight);
}

// One head: RMS norm where `norm` is given, half-split rotation (Su et al. 2021), times `scale`, to bfloat16.
inline void rotate(float *x, const RametModel &model, const float *norm, int64_t position, float scale, uint16_t *out) {
    const int64_t dim = model.head_dim, half = dim / 2;
    if (norm) {
        const Vec by = set(inverse_rms(x, dim, model.eps));
        for (int64_t i = 0; i < dim; i += 16) store(x + i, mul(mul(load(x + i), by), load(norm + i)));
    }
    const float *cos = model.cos + position * half, *sin = model.sin + position * half;
    alignas(64) float turned[kMostDim];
    for (int64_t i = 0; i < half; i++) {
        turned[i] = (x[i] * cos[i] - x[i + half] * sin[i]) * scale;
        turned[i + half] = (x[i + half] * cos[i] + x[i] * sin[i]) * scale;
    }
    for (int64_t i = 0; i < dim; i += 16) store_bf16(out + i, load(turned + i));
}

// A row of the embedding, or of a packed head that serves as one.
inline void embed(const RametModel &model, int64_t token, int64_t stride, float *out) {
    const int64_t n = model.hidden;
    for (int64_t i = n; i < stride; i++) out[i] = 0;
    if (model.embedding) {
        for (int64_t i = 0; i < n; i += 16) store(out + i, load_bf16(model.embedding + token * n + i));
        return;
    }
    const RametWeight &head = model.head;
    const int64_t k = round_up(head.k, kGroup), column = token % kPanel;
    const char *panel = static_cast<const char *>(head.data) + token / kPanel * panel_bytes(head.kind, k);
    unpack_column(head.kind, panel, column, n, out);
}

}  // namespace
}  // namespace ramet
