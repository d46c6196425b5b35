// What one forward works on: plain data between the planning code, compiled for every CPU, and a level's kernels.
#pragma once

#include <cstdint>

#include "ramet_cpu.h"

namespace ramet {

class Team;

constexpr int64_t kPanel = 32;       // outputs of a panel of weights
constexpr int64_t kGroup = 64;       // activations that share a scale; inputs are padded to a multiple of it
constexpr int64_t kHalf = 32;        // activations that share a sum; weights of an INT4 group
constexpr int64_t kInt8Group = kGroup * kPanel + kPanel * 2;         // bytes of a panel: weights, scales
constexpr int64_t kInt4Group = kHalf * kPanel / 2 + 2 * kPanel * 2;  // nibbles, scales, minima
constexpr int64_t kBlock = RAMET_BLOCK;
constexpr int64_t kMostRows = 96;    // query rows of a work item of attention
constexpr int64_t kRowChunk = 256;   // tokens whose MLP activations a thread holds at a time
constexpr int64_t kMostDim = 256;    // of a head

// Activations as a weight of `kind` wants them, one token a row of k values (padded): bfloat16; or int8 with a scale
// per kGroup and a sum per kHalf of them.
struct Acts {
    bool quantised;
    void *data;
    float *scale;
    int32_t *sum;
    int64_t k;
};

// Rows first..last-1 of an item read positions from..to-1 of `slots`.
struct Span {
    int32_t first, last;
    const int32_t *slots;
    int64_t from, to;
};

// Work of one KV head: `tokens` new tokens times the query heads of the KV head, row by row.
struct Item {
    int64_t first_token, tokens, first_span, spans;
};

struct Attention {
    const Item *items;
    int64_t count;
    const Span *spans;
    const int32_t *token;  // [..] new tokens of the items
    const int64_t *seen;   // beside token: positions that it sees, itself included
};

struct Step {
    const RametModel *model;
    const RametCache *cache;
    const RametBatch *batch;
    float *logits;
    Team *team;
    Attention attention;
    int64_t stride;          // of the residual stream: hidden, padded
    float *residual;         // [tokens][stride]
    float *qkv;              // [tokens][(heads + 2 kv_heads) head_dim, padded to a panel]
    uint16_t *query;         // [tokens][heads head_dim]: normed, rotated, scaled
    float *mixed;            // [tokens][heads head_dim, padded]: what attention returns
    void *inputs, *mixes, *inner, *wanted;  // memory of the Acts of the layers, see acts_bytes
    char *thread;            // [threads][thread_bytes]
    int64_t thread_bytes;
};

// A level's entry points.
struct Kernels {
    void (*forward)(Step &step);
    void (*linear)(Team &team, const RametWeight &weight, int64_t m, const float *x, float *y, void *acts);
    void (*draw)(Team &team, const RametDraws &draws, char *memory, int64_t thread_bytes);
};

int64_t acts_bytes(int64_t kind, int64_t rows, int64_t k);
Acts acts_at(void *memory, int64_t kind, int64_t rows, int64_t k);
int64_t thread_bytes(const RametModel &model);
int64_t draw_bytes(int64_t vocab);  // that a thread needs for drawing

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512, kernels_avx512_vnni, kernels_avx512_bf16;
extern const Kernels kernels_amx;  // null functions where the compiler did not know AMX
#elif defined(__aarch64__)
extern const Kernels kernels_neon, kernels_neon_dot;
#endif

}  // namespace ramet
