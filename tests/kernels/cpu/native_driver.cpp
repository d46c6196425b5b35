// A program for sanitizer builds: packs random weights of every kind and computes random ragged batches, with groups,
// at every level that the machine has. In: nothing. Out: "ok", the highest level and status 0, or what the sanitizer
// found.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "ramet_cpu.h"

namespace {

std::mt19937 generator(7);

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

// Exactly as long as needed, on the heap: one byte beyond is found.
std::vector<float> normal(int64_t count) {
    std::normal_distribution<float> draw;
    std::vector<float> values(static_cast<size_t>(count));
    for (float &value : values) value = draw(generator);
    return values;
}

void must(int64_t code, const char *what) {
    if (code == RAMET_OK) return;
    std::fprintf(stderr, "%s: %s\n", what, ramet_error(code));
    std::exit(1);
}

struct Weights {
    std::vector<std::vector<char>> packed;
    std::vector<std::vector<float>> vectors;

    RametWeight matrix(RametPool *pool, int64_t kind, int64_t n, int64_t k, bool biased) {
        packed.emplace_back(static_cast<size_t>(ramet_weight_bytes(kind, n, k)));
        std::vector<float> rows = normal(n * k);
        for (float &value : rows) value /= std::sqrt(static_cast<float>(k));
        std::vector<int32_t> columns(static_cast<size_t>(n));
        for (int64_t i = 0; i < n; i++) columns[static_cast<size_t>(i)] = static_cast<int32_t>(n - 1 - i);
        char *to = packed.back().data();
        must(ramet_pack(pool, kind, n, k, to, RAMET_FROM_F32, rows.data(), n, columns.data()), "pack");
        std::vector<float> back(rows.size());
        must(ramet_unpack(kind, n, k, packed.back().data(), n, columns.data(), back.data()), "unpack");
        return {kind, n, k, packed.back().data(), biased ? vector(n) : nullptr};
    }

    const float *vector(int64_t n) {
        vectors.push_back(normal(n));
        return vectors.back().data();
    }
};

struct Case {
    Weights weights;
    std::vector<RametLayer> layers;
    std::vector<uint16_t> embedding, kv;
    RametModel model{};
    RametCache cache{};
};

std::unique_ptr<Case> random_case(RametPool *pool) {
    auto made = std::make_unique<Case>();
    Case &c = *made;
    RametModel &m = c.model;
    const int64_t kind = pick(RAMET_BF16, RAMET_INT4), group = pick(1, 5);
    m.layers = 2;
    m.hidden = 16 * pick(1, 8);
    m.kv_heads = pick(1, 2);
    m.heads = m.kv_heads * group;
    m.head_dim = 16 * pick(1, 6);
    m.intermediate = pick(1, 150);
    m.vocab = pick(2, 90);
    m.context = 300;
    m.eps = 1e-5f;
    m.scale = 0.2f;
    const int64_t mixed = m.heads * m.head_dim, inner = (m.intermediate + 63) / 64 * 64;
    const bool biased = pick(0, 1) == 1, normed = pick(0, 1) == 1;
    for (int64_t l = 0; l < m.layers; l++) {
        RametLayer layer{};
        layer.qkv = c.weights.matrix(pool, kind, mixed + 2 * m.kv_heads * m.head_dim, m.hidden, biased);
        layer.o = c.weights.matrix(pool, kind, m.hidden, mixed, biased);
        layer.gate_up = c.weights.matrix(pool, kind, 2 * inner, m.hidden, biased);
        layer.down = c.weights.matrix(pool, kind, m.hidden, m.intermediate, biased);
        layer.norm1 = c.weights.vector(m.hidden);
        layer.norm2 = c.weights.vector(m.hidden);
        layer.q_norm = normed ? c.weights.vector(m.head_dim) : nullptr;
        layer.k_norm = normed ? c.weights.vector(m.head_dim) : nullptr;
        layer.window = pick(0, 1) * pick(1, 100);
        c.layers.push_back(layer);
    }
    m.layer = c.layers.data();
    m.head = c.weights.matrix(pool, pick(RAMET_BF16, RAMET_INT4), m.vocab, m.hidden, false);
    m.norm = c.weights.vector(m.hidden);
    if (pick(0, 1)) c.embedding.assign(static_cast<size_t>(m.vocab * m.hidden), 0x3f80);
    m.embedding = c.embedding.empty() ? nullptr : c.embedding.data();
    m.cos = c.weights.vector(m.context * m.head_dim / 2);
    m.sin = c.weights.vector(m.context * m.head_dim / 2);
    c.cache.capacity = 600;
    c.kv.assign(static_cast<size_t>(m.layers * 2 * m.kv_heads * c.cache.capacity * m.head_dim), 0);
    c.cache.data = c.kv.data();
    return made;
}

// Some segments over one shared prefix of `blocks` blocks, and one alone.
void random_batch(RametPool *pool, const Case &c) {
    const int64_t blocks = pick(0, 2), members = pick(1, 5), shared = blocks * RAMET_BLOCK;
    std::vector<int32_t> token, position, slot, qo{0}, kv{0}, indices, row, segments, offsets{0}, start, stop;
    int32_t next = static_cast<int32_t>(shared);
    for (int64_t s = 0; s <= members; s++) {
        const int64_t history = s < members ? shared : 0, own = pick(1, 66), fresh = pick(1, own);
        for (int64_t i = 0; i < history; i++) indices.push_back(static_cast<int32_t>(i));
        for (int64_t i = 0; i < own; i++) {
            if (i >= own - fresh) {
                token.push_back(static_cast<int32_t>(pick(0, c.model.vocab - 1)));
                position.push_back(static_cast<int32_t>(history + i));
                slot.push_back(next);
            }
            indices.push_back(next++);
        }
        qo.push_back(static_cast<int32_t>(token.size()));
        kv.push_back(static_cast<int32_t>(indices.size()));
        if (s < members) segments.push_back(static_cast<int32_t>(s));
    }
    for (size_t i = 0; i < token.size(); i += 3) row.push_back(static_cast<int32_t>(i));
    const bool grouped = shared > 0 && members > 1;
    if (!grouped) segments.clear();
    if (grouped) {
        offsets.push_back(static_cast<int32_t>(members));
        start.push_back(0);
        stop.push_back(static_cast<int32_t>(shared));
    }
    const auto size = [](const std::vector<int32_t> &values) { return static_cast<int64_t>(values.size()); };
    const RametBatch batch{size(token), members + 1, size(row), size(start), size(indices), size(segments),
                           token.data(), position.data(), slot.data(), qo.data(), kv.data(), indices.data(), row.data(),
                           offsets.data(), segments.data(), start.data(), stop.data()};
    std::vector<float> logits(row.size() * static_cast<size_t>(c.model.vocab));
    must(ramet_forward(pool, &c.model, &c.cache, &batch, logits.data()), "forward");
    for (const float value : logits)
        if (!std::isfinite(value)) must(-1, "logits that are not finite");
}

void random_draws(RametPool *pool) {
    const int64_t count = pick(1, 9), vocab = pick(1, 700);
    std::vector<float> logits(static_cast<size_t>(count * vocab));
    for (float &x : logits) x = static_cast<float>(pick(-300, 300)) / static_cast<float>(pick(1, 50));
    std::vector<uint32_t> bits(static_cast<size_t>((vocab + 31) / 32), 0x5a5a5a5bu);
    std::vector<RametDraw> draw;
    std::vector<int64_t> position;
    std::vector<const float *> edited;
    std::vector<const uint32_t *> allowed;
    std::vector<int32_t> row, token(static_cast<size_t>(count), -2);
    std::vector<double> uniform, normaliser(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; i++) {
        row.push_back(static_cast<int32_t>(pick(0, count - 1)));
        edited.push_back(pick(0, 1) ? logits.data() + i * vocab : nullptr);
        allowed.push_back(pick(0, 1) ? bits.data() : nullptr);
        position.push_back(pick(0, 1 << 20));
        RametDraw how{};
        how.seed = static_cast<uint64_t>(pick(0, 1 << 30)) * 0x9E3779B97F4A7C15u;
        how.temperature = static_cast<float>(pick(0, 20)) / 10.0f;
        how.top_p = static_cast<float>(pick(0, 4)) / 4.0f;
        how.min_p = static_cast<float>(pick(0, 3)) / 10.0f;
        how.top_k = static_cast<int32_t>(pick(0, 1) * pick(1, 800));
        draw.push_back(how);
        uniform.push_back(static_cast<double>(pick(0, 999)) / 1000.0);
    }
    const RametDraws draws{count,       vocab,         count,          logits.data(), row.data(), edited.data(), allowed.data(),
                           draw.data(), position.data(), pick(0, 1) ? uniform.data() : nullptr, token.data(), normaliser.data()};
    must(ramet_draw(pool, &draws), "draw");
    for (const int32_t id : token)
        if (id < 0 || id >= vocab) must(-1, "a token that does not exist");
}

void random_blocks(RametPool *pool) {
    for (int64_t source = RAMET_FROM_F32; source <= RAMET_FROM_Q5_K; source++) {
        for (int64_t kind = RAMET_BF16; kind <= RAMET_INT4; kind++) {
            const int64_t k = 256, rows = 5;
            std::vector<char> values(static_cast<size_t>(ramet_row_bytes(source, k) * rows), 0x11);
            std::vector<char> packed(static_cast<size_t>(ramet_weight_bytes(kind, rows, k)));
            const int32_t columns[] = {4, 2, 0, 1, 3};
            must(ramet_pack(pool, kind, rows, k, packed.data(), source, values.data(), rows, columns), "pack blocks");
        }
    }
}

}  // namespace

// The only argument, if any, is how many random models each level and each number of threads computes; 6 without one.
int main(int count, char **arguments) {
    const int cases = count > 1 ? std::atoi(arguments[1]) : 6;
    for (int64_t level = 0; level <= ramet_features(); level++) {
        for (const int64_t threads : {1, 3}) {
            RametPool *pool = nullptr;
            must(ramet_pool_create(threads, &pool), "pool");
            must(ramet_set_level(pool, level), "level");
            random_blocks(pool);
            for (int i = 0; i < cases; i++) {
                const auto c = random_case(pool);
                for (int j = 0; j < 4; j++) random_batch(pool, *c);
                for (int j = 0; j < 20; j++) random_draws(pool);
            }
            ramet_pool_destroy(pool);
        }
    }
    std::printf("ok %s\n", ramet_level_name(ramet_features()));
    return 0;
}
