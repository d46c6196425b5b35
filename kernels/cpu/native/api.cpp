// The functions of ramet_cpu.h: they check, lay out memory, pick the level, and turn exceptions into codes.
#include <atomic>
#include <new>
#include <system_error>
#include <vector>

#include "blocks.h"
#include "check.h"
#include "detect.h"
#include "memory.h"
#include "numeric.h"
#include "pack.h"
#include "plan.h"
#include "pool.h"
#include "ramet_cpu.h"
#include "step.h"
#include "unpack.h"

struct RametPool {
    explicit RametPool(int threads) : team(threads) {}

    ramet::Team team;
    ramet::Arena arena;
    ramet::Plan plan;
    const ramet::Kernels *kernels = nullptr;
    int64_t level = RAMET_PORTABLE;
    std::atomic<bool> busy{false};
};

namespace ramet {

int64_t acts_bytes(int64_t kind, int64_t rows, int64_t k) {
    const int64_t padded = round_up(k, kGroup);
    if (kind == RAMET_BF16) return round_up(rows * padded * 2, 64);
    return round_up(rows * padded, 64) + round_up(rows * padded / kGroup * 4, 64) + rows * padded / kHalf * 4;
}

Acts acts_at(void *memory, int64_t kind, int64_t rows, int64_t k) {
    const int64_t padded = round_up(k, kGroup);
    char *at = static_cast<char *>(memory);
    Acts acts{kind != RAMET_BF16, at, nullptr, nullptr, padded};
    if (!acts.quantised) return acts;
    at += round_up(rows * padded, 64);
    acts.scale = reinterpret_cast<float *>(at);
    acts.sum = reinterpret_cast<int32_t *>(at + round_up(rows * padded / kGroup * 4, 64));
    return acts;
}

// The larger of what attention (attend.h, work_at) and the MLP need.
int64_t thread_bytes(const RametModel &model) {
    const int64_t dim = model.head_dim;
    const int64_t block = 2 * (dim * kBlock * 2), rows = kMostRows * (kBlock * 6 + dim * 4 + 24);
    return round_up(most(block + rows + 1024, kRowChunk * kGroup * 4), 64);
}

// What draw.h lays out in scratch_at.
int64_t draw_bytes(int64_t vocab) {
    const int64_t padded = round_up(vocab, 64), spans = padded / 64;
    return round_up(padded * (2 * 8 + 4) + 4096 * 8 + round_up(spans, 8) * 8 + spans * 4, 64);
}

namespace {

const Kernels *kernels_of(int64_t level) {
    switch (level) {
        case RAMET_PORTABLE: return &kernels_portable;
#if defined(__x86_64__)
        case RAMET_AVX2: return &kernels_avx2;
        case RAMET_AVX512: return &kernels_avx512;
        case RAMET_AVX512_VNNI: return &kernels_avx512_vnni;
        case RAMET_AVX512_BF16: return &kernels_avx512_bf16;
        case RAMET_AMX: return &kernels_amx;
#elif defined(__aarch64__)
        case RAMET_NEON: return &kernels_neon;
        case RAMET_NEON_DOT: return &kernels_neon_dot;
#endif
        default: return nullptr;
    }
}

// One forward, packing or product at a time.
class Turn {
   public:
    explicit Turn(RametPool &pool) : pool_(pool), mine_(!pool.busy.exchange(true, std::memory_order_acquire)) {}
    ~Turn() {
        if (mine_) pool_.busy.store(false, std::memory_order_release);
    }
    Turn(const Turn &) = delete;
    Turn &operator=(const Turn &) = delete;
    bool mine() const { return mine_; }

   private:
    RametPool &pool_;
    const bool mine_;
};

template <class Body>
int64_t guarded(Body body) {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return RAMET_MEMORY;
    } catch (const std::system_error &) {
        return RAMET_THREADS;
    }
}

// The largest of the layers' needs, whatever their kinds are.
int64_t widest(const RametModel &model, const RametWeight RametLayer::*weight, int64_t tokens) {
    int64_t bytes = 0;
    for (int64_t l = 0; l < model.layers; l++) {
        const RametWeight &w = model.layer[l].*weight;
        bytes = most(bytes, acts_bytes(w.kind, tokens, w.k));
    }
    return bytes;
}

// Memory of a step; sizes first, so that one reservation serves all.
bool lay_out(Step &step, Arena &arena) {
    const RametModel &m = *step.model;
    const int64_t tokens = step.batch->tokens, mixed = m.heads * m.head_dim;
    step.stride = round_up(m.hidden, kGroup);
    step.thread_bytes = thread_bytes(m);
    const int64_t inputs = most(widest(m, &RametLayer::qkv, tokens), widest(m, &RametLayer::gate_up, tokens));
    const int64_t sizes[] = {tokens * step.stride * 4,
                             tokens * round_up(m.layer[0].qkv.n, kPanel) * 4,
                             tokens * mixed * 2,
                             tokens * round_up(mixed, kGroup) * 4,
                             inputs,
                             widest(m, &RametLayer::o, tokens),
                             widest(m, &RametLayer::down, tokens),
                             acts_bytes(m.head.kind, step.batch->rows, m.head.k),
                             step.thread_bytes * step.team->threads()};
    int64_t total = 0;
    for (const int64_t size : sizes) total += round_up(size, 64);
    if (!arena.reserve(most<int64_t>(total, 1))) return false;
    step.residual = reinterpret_cast<float *>(arena.take(sizes[0]));
    step.qkv = reinterpret_cast<float *>(arena.take(sizes[1]));
    step.query = reinterpret_cast<uint16_t *>(arena.take(sizes[2]));
    step.mixed = reinterpret_cast<float *>(arena.take(sizes[3]));
    step.inputs = arena.take(sizes[4]);
    step.mixes = arena.take(sizes[5]);
    step.inner = arena.take(sizes[6]);
    step.wanted = arena.take(sizes[7]);
    step.thread = arena.take(sizes[8]);
    return true;
}

int64_t compute(RametPool &pool, Step &step) {
    pool.plan.make(*step.model, *step.batch, pool.team.threads());
    step.attention = pool.plan.attention();
    if (!lay_out(step, pool.arena)) return RAMET_MEMORY;
    pool.kernels->forward(step);
    return RAMET_OK;
}

bool good_columns(const int32_t *column, int64_t rows, int64_t n) {
    for (int64_t i = 0; i < rows; i++)
        if (column[i] < 0 || column[i] >= n) return false;
    return true;
}

struct Packer {
    const Packing *packing;
    Team *team;
    int64_t rows, unit;
    float *scratch;  // [threads][k rounded up]
};

// Threads take whole runs of rows: columns beside each other share cache lines.
void pack_rows(void *context, int thread) {
    const Packer &p = *static_cast<const Packer *>(context);
    float *row = p.scratch + thread * round_up(p.packing->k, kGroup);
    for (int64_t first; (first = p.team->claim(p.unit)) < p.rows;)
        for (int64_t i = first; i < least(first + p.unit, p.rows); i++) pack_row(*p.packing, i, row);
}

int64_t pack_all(RametPool *pool, const Packing &packing, int64_t rows) {
    const int threads = pool ? pool->team.threads() : 1;
    std::vector<float> scratch(static_cast<size_t>(threads * round_up(packing.k, kGroup)));
    if (!pool) {
        for (int64_t i = 0; i < rows; i++) pack_row(packing, i, scratch.data());
        return RAMET_OK;
    }
    Packer packer{&packing, &pool->team, rows, kPanel, scratch.data()};
    pool->team.run(pack_rows, &packer);
    return RAMET_OK;
}

}  // namespace
}  // namespace ramet

using namespace ramet;

extern "C" {

int64_t ramet_abi_version(void) { return RAMET_ABI; }

const char *ramet_error(int64_t code) {
    switch (code) {
        case RAMET_OK: return "no error";
        case RAMET_NULL: return "a pointer that must be given is null";
        case RAMET_SHAPE: return "a size is out of range, or sizes do not fit together";
        case RAMET_KIND: return "an unknown kind of weight, source type or level";
        case RAMET_BATCH: return "an index or an offset of the batch is out of range";
        case RAMET_MEMORY: return "the system has no memory for this";
        case RAMET_FEATURE: return "this CPU lacks the instructions of the level";
        case RAMET_THREADS: return "the number of threads is outside 1..256, or the system refuses to start them";
        case RAMET_BUSY: return "the pool is computing something else";
        default: return "an unknown error code";
    }
}

int64_t ramet_features(void) { return best_level(); }

const char *ramet_level_name(int64_t level) {
#if defined(__aarch64__)
    static const char *const names[RAMET_LEVELS] = {"portable", "neon", "neon_dot"};
#else
    static const char *const names[RAMET_LEVELS] = {"portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16",
                                                    "amx"};
#endif
    return level >= 0 && level < RAMET_LEVELS ? names[level] : "unknown";
}

int64_t ramet_pool_create(int64_t threads, RametPool **pool) {
    if (!pool) return RAMET_NULL;
    if (threads < 1 || threads > RAMET_MOST_THREADS) return RAMET_THREADS;
    return guarded([&]() -> int64_t {
        const int64_t level = best_level();  // before there are threads
        *pool = new RametPool(static_cast<int>(threads));
        return ramet_set_level(*pool, level);
    });
}

void ramet_pool_destroy(RametPool *pool) { delete pool; }

int64_t ramet_set_level(RametPool *pool, int64_t level) {
    if (!pool) return RAMET_NULL;
    if (level < 0 || level >= RAMET_LEVELS) return RAMET_KIND;
    const Kernels *kernels = kernels_of(level);
    if (!kernels || level > best_level()) return RAMET_FEATURE;
    const Turn turn(*pool);
    if (!turn.mine()) return RAMET_BUSY;
    pool->kernels = kernels;
    pool->level = level;
    return RAMET_OK;
}

int64_t ramet_level(const RametPool *pool) { return pool ? pool->level : -1; }

int64_t ramet_check(const RametModel *model, const RametCache *cache) {
    if (!model || !cache) return RAMET_NULL;
    return check_model(*model, *cache);
}

int64_t ramet_forward(RametPool *pool, const RametModel *model, const RametCache *cache, const RametBatch *batch,
                      float *logits) {
    if (!pool || !batch) return RAMET_NULL;
    const Turn turn(*pool);
    if (!turn.mine()) return RAMET_BUSY;
    return guarded([&]() -> int64_t {
        if (const int64_t code = ramet_check(model, cache)) return code;
        if (const int64_t code = check_batch(*model, *cache, *batch)) return code;
        if (batch->rows && !logits) return RAMET_NULL;
        if (!batch->tokens) return RAMET_OK;
        Step step{};
        step.model = model;
        step.cache = cache;
        step.batch = batch;
        step.logits = logits;
        step.team = &pool->team;
        return compute(*pool, step);
    });
}

int64_t ramet_weight_bytes(int64_t kind, int64_t n, int64_t k) {
    if (kind < RAMET_BF16 || kind > RAMET_INT4 || n < 1 || k < 1 || n > INT32_MAX || k > INT32_MAX / 2) return 0;
    return round_up(n, kPanel) / kPanel * packed_panel_bytes(kind, k);
}

int64_t ramet_row_bytes(int64_t source, int64_t k) { return source_row_bytes(source, k); }

int64_t ramet_pack(RametPool *pool, int64_t kind, int64_t n, int64_t k, void *packed, int64_t source,
                   const void *values, int64_t rows, const int32_t *column) {
    if (!packed || !values || !column) return RAMET_NULL;
    if (kind < RAMET_BF16 || kind > RAMET_INT4 || source < 0 || source > RAMET_FROM_Q5_K) return RAMET_KIND;
    const int64_t row_bytes = source_row_bytes(source, k);
    if (!row_bytes || !ramet_weight_bytes(kind, n, k) || rows < 0 || !good_columns(column, rows, n)) return RAMET_SHAPE;
    const char *from = static_cast<const char *>(values);
    const Packing packing{kind, k, source, from, row_bytes, column, static_cast<char *>(packed)};
    if (!pool) return guarded([&] { return pack_all(nullptr, packing, rows); });
    const Turn turn(*pool);
    return turn.mine() ? guarded([&] { return pack_all(pool, packing, rows); }) : int64_t{RAMET_BUSY};
}

int64_t ramet_unpack(int64_t kind, int64_t n, int64_t k, const void *packed, int64_t rows, const int32_t *column,
                     float *values) {
    if (!packed || !values || !column) return RAMET_NULL;
    if (kind < RAMET_BF16 || kind > RAMET_INT4) return RAMET_KIND;
    if (!ramet_weight_bytes(kind, n, k) || rows < 0 || !good_columns(column, rows, n)) return RAMET_SHAPE;
    const int64_t bytes = packed_panel_bytes(kind, k);
    for (int64_t i = 0; i < rows; i++) {
        const char *panel = static_cast<const char *>(packed) + column[i] / kPanel * bytes;
        unpack_column(kind, panel, column[i] % kPanel, k, values + i * k);
    }
    return RAMET_OK;
}

int64_t ramet_linear(RametPool *pool, const RametWeight *weight, int64_t m, const float *x, float *y) {
    if (!pool || !weight || !x || !y) return RAMET_NULL;
    if (const int64_t code = check_weight(*weight, weight->n, weight->k)) return code;
    if (!ramet_weight_bytes(weight->kind, weight->n, weight->k)) return RAMET_SHAPE;
    if (weight->k % 16 || m < 1 || m > INT32_MAX) return RAMET_SHAPE;
    const Turn turn(*pool);
    if (!turn.mine()) return RAMET_BUSY;
    return guarded([&]() -> int64_t {
        const int64_t bytes = acts_bytes(weight->kind, m, weight->k);
        if (!pool->arena.reserve(round_up(bytes, 64))) return RAMET_MEMORY;
        pool->kernels->linear(pool->team, *weight, m, x, y, pool->arena.take(bytes));
        return RAMET_OK;
    });
}

int64_t ramet_draw(RametPool *pool, const RametDraws *draws) {
    if (!pool || !draws) return RAMET_NULL;
    if (const int64_t code = check_draws(*draws)) return code;
    const Turn turn(*pool);
    if (!turn.mine()) return RAMET_BUSY;
    return guarded([&]() -> int64_t {
        const int64_t bytes = draw_bytes(draws->vocab), threads = pool->team.threads();
        if (!pool->arena.reserve(threads * bytes)) return RAMET_MEMORY;
        if (draws->count) pool->kernels->draw(pool->team, *draws, pool->arena.take(threads * bytes), bytes);
        return RAMET_OK;
    });
}

void *ramet_map(int64_t bytes) { return map_zeroed(bytes); }
void ramet_unmap(void *memory, int64_t bytes) { unmap(memory, bytes); }

}  // extern "C"
