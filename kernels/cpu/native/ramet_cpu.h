/* The C ABI of ramet's CPU library: plain structs and functions, no exceptions, no global state.
 *
 * In: packed weights, a KV pool and a ragged batch, all of them memory of the caller. Out: float32 logits. Functions
 * that can fail return a code (RAMET_OK is 0); ramet_error() words it. Pointers must be valid for the sizes that the
 * structs state; the sizes and every index are checked before anything is computed.
 *
 * Results have the same bits for every composition of a batch, chunking, grouping and number of threads, at one level:
 * each output sums over K in one fixed order, and attention walks absolute blocks of RAMET_BLOCK positions.
 */
#ifndef RAMET_CPU_H
#define RAMET_CPU_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define RAMET_API __attribute__((visibility("default")))
#else
#define RAMET_API
#endif

#define RAMET_ABI 2
#define RAMET_BLOCK 64 /* positions of one KV block; groups start and stop at multiples of it */
#define RAMET_ALIGN 64 /* alignment in bytes of packed weights, KV pool and logits that is fastest; none is needed */

/* Error codes. */
enum {
    RAMET_OK = 0,
    RAMET_NULL = 1,     /* a pointer that must be given is null */
    RAMET_SHAPE = 2,    /* a size of a weight or model is out of range, or they do not fit together */
    RAMET_KIND = 3,     /* an unknown kind of weight, source type or level */
    RAMET_BATCH = 4,    /* an index or an offset of the batch is out of range */
    RAMET_MEMORY = 5,   /* the system has no memory for what was asked */
    RAMET_FEATURE = 6,  /* this CPU lacks the instructions of the level */
    RAMET_THREADS = 7,  /* a number of threads outside 1..RAMET_MOST_THREADS, or the system refuses to start them */
    RAMET_BUSY = 8      /* the pool is computing another forward */
};
#define RAMET_MOST_THREADS 256

/* Levels of instructions of this architecture, in ascending order. A level includes what the ones before it need. */
#if defined(__aarch64__)
enum {
    RAMET_PORTABLE = 0, /* plain C++: the definition */
    RAMET_NEON = 1,     /* Advanced SIMD, which every AArch64 CPU has */
    RAMET_NEON_DOT = 2  /* and DOTPROD: 8-bit products */
};
#define RAMET_LEVELS 3
#else
enum {
    RAMET_PORTABLE = 0,    /* plain C++: the definition */
    RAMET_AVX2 = 1,        /* AVX2, FMA, F16C */
    RAMET_AVX512 = 2,      /* AVX-512 F, BW, DQ, VL */
    RAMET_AVX512_VNNI = 3, /* and VNNI: 8-bit products */
    RAMET_AVX512_BF16 = 4, /* and BF16 products */
    RAMET_AMX = 5          /* and AMX: 8-bit products of many rows in tiles */
};
#define RAMET_LEVELS 6
#endif

/* Kinds of packed weights. A matrix of n outputs and k inputs is stored in panels of 32 outputs, k rounded up to a
 * multiple of 64 and n to one of 32:
 *   BF16  [n/32][k/2][32][2] bfloat16
 *   INT8  [n/32][k/64] x { [16][32][4] uint8 = round(w / scale) + 128, then [32] bfloat16 scales }
 *   INT4  [n/32][k/32] x { [4][32][4] bytes, inputs 4j+i in the low and 16+4j+i in the high nibble, then [32] float16
 *         scales, then [32] float16 minima }; w = scale * nibble + minimum
 * INT8 and INT4 weights are multiplied by activations in 8 bits with one float32 scale per 64 of a row. */
enum { RAMET_BF16 = 0, RAMET_INT8 = 1, RAMET_INT4 = 2 };

/* Types of source rows for ramet_pack. GGUF's blocks have 32 weights, the K types 256. */
enum {
    RAMET_FROM_F32 = 0,
    RAMET_FROM_F16 = 1,
    RAMET_FROM_BF16 = 2,
    RAMET_FROM_Q8_0 = 3,
    RAMET_FROM_Q4_0 = 4,
    RAMET_FROM_Q4_1 = 5,
    RAMET_FROM_Q4_K = 6,
    RAMET_FROM_Q6_K = 7,
    RAMET_FROM_Q5_0 = 8,
    RAMET_FROM_Q5_K = 9
};

typedef struct RametWeight {
    int64_t kind; /* RAMET_BF16, RAMET_INT8 or RAMET_INT4 */
    int64_t n, k; /* outputs and inputs, before padding */
    const void *data; /* ramet_weight_bytes(kind, n, k) bytes made by ramet_pack */
    const float *bias; /* [n] or null */
} RametWeight;

/* qkv: q, k and v of all heads one after the other, n = (heads + 2 kv_heads) head_dim, k = hidden.
 * o: n = hidden, k = heads head_dim. down: n = hidden, k = intermediate.
 * gate_up: n = 2 * (intermediate rounded up to 64), k = hidden; in each panel 16 rows of gate, then the same 16 of up:
 * gate row r is packed at column (r / 16) * 32 + r % 16, up row r 16 columns later; the rest stays zero. */
typedef struct RametLayer {
    RametWeight qkv, o, gate_up, down;
    const float *norm1, *norm2;   /* [hidden]: before attention, before the MLP */
    const float *q_norm, *k_norm; /* [head_dim] each, or both null */
    int64_t window;               /* positions that a token sees, itself included; 0: all */
} RametLayer;

typedef struct RametModel {
    int64_t layers, hidden, heads, kv_heads, head_dim, intermediate, vocab;
    int64_t context;           /* rows of cos and sin */
    float eps, scale;          /* of RMS norms; of attention scores, usually head_dim ** -0.5 */
    const RametLayer *layer;   /* [layers] */
    RametWeight head;          /* n = vocab, k = hidden */
    const float *norm;         /* [hidden]: before the head */
    const uint16_t *embedding; /* [vocab][hidden] bfloat16; null: rows are read out of head (tied weights) */
    const float *cos, *sin;    /* [context][head_dim / 2], half-split rotary order */
} RametModel;

typedef struct RametCache {
    uint16_t *data;   /* [layers][K, V][kv_heads][capacity][head_dim] bfloat16, finite everywhere (zeroed at first) */
    int64_t capacity; /* slots */
} RametCache;

/* The arrays of ramet.runtime.batch.Batch, with every token id known. `row` lists the new tokens whose logits are
 * wanted. Group g: segments group_segments[group_indptr[g]..] list the same slots at positions group_start[g] ..
 * group_stop[g]-1, multiples of RAMET_BLOCK that lie before every new token of its members; groups that start at 0 are
 * disjoint, others have all members in one group that stops where they start, and follow it. */
typedef struct RametBatch {
    int64_t tokens, segments, rows, groups, indices, members;
    const int32_t *token, *position, *slot;       /* [tokens] */
    const int32_t *qo_indptr, *kv_indptr;         /* [segments + 1], up to tokens and up to indices */
    const int32_t *kv_indices;                    /* [indices] */
    const int32_t *row;                           /* [rows] */
    const int32_t *group_indptr, *group_segments; /* [groups + 1], up to members; [members] */
    const int32_t *group_start, *group_stop;      /* [groups] */
} RametBatch;

/* Draws from rows of logits. Draw i takes row row[i] of the logits, or edited[i], of which allowed[i] (vocab bits, bit b of
 * word w is token 32 w + b; null: all) may be chosen, and writes token[i]: -1 when a nan is among them or the largest of
 * them is not finite. temperature 0, or top_k 1, takes the first of the largest; else the token is the first whose
 * cumulated probability exceeds uniform[i], of those that top_k (0: all), then top_p, then min_p leave. normaliser[i] is
 * the log of the sum of exp of the whole row, nan where that is no number. token or normaliser may be null: not wanted;
 * for normalisers alone the arrays from allowed to uniform may be null. The uniform number of a seed and a position is
 * defined in kernels/noise.py. */
typedef struct RametDraw { /* how a token is drawn; the fields around the first four of 32 bits are the caller's */
    uint64_t seed;
    float temperature, top_p, min_p;
    int32_t top_k;
    float frequency, presence, repetition;
    int32_t logprobs;
} RametDraw;

typedef struct RametDraws {
    int64_t count, vocab, rows;
    const float *logits;                       /* [rows][vocab] */
    const int32_t *row;                        /* [count], of logits */
    const float *const *edited;                /* [count] or null: what to draw from instead of the row, or null */
    const uint32_t *const *allowed;            /* [count] or null */
    const RametDraw *draw;                     /* [count] */
    const int64_t *position;                   /* [count]: where the token will stand */
    const double *uniform;                     /* [count], 0 <= u < 1; null: those of (seed, position) */
    int32_t *token;                            /* [count] */
    double *normaliser;                        /* [count] */
} RametDraws;

typedef struct RametPool RametPool;

RAMET_API int64_t ramet_abi_version(void);
RAMET_API const char *ramet_error(int64_t code); /* a sentence, static */

/* The highest level that this CPU and its operating system can run. */
RAMET_API int64_t ramet_features(void);
RAMET_API const char *ramet_level_name(int64_t level);

/* `threads` threads, the caller of ramet_forward included. Waiting threads block; inside a forward they first spin for
 * some microseconds. One forward at a time per pool. A pool owns the scratch memory of its forwards and the level at
 * which it computes: the highest one until ramet_set_level. */
RAMET_API int64_t ramet_pool_create(int64_t threads, RametPool **pool);
RAMET_API void ramet_pool_destroy(RametPool *pool);
RAMET_API int64_t ramet_set_level(RametPool *pool, int64_t level);
RAMET_API int64_t ramet_level(const RametPool *pool);

/* Compute a batch: writes K and V of its tokens to the cache, and logits [rows][vocab] float32 of the wanted rows. */
RAMET_API int64_t ramet_forward(RametPool *pool, const RametModel *model, const RametCache *cache,
                                const RametBatch *batch, float *logits);
/* RAMET_OK when model and cache are complete and fit together; what ramet_forward checks first. */
RAMET_API int64_t ramet_check(const RametModel *model, const RametCache *cache);

/* Draw tokens, the draws shared out to the pool's threads: each depends on nothing but its own row and parameters. */
RAMET_API int64_t ramet_draw(RametPool *pool, const RametDraws *draws);

/* Bytes of a packed weight, and of one source row of k values; 0 for a kind, type or size that does not exist. */
RAMET_API int64_t ramet_weight_bytes(int64_t kind, int64_t n, int64_t k);
RAMET_API int64_t ramet_row_bytes(int64_t source, int64_t k);
/* Pack `rows` source rows of k values into columns column[0..rows) of a weight of n x k at `packed`, which must have
 * been zero bytes before its first rows were packed. Rows may be packed in any order and number of calls; several
 * weights are packed into one by their columns. pool may be null: then one thread does it. */
RAMET_API int64_t ramet_pack(RametPool *pool, int64_t kind, int64_t n, int64_t k, void *packed, int64_t source,
                             const void *values, int64_t rows, const int32_t *column);
/* The inverse for tests and tools: float32 values [rows][k] of columns of a packed weight. */
RAMET_API int64_t ramet_unpack(int64_t kind, int64_t n, int64_t k, const void *packed, int64_t rows,
                               const int32_t *column, float *values);
/* x [m][k] float32 times a packed weight, plus its bias: y [m][n] float32. For tests and measurements. */
RAMET_API int64_t ramet_linear(RametPool *pool, const RametWeight *weight, int64_t m, const float *x, float *y);

/* Zeroed memory at a multiple of 2 MiB, on huge pages where the system grants them; null when there is none. */
RAMET_API void *ramet_map(int64_t bytes);
RAMET_API void ramet_unmap(void *memory, int64_t bytes);

#ifdef __cplusplus
}
#endif
#endif
