// Attention over slots with online softmax (Milakov and Gimelshein 2018; Dao et al. 2022). In: queries of one KV head,
// spans of slots. Out: one row of float32 per query. Blocks of kBlock positions are counted from position 0 of a
// sequence and taken in order, so a row's bits do not depend on which rows share its work. Needs rows.h before it.
#pragma once

#include "step.h"

namespace ramet {
namespace {

// One thread's memory: the block's keys as columns, its values as pairs of rows, and the state of every query row.
struct Work {
    uint32_t *keys;          // [dim / 2][kBlock]
    uint32_t *values;        // [kBlock / 2][dim]
    float *scores;           // [kMostRows][kBlock]
    uint16_t *weights;       // [kMostRows][kBlock]
    float *sums;             // [kMostRows][dim]
    float *peak, *total;     // [kMostRows]
    const uint16_t **query;  // [kMostRows]: where a row's query is
    int64_t *seen;           // [kMostRows]: positions that it sees
};

inline Work work_at(char *memory, int64_t dim) {
    const auto take = [&memory](int64_t bytes) {
        char *at = memory;
        memory += round_up(bytes, 64);
        return at;
    };
    Work work;
    work.keys = reinterpret_cast<uint32_t *>(take(dim / 2 * kBlock * 4));
    work.values = reinterpret_cast<uint32_t *>(take(kBlock / 2 * dim * 4));
    work.scores = reinterpret_cast<float *>(take(kMostRows * kBlock * 4));
    work.weights = reinterpret_cast<uint16_t *>(take(kMostRows * kBlock * 2));
    work.sums = reinterpret_cast<float *>(take(kMostRows * dim * 4));
    work.peak = reinterpret_cast<float *>(take(kMostRows * 4));
    work.total = reinterpret_cast<float *>(take(kMostRows * 4));
    work.query = reinterpret_cast<const uint16_t **>(take(kMostRows * 8));
    work.seen = reinterpret_cast<int64_t *>(take(kMostRows * 8));
    return work;
}

// One item of one KV head of one layer.
struct Head {
    const Step *step;
    const Item *item;
    const uint16_t *keys, *values;  // [capacity][dim]
    int64_t head, window;
};

// c[i][v] += rows[i] . b over `inner` pairs; b has `stride` words a pair. ROWS x WIDTH vectors stay in registers.
template <int ROWS, int WIDTH>
void product(const uint16_t *const *rows, int64_t inner, const uint32_t *b, int64_t stride, float *out, int64_t ldo,
             bool fresh) {
    Vec c[ROWS][WIDTH];
    for (int i = 0; i < ROWS; i++)
        for (int v = 0; v < WIDTH; v++) c[i][v] = fresh ? set(0) : load(out + i * ldo + 16 * v);
    for (int64_t j = 0; j < inner; j++, b += stride) {
        Pairs pairs[WIDTH];
        for (int v = 0; v < WIDTH; v++) pairs[v] = load_pairs(reinterpret_cast<const uint16_t *>(b + 16 * v));
#pragma GCC unroll 6
        for (int i = 0; i < ROWS; i++) {
            const Two a = two(rows[i] + 2 * j);
#pragma GCC unroll 4
            for (int v = 0; v < WIDTH; v++) c[i][v] = dot(c[i][v], a, pairs[v]);
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int v = 0; v < WIDTH; v++) store(out + i * ldo + 16 * v, c[i][v]);
}

template <int ROWS>
void products(const uint16_t *const *rows, int64_t inner, const uint32_t *b, int64_t width, float *out, int64_t ldo,
              bool fresh) {
    int64_t at = 0;
    for (; at + 64 <= width; at += 64) product<ROWS, 4>(rows, inner, b + at, width, out + at, ldo, fresh);
    for (; at < width; at += 16) product<ROWS, 1>(rows, inner, b + at, width, out + at, ldo, fresh);
}

// out [rows][ldo] (+)= rows times b [inner][width], in tiles of up to kTileAttend rows.
template <int ROWS = kTileAttend>
void multiply_rows(const uint16_t *const *rows, int64_t count, int64_t inner, const uint32_t *b, int64_t width,
                   float *out, int64_t ldo, bool fresh) {
    int64_t i = 0;
    for (; i + ROWS <= count; i += ROWS) products<ROWS>(rows + i, inner, b, width, out + i * ldo, ldo, fresh);
    if constexpr (ROWS > 1) {
        if (i < count) multiply_rows<ROWS - 1>(rows + i, count - i, inner, b, width, out + i * ldo, ldo, fresh);
    }
}

// Keys of positions at..at+count-1 as columns, values as pairs of rows. Software prefetch of the next block, all at
// once or spread over the products, was measured to change nothing, for slots in order and for scattered ones.
inline void gather(const Head &h, const Span &span, int64_t at, int64_t count, const Work &work) {
    const int64_t dim = h.step->model->head_dim, last = at + count - 1;
    for (int64_t t = 0; t < count; t += 16) {
        const uint16_t *rows[16];
        for (int64_t i = 0; i < 16; i++) rows[i] = h.keys + span.slots[least(at + t + i, last)] * dim;
        transpose(rows, dim / 2, work.keys + t, kBlock);
    }
    for (int64_t t = 0; t < count; t += 2) {
        const uint16_t *first = h.values + span.slots[at + t] * dim;
        const uint16_t *second = h.values + span.slots[least(at + t + 1, last)] * dim;
        interleave(first, second, dim, work.values + t / 2 * dim);
    }
}

// One row's scores of a block to weights: lanes first..last-1 count. Rescales the row's sums when its peak rises.
inline void soften(const Work &work, int64_t row, int64_t first, int64_t last, int64_t dim) {
    const float *scores = work.scores + row * kBlock;
    uint16_t *weights = work.weights + row * kBlock;
    if (last <= first) {
        for (int64_t i = 0; i < kBlock; i += 16) store_bf16(weights + i, set(0));
        return;
    }
    Vec v[4], peaks = set(-INFINITY);
    for (int i = 0; i < 4; i++) {
        v[i] = keep(load(scores + 16 * i), first - 16 * i, last - 16 * i, -INFINITY);
        peaks = max(peaks, v[i]);
    }
    const float before = work.peak[row], peak = most(before, top(peaks));
    Vec total = set(0);
    for (int i = 0; i < 4; i++) {
        const Vec e = keep(exp2(sub(v[i], set(peak))), first - 16 * i, last - 16 * i, 0.0f);
        total = add(total, e);
        store_bf16(weights + 16 * i, e);
    }
    float left = 0;  // of what was summed so far
    if (before == peak) {
        left = 1;
    } else if (before > -INFINITY) {
        left = sum(keep(exp2(set(before - peak)), 0, 1, 0.0f));
        float *sums = work.sums + row * dim;
        for (int64_t d = 0; d < dim; d += 16) store(sums + d, mul(load(sums + d), set(left)));
    }
    work.peak[row] = peak;
    work.total[row] = work.total[row] * left + sum(total);
}

inline void attend_block(const Head &h, const Span &span, int64_t at, const Work &work) {
    const int64_t dim = h.step->model->head_dim, count = least(kBlock, span.to - at), rows = span.last - span.first;
    gather(h, span, at, count, work);
    const uint16_t *left[kMostRows];
    float *scores = work.scores + span.first * kBlock, *sums = work.sums + span.first * dim;
    multiply_rows(work.query + span.first, rows, dim / 2, work.keys, kBlock, scores, kBlock, true);
    for (int64_t i = 0; i < rows; i++) {
        const int64_t row = span.first + i, seen = work.seen[row];
        const int64_t oldest = h.window ? most<int64_t>(0, seen - h.window) : 0;
        soften(work, row, most<int64_t>(0, oldest - at), least(count, seen - at), dim);
        left[i] = work.weights + row * kBlock;
    }
    multiply_rows(left, rows, (count + 1) / 2, work.values, dim, sums, dim, false);
}

// The first block that some row of the span sees.
inline int64_t first_block(const Head &h, const Span &span, const Work &work) {
    if (!h.window) return span.from;
    int64_t oldest = span.to;
    for (int64_t row = span.first; row < span.last; row++) oldest = least(oldest, work.seen[row] - h.window);
    return most(span.from, most<int64_t>(0, oldest) / kBlock * kBlock);
}

inline void attend(const Head &h, const Work &work) {
    const RametModel &model = *h.step->model;
    const int64_t dim = model.head_dim, group = model.heads / model.kv_heads, rows = h.item->tokens * group;
    for (int64_t row = 0; row < rows; row++) {
        const int64_t place = h.item->first_token + row / group, token = h.step->attention.token[place];
        work.query[row] = h.step->query + (token * model.heads + h.head * group + row % group) * dim;
        work.seen[row] = h.step->attention.seen[place];
        work.peak[row] = -INFINITY;
        work.total[row] = 0;
        for (int64_t d = 0; d < dim; d += 16) store(work.sums + row * dim + d, set(0));
    }
    for (int64_t s = 0; s < h.item->spans; s++) {
        const Span &span = h.step->attention.spans[h.item->first_span + s];
        for (int64_t at = first_block(h, span, work); at < span.to; at += kBlock) attend_block(h, span, at, work);
    }
    const int64_t stride = round_up(model.heads * dim, kGroup);
    for (int64_t row = 0; row < rows; row++) {
        const int64_t token = h.step->attention.token[h.item->first_token + row / group];
        float *out = h.step->mixed + token * stride + (h.head * group + row % group) * dim;
        const Vec by = set(1.0f / work.total[row]);
        for (int64_t d = 0; d < dim; d += 16) store(out + d, mul(load(work.sums + row * dim + d), by));
    }
}

}  // namespace
}  // namespace ramet
