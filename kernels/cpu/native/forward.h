// The whole forward of one level. In: a Step. Out: the cache holds K and V of the batch, `logits` those of its rows.
// Every phase is a set of independent pieces that threads claim; a barrier ends it. Needs the other level headers.
#pragma once

#include "pool.h"
#include "step.h"

namespace ramet {
namespace {

constexpr int64_t kLittle = 8192;       // values; less is done by one thread while the others are at the barrier anyway
constexpr int64_t kClaimBytes = 32768;  // of weights that a thread claims at a time

template <class Body>
inline void each(Team &team, int64_t count, int64_t unit, Body body) {
    for (int64_t first; (first = team.claim(unit)) < count;)
        for (int64_t i = first; i < least(first + unit, count); i++) body(i);
}

// The same of indices that lie beside each other in memory.
template <class Body>
inline void each_near(Team &team, int thread, int64_t count, int64_t unit, Body body) {
    for (Indices some; (some = team.claim_near(thread, count, unit)).first < some.last;)
        for (int64_t i = some.first; i < some.last; i++) body(i);
}

template <class Last>
inline void meet(Team &team, Last last) {
    team.meet([](void *context) { (*static_cast<Last *>(context))(); }, &last);
}

inline void meet(Team &team) { team.meet(nullptr, nullptr); }

// Ends a phase and does body(row) for every row, `width` values each.
template <class Body>
inline void then_rows(Team &team, int64_t rows, int64_t width, Body body) {
    if (rows * width <= kLittle) {
        return meet(team, [&] {
            for (int64_t row = 0; row < rows; row++) body(row);
        });
    }
    meet(team);
    each(team, rows, most<int64_t>(1, rows / (8 * team.threads())), body);
    meet(team);
}

// use(panel, row, outputs) for all rows of activations times a weight.
template <class Use>
inline void linear(Team &team, int thread, const RametWeight &weight, const Acts &acts, int64_t rows, Use use) {
    const int64_t count = panels(weight), fair = most<int64_t>(1, count / (4 * team.threads()));
    const int64_t unit = least(fair, most<int64_t>(1, kClaimBytes / panel_bytes(weight.kind, acts.k)));
    const TileRegisters tiles(weight.kind, rows);
    each_near(team, thread, count, unit, [&](int64_t panel) {
        multiply(weight, panel, acts, 0, rows, [&](int64_t row, const float *out) { use(panel, row, out); });
    });
}

// One thread's view of a forward.
class Forward {
   public:
    Forward(const Step &step, int thread)
        : s_(step),
          model_(*step.model),
          batch_(*step.batch),
          team_(*step.team),
          thread_(thread),
          memory_(step.thread + thread * step.thread_bytes),
          tokens_(batch_.tokens) {}

    void run() {
        each(team_, tokens_, 1, [&](int64_t t) { embed(model_, batch_.token[t], s_.stride, residual(t)); });
        norm_rows(model_.layer[0].norm1, inputs(model_.layer[0].qkv));
        for (int64_t l = 0; l < model_.layers; l++) {
            attention(l);
            const RametLayer &layer = model_.layer[l];
            norm_rows(layer.norm2, inputs(layer.gate_up));
            gated(layer);
            meet(team_);
            add_to_residual(layer.down, inner(layer.down));
            if (l + 1 < model_.layers) norm_rows(model_.layer[l + 1].norm1, inputs(model_.layer[l + 1].qkv));
        }
        if (batch_.rows) logits();
    }

   private:
    float *residual(int64_t token) const { return s_.residual + token * s_.stride; }
    Acts inputs(const RametWeight &w) const { return acts_at(s_.inputs, w.kind, tokens_, w.k); }
    Acts inner(const RametWeight &w) const { return acts_at(s_.inner, w.kind, tokens_, w.k); }

    // Ends a phase that wrote the residual stream.
    void norm_rows(const float *norm, const Acts &acts) {
        then_rows(team_, tokens_, s_.stride,
                  [&](int64_t t) { put_norm(acts, t, residual(t), model_.hidden, model_.eps, norm); });
    }

    void add_to_residual(const RametWeight &weight, const Acts &acts) {
        linear(team_, thread_, weight, acts, tokens_, [&](int64_t panel, int64_t row, const float *out) {
            float *x = residual(row) + panel * kPanel;
            store(x, add(load(x), load(out)));
            store(x + 16, add(load(x + 16), load(out + 16)));
        });
    }

    void attention(int64_t l) {
        const RametLayer &layer = model_.layer[l];
        const int64_t width = round_up(layer.qkv.n, kPanel), mixed = model_.heads * model_.head_dim;
        const Acts from = inputs(layer.qkv);
        linear(team_, thread_, layer.qkv, from, tokens_, [&](int64_t panel, int64_t row, const float *out) {
            std::memcpy(s_.qkv + row * width + panel * kPanel, out, kPanel * sizeof *out);
        });
        then_rows(team_, tokens_, width, [&](int64_t t) { store_token(l, t, s_.qkv + t * width); });
        const int64_t count = s_.attention.count;
        const Work work = work_at(memory_, model_.head_dim);
        each(team_, count * model_.kv_heads, 1, [&](int64_t i) {
            attend(Head{&s_, s_.attention.items + i % count, rows_of(l, 0, i / count), rows_of(l, 1, i / count),
                        i / count, layer.window},
                   work);
        });
        const Acts acts = acts_at(s_.mixes, layer.o.kind, tokens_, layer.o.k);
        then_rows(team_, tokens_, mixed,
                  [&](int64_t t) { put_row(acts, t, s_.mixed + t * round_up(mixed, kGroup), mixed, 1.0f, nullptr); });
        add_to_residual(layer.o, acts);
    }

    // Keys (part 0) or values (part 1) of one KV head: [capacity][head_dim].
    uint16_t *rows_of(int64_t layer, int64_t part, int64_t head) const {
        const int64_t plane = (layer * 2 + part) * model_.kv_heads + head;
        return s_.cache->data + plane * s_.cache->capacity * model_.head_dim;
    }

    // Rotates q and k of one token; k and v go to the cache, q to s_.query with the scale of exp2 in it.
    void store_token(int64_t l, int64_t t, float *qkv) {
        const RametLayer &layer = model_.layer[l];
        const int64_t dim = model_.head_dim, position = batch_.position[t], slot = batch_.slot[t];
        const float scale = model_.scale * 1.44269504f;
        for (int64_t h = 0; h < model_.heads; h++)
            rotate(qkv + h * dim, model_, layer.q_norm, position, scale, s_.query + (t * model_.heads + h) * dim);
        float *k = qkv + model_.heads * dim, *v = k + model_.kv_heads * dim;
        for (int64_t h = 0; h < model_.kv_heads; h++) {
            rotate(k + h * dim, model_, layer.k_norm, position, 1.0f, rows_of(l, 0, h) + slot * dim);
            for (int64_t d = 0; d < dim; d += 16)
                store_bf16(rows_of(l, 1, h) + slot * dim + d, load(v + h * dim + d));
        }
    }

    // silu(gate) * up, 64 of them at a time: four panels, so that the thread can quantise what it made.
    void gated(const RametLayer &layer) {
        const Acts from = inputs(layer.gate_up), to = inner(layer.down);
        float *part = reinterpret_cast<float *>(memory_);
        const TileRegisters tiles(layer.gate_up.kind, tokens_);
        each_near(team_, thread_, layer.gate_up.n / (2 * kGroup), 1, [&](int64_t group) {
            for (int64_t first = 0; first < tokens_; first += kRowChunk) {
                const int64_t last = least(tokens_, first + kRowChunk);
                for (int64_t p = 0; p < 4; p++)
                    multiply(layer.gate_up, group * 4 + p, from, first, last, [&](int64_t row, const float *out) {
                        store(part + (row - first) * kGroup + 16 * p, silu_mul(load(out), load(out + 16)));
                    });
                for (int64_t row = first; row < last; row++) put(to, row, group, part + (row - first) * kGroup);
            }
        });
    }

    void logits() {
        const int64_t rows = batch_.rows, vocab = model_.vocab;
        const Acts acts = acts_at(s_.wanted, model_.head.kind, rows, model_.head.k);
        then_rows(team_, rows, s_.stride, [&](int64_t i) {
            put_norm(acts, i, residual(batch_.row[i]), model_.hidden, model_.eps, model_.norm);
        });
        linear(team_, thread_, model_.head, acts, rows, [&](int64_t panel, int64_t row, const float *out) {
            const int64_t width = least(kPanel, vocab - panel * kPanel);
            std::memcpy(s_.logits + row * vocab + panel * kPanel, out, static_cast<size_t>(width) * sizeof *out);
        });
    }

    const Step &s_;
    const RametModel &model_;
    const RametBatch &batch_;
    Team &team_;
    const int thread_;
    char *memory_;
    const int64_t tokens_;
};

inline void forward(Step &step) {
    const auto body = [](void *context, int thread) { Forward(*static_cast<const Step *>(context), thread).run(); };
    step.team->run(body, &step);
}

struct Product {
    Team *team;
    const RametWeight *weight;
    int64_t m;
    const float *x;
    float *y;
    Acts acts;
};

inline void multiply_all(const Product &p, int thread) {
    const int64_t n = p.weight->n, k = p.weight->k;
    each(*p.team, p.m, 1, [&](int64_t row) { put_row(p.acts, row, p.x + row * k, k, 1.0f, nullptr); });
    meet(*p.team);
    linear(*p.team, thread, *p.weight, p.acts, p.m, [&](int64_t panel, int64_t row, const float *out) {
        const int64_t width = least(kPanel, n - panel * kPanel);
        std::memcpy(p.y + row * n + panel * kPanel, out, static_cast<size_t>(width) * sizeof *out);
    });
}

inline void product_of(Team &team, const RametWeight &weight, int64_t m, const float *x, float *y, void *acts) {
    Product p{&team, &weight, m, x, y, acts_at(acts, weight.kind, m, weight.k)};
    team.run([](void *context, int thread) { multiply_all(*static_cast<const Product *>(context), thread); }, &p);
}

}  // namespace
}  // namespace ramet
