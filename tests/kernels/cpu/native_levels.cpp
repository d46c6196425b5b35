// A program for CPUs that Python does not run on here, such as an emulated one. In: nothing. Out: one line per level of
// instructions, "name linear forward draws bits": the largest error of products against double precision, the largest
// difference of a model's logits from the portable level's (both relative), the share of sampled tokens that differ from
// the portable level's, and a digest of all results' bits. Inputs come from integers alone, so that they are the same
// everywhere: the digest of the portable level is the same on every architecture.
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "numeric.h"
#include "ramet_cpu.h"

namespace {

using Floats = std::vector<float>;
using Ints = std::vector<int32_t>;

// xorshift64* (Marsaglia 2003; Vigna 2016).
struct Random {
    uint64_t state = 0x9e3779b97f4a7c15u;

    int64_t below(int64_t bound) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return static_cast<int64_t>((state * 0x2545f4914f6cdd1du) >> 33) % bound;
    }
    // Multiples of 2^-12 in -2..2: exact sums of four uniforms.
    float value() {
        int64_t total = 0;
        for (int i = 0; i < 4; i++) total += below(4097) - 2048;
        return static_cast<float>(total) / 4096.0f;
    }
    Floats values(int64_t count, float by = 1.0f) {
        Floats out(static_cast<size_t>(count));
        for (float &x : out) x = value() * by;
        return out;
    }
};

void must(int64_t code, const char *what) {
    if (code == RAMET_OK) return;
    std::fprintf(stderr, "%s: %s\n", what, ramet_error(code));
    std::exit(1);
}

// FNV-1a.
struct Digest {
    uint64_t value = 0xcbf29ce484222325u;

    void add(const void *data, size_t bytes) {
        const auto *at = static_cast<const unsigned char *>(data);
        for (size_t i = 0; i < bytes; i++) value = (value ^ at[i]) * 0x100000001b3u;
    }
    template <class T>
    void add(const std::vector<T> &values) {
        add(values.data(), values.size() * sizeof(T));
    }
};

Ints upto(int64_t count) {
    Ints out(static_cast<size_t>(count));
    for (size_t i = 0; i < out.size(); i++) out[i] = static_cast<int32_t>(i);
    return out;
}

struct Matrix {
    std::vector<char> packed;
    RametWeight weight{};

    Matrix(RametPool *pool, Random &random, int64_t kind, int64_t n, int64_t k, const float *bias = nullptr) {
        packed.resize(static_cast<size_t>(ramet_weight_bytes(kind, n, k)));
        const Floats rows = random.values(n * k, 1.0f / std::sqrt(static_cast<float>(k)));
        const Ints columns = upto(n);
        must(ramet_pack(pool, kind, n, k, packed.data(), RAMET_FROM_F32, rows.data(), n, columns.data()), "pack");
        weight = {kind, n, k, packed.data(), bias};
    }
    Floats unpacked() const {
        Floats out(static_cast<size_t>(weight.n * weight.k));
        const Ints columns = upto(weight.n);
        must(ramet_unpack(weight.kind, weight.n, weight.k, packed.data(), weight.n, columns.data(), out.data()), "unpack");
        return out;
    }
};

// What a kernel sees of a row: bfloat16, or 8 bits with a scale per 64 values.
std::vector<double> seen(const float *x, int64_t k, int64_t kind) {
    std::vector<double> out(static_cast<size_t>(k));
    for (int64_t first = 0; first < k; first += 64) {
        const int64_t last = ramet::least(k, first + 64);
        float peak = 0;
        for (int64_t i = first; i < last; i++) peak = ramet::most(peak, std::fabs(x[i]));
        const float by = peak < 1e-30f ? 0.0f : 127.0f / peak, scale = peak < 1e-30f ? 0.0f : peak / 127.0f;
        for (int64_t i = first; i < last; i++) {
            const double eight = static_cast<double>(std::nearbyint(x[i] * by)) * static_cast<double>(scale);
            const double sixteen = static_cast<double>(ramet::from_bf16(ramet::to_bf16(x[i])));
            out[static_cast<size_t>(i)] = kind == RAMET_BF16 ? sixteen : eight;
        }
    }
    return out;
}

// The largest error of a product, relative to the sum of the magnitudes that are added.
double product_error(RametPool *pool, Random &random, int64_t kind, int64_t m, int64_t n, int64_t k, Digest &digest) {
    const Matrix matrix(pool, random, kind, n, k);
    const Floats w = matrix.unpacked(), x = random.values(m * k);
    Floats y(static_cast<size_t>(m * n));
    must(ramet_linear(pool, &matrix.weight, m, x.data(), y.data()), "linear");
    digest.add(y);
    double worst = 0;
    for (int64_t i = 0; i < m; i++) {
        const std::vector<double> row = seen(x.data() + i * k, k, kind);
        for (int64_t j = 0; j < n; j++) {
            double exact = 0, size = 1e-9;
            for (int64_t d = 0; d < k; d++) {
                const double term = row[static_cast<size_t>(d)] * static_cast<double>(w[static_cast<size_t>(j * k + d)]);
                exact += term;
                size += std::fabs(term);
            }
            const double error = std::fabs(static_cast<double>(y[static_cast<size_t>(i * n + j)]) - exact) / size;
            worst = error <= worst ? worst : error;  // a nan is the worst
        }
    }
    return worst;
}

// A model of two layers; `window` of the second.
struct Model {
    static constexpr int64_t kHidden = 80, kHeads = 6, kKv = 2, kDim = 48, kInner = 128, kVocab = 101, kContext = 256;
    std::vector<Matrix> matrices;
    std::vector<Floats> vectors;
    std::vector<RametLayer> layers;
    std::vector<uint16_t> kv;
    RametModel model{};
    RametCache cache{};

    Model(RametPool *pool, Random &random, int64_t kind, bool normed) {
        const auto vector = [&](int64_t n) {
            vectors.push_back(random.values(n));
            return vectors.back().data();
        };
        const auto matrix = [&](int64_t n, int64_t k, bool biased) {
            matrices.emplace_back(pool, random, kind, n, k, biased ? vector(n) : nullptr);
            return matrices.back().weight;
        };
        for (int64_t l = 0; l < 2; l++) {
            RametLayer layer{};
            layer.qkv = matrix((kHeads + 2 * kKv) * kDim, kHidden, !normed);
            layer.o = matrix(kHidden, kHeads * kDim, false);
            layer.gate_up = matrix(2 * kInner, kHidden, false);
            layer.down = matrix(kHidden, kInner, false);
            layer.norm1 = vector(kHidden);
            layer.norm2 = vector(kHidden);
            layer.q_norm = normed ? vector(kDim) : nullptr;
            layer.k_norm = normed ? vector(kDim) : nullptr;
            layer.window = l * 70;
            layers.push_back(layer);
        }
        model.layers = 2, model.hidden = kHidden, model.heads = kHeads, model.kv_heads = kKv, model.head_dim = kDim;
        model.intermediate = kInner, model.vocab = kVocab, model.context = kContext;
        model.eps = 1e-5f, model.scale = 0.14f;
        model.layer = layers.data();
        model.head = matrix(kVocab, kHidden, false);
        model.norm = vector(kHidden);
        model.cos = vector(kContext * kDim / 2);
        model.sin = vector(kContext * kDim / 2);
        cache.capacity = kContext;
        kv.assign(static_cast<size_t>(2 * 2 * kKv * kContext * kDim), 0);
        cache.data = kv.data();
    }

    // Tokens first..last-1 of one sequence; every third one's logits.
    void forward(RametPool *pool, Random &random, int64_t first, int64_t last, Floats &out) {
        Ints token, position, row, slots = upto(last);
        for (int64_t i = 0; i < last; i++) slots[static_cast<size_t>(i)] = static_cast<int32_t>((i * 37 + 11) % kContext);
        for (int64_t i = first; i < last; i++) {
            token.push_back(static_cast<int32_t>(random.below(kVocab)));
            position.push_back(static_cast<int32_t>(i));
            if (i % 3 == 0 || i + 1 == last) row.push_back(static_cast<int32_t>(i - first));
        }
        const int32_t qo[] = {0, static_cast<int32_t>(last - first)}, kv_ends[] = {0, static_cast<int32_t>(last)};
        const int32_t none[] = {0};
        const int64_t rows = static_cast<int64_t>(row.size());
        const RametBatch batch{last - first,  1,  rows,    0,            last,       0,    token.data(), position.data(),
                               slots.data() + first, qo, kv_ends, slots.data(), row.data(), none, none,         none, none};
        const size_t at = out.size();
        out.resize(at + static_cast<size_t>(rows * kVocab));
        must(ramet_forward(pool, &model, &cache, &batch, out.data() + at), "forward");
    }
};

Ints drawn(RametPool *pool, Random &random, int64_t count, int64_t vocab) {
    const Floats logits = random.values(count * vocab, 6.0f);
    std::vector<uint32_t> bits(static_cast<size_t>((vocab + 31) / 32), 0x6b5a5a5bu);
    std::vector<RametDraw> draw;
    std::vector<const uint32_t *> allowed;
    Ints row = upto(count), token(static_cast<size_t>(count), -2);
    std::vector<int64_t> position;
    std::vector<double> normaliser(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; i++) {
        position.push_back(i * 977);
        allowed.push_back(i % 3 ? nullptr : bits.data());
        RametDraw how{};
        how.seed = static_cast<uint64_t>(random.below(1 << 20)) << 40;
        how.temperature = static_cast<float>(random.below(5)) / 4.0f;
        how.top_p = i % 2 ? 1.0f : 0.9f;
        how.min_p = i % 5 ? 0.0f : 0.05f;
        how.top_k = i % 4 ? 0 : static_cast<int32_t>(1 + random.below(50));
        draw.push_back(how);
    }
    const RametDraws draws{count,       vocab,         count,          logits.data(), row.data(), nullptr, allowed.data(),
                           draw.data(), position.data(), nullptr, token.data(), normaliser.data()};
    must(ramet_draw(pool, &draws), "draw");
    return token;
}

struct Results {
    double linear = 0;
    Floats logits;
    Ints tokens;
    Digest digest;
};

Results results_of(int64_t level) {
    RametPool *pool = nullptr;
    must(ramet_pool_create(2, &pool), "pool");
    must(ramet_set_level(pool, level), "level");
    Random random;
    Results out;
    for (int64_t kind = RAMET_BF16; kind <= RAMET_INT4; kind++) {
        for (const int64_t m : {1, 2, 7})
            for (const int64_t k : {16, 64, 208})
                out.linear = ramet::most(out.linear, product_error(pool, random, kind, m, 45, k, out.digest));
        Model model(pool, random, kind, kind != RAMET_INT8);
        model.forward(pool, random, 0, 67, out.logits);
        for (int64_t i = 67; i < 70; i++) model.forward(pool, random, i, i + 1, out.logits);
        model.forward(pool, random, 70, 140, out.logits);
    }
    out.tokens = drawn(pool, random, 300, 1000);
    out.digest.add(out.logits);
    out.digest.add(out.tokens);
    ramet_pool_destroy(pool);
    return out;
}

// The largest difference, relative to the root of the mean square.
double difference(const Floats &found, const Floats &wanted) {
    double squares = 0, worst = 0;
    for (size_t i = 0; i < found.size(); i++) {
        const double apart = std::fabs(static_cast<double>(found[i]) - static_cast<double>(wanted[i]));
        squares += static_cast<double>(wanted[i]) * static_cast<double>(wanted[i]);
        worst = apart <= worst ? worst : apart;
    }
    return worst / std::sqrt(squares / static_cast<double>(found.size()));
}

double share_apart(const Ints &found, const Ints &wanted) {
    size_t apart = 0;
    for (size_t i = 0; i < found.size(); i++) apart += found[i] != wanted[i];
    return static_cast<double>(apart) / static_cast<double>(found.size());
}

}  // namespace

int main() {
    const Results portable = results_of(RAMET_PORTABLE);
    for (int64_t level = RAMET_PORTABLE; level <= ramet_features(); level++) {
        const Results found = level == RAMET_PORTABLE ? portable : results_of(level);
        std::printf("%s %.3e %.3e %.3e %016" PRIx64 "\n", ramet_level_name(level), found.linear,
                    difference(found.logits, portable.logits), share_apart(found.tokens, portable.tokens),
                    found.digest.value);
    }
    return 0;
}
