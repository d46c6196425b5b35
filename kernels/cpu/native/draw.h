// Sampling from rows of logits. In: a row, which tokens are allowed, how to draw. Out: a token. Each draw is made by one
// thread in one order, so its result depends on nothing but its row. Needs a simd_*.h and rows.h before it.
//
// Weights are exp((x - peak) / temperature). A token is the first, in order of id, whose cumulated weight exceeds
// `uniform` times the sum of all that top_k, top_p and min_p leave: those are a prefix of the order "largest weight
// first, of equals the lower id", found by selection and not by a sort. Templates of the standard library are used on
// types of this file alone: an instance for plain types would be shared by all levels, with one level's instructions.
#pragma once

#include <algorithm>
#include <cstring>

#include "pool.h"
#include "step.h"

namespace ramet {
namespace {

constexpr int64_t kSpan = 64;     // logits whose maximum and sum are kept
constexpr int64_t kBins = 4096;    // of weights, by exponent and four bits of the mantissa
constexpr float kLargest = 3.402823466e38f;

// A candidate; `first` is the order.
struct Candidate {
    float weight;
    int32_t id;
};
inline bool first(const Candidate &a, const Candidate &b) {
    return a.weight != b.weight ? a.weight > b.weight : a.id < b.id;
}

// The memory of one thread, see draw_bytes.
struct Scratch {
    float *row, *tops;
    double *sums, *bins;
    Candidate *found, *order;
};
inline Scratch scratch_at(char *at, int64_t vocab) {
    const int64_t padded = round_up(vocab, kSpan), spans = padded / kSpan;
    Scratch s;
    s.found = reinterpret_cast<Candidate *>(at);
    s.order = s.found + padded;
    s.bins = reinterpret_cast<double *>(s.order + padded);
    s.sums = s.bins + kBins;
    s.row = reinterpret_cast<float *>(s.sums + round_up(spans, 8));
    s.tops = s.row + padded;
    return s;
}

inline const float *drawn_from(const RametDraws &draws, int64_t index) {
    const float *edited = draws.edited ? draws.edited[index] : nullptr;
    return edited ? edited : draws.logits + draws.row[index] * draws.vocab;
}

inline uint64_t mixed(uint64_t z) {
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

inline double uniform_of(const RametDraws &draws, int64_t index) {
    if (draws.uniform) return draws.uniform[index];
    constexpr uint64_t golden = 0x9E3779B97F4A7C15u;
    const uint64_t position = static_cast<uint64_t>(draws.position[index]);
    return static_cast<double>(mixed(mixed(draws.draw[index].seed + golden) + position * golden) >> 12) * 0x1p-52;
}

// One draw of one thread.
class Draw {
   public:
    Draw(const RametDraws &draws, int64_t index, const Scratch &scratch)
        : s_(scratch),
          vocab_(draws.vocab),
          spans_(round_up(draws.vocab, kSpan) / kSpan),
          k_(draws.draw[index].top_k),
          temperature_(draws.draw[index].temperature),
          p_(draws.draw[index].top_p),
          least_(draws.draw[index].min_p),
          uniform_(uniform_of(draws, index)) {
        const uint32_t *allowed = draws.allowed ? draws.allowed[index] : nullptr;
        const float *x = drawn_from(draws, index);
        x_ = allowed || vocab_ % kSpan ? copied(x, allowed) : x;
    }

    int32_t token() {
        const int32_t best = most_likely();
        if (best < 0 || temperature_ == 0 || k_ == 1) return best;
        // a finite factor: 0 times infinity would be a nan where x is the peak
        scale_ = static_cast<float>(least(1.4426950408889634 / static_cast<double>(temperature_), 1e30));
        const bool few = k_ > 0 && k_ < vocab_;
        if (!few && p_ >= 1 && least_ <= 0) return from_all();
        if (few) {
            collect(bound_of_top(k_));
            if (count_ > k_) cut(last_of_count(k_));
        }
        if (p_ < 1) {
            const double aim = p_ * (few ? mass() : total());
            if (!few) collect_mass(aim);
            cut(last_of_mass(aim));
        } else if (!few) {
            collect(peak_ + temperature_ * std::log(least_) - 1e-3f * temperature_);
        }
        if (least_ > 0) drop_below(least_);
        return from_found();
    }

   private:
    // The row with -inf where nothing is allowed and beyond its end.
    const float *copied(const float *from, const uint32_t *allowed) {
        for (int64_t i = 0; i < spans_ * kSpan; i += 32) {
            const int64_t count = most<int64_t>(0, least<int64_t>(32, vocab_ - i));
            const uint32_t bits = count == 0 ? 0u : allowed ? allowed[i / 32] : ~0u;
            if (count == 32) {
                store(s_.row + i, pick(load(from + i), bits, -INFINITY));
                store(s_.row + i + 16, pick(load(from + i + 16), bits >> 16, -INFINITY));
                continue;
            }
            for (int64_t j = 0; j < count; j++) s_.row[i + j] = bits >> j & 1u ? from[i + j] : -INFINITY;
            for (int64_t j = count; j < 32; j++) s_.row[i + j] = -INFINITY;
        }
        return s_.row;
    }

    // The first of the largest; -1 when that is no finite number or a nan stands anywhere. Keeps the maxima of spans.
    int32_t most_likely() {
        Vec nans = set(0), peaks = set(-INFINITY);
        for (int64_t span = 0; span < spans_; span++) {
            Vec high = set(-INFINITY);
            for (int64_t i = 0; i < kSpan; i += 16) {
                const Vec v = load(x_ + span * kSpan + i);
                nans = fma(min(set(kLargest), max(set(-kLargest), v)), set(0), nans);  // both give their second for a nan
                high = max(high, v);
            }
            s_.tops[span] = top(high);
            peaks = max(peaks, high);
        }
        peak_ = top(peaks);
        const float nan = sum(nans);
        if (nan != nan || !(peak_ <= kLargest && peak_ >= -kLargest)) return -1;
        for (int64_t span = 0; span < spans_; span++) {
            if (s_.tops[span] != peak_) continue;
            for (int64_t i = span * kSpan;; i++)
                if (x_[i] == peak_) return static_cast<int32_t>(i);
        }
        return -1;
    }

    Vec weights(Vec x) const { return exp2(mul(sub(x, set(peak_)), set(scale_))); }

    // The sum of all weights; s_.sums are those up to and with each span. What is forbidden adds less than 2^-110.
    double total() {
        double sums = 0;
        for (int64_t span = 0; span < spans_; span++) {
            Vec part = set(0);
            for (int64_t i = 0; i < kSpan; i += 16) part = add(part, weights(load(x_ + span * kSpan + i)));
            sums += static_cast<double>(sum(part));
            s_.sums[span] = sums;
        }
        return sums;
    }

    int32_t from_all() {
        const double aim = uniform_ * total();
        int64_t span = 0;
        while (span < spans_ - 1 && s_.sums[span] <= aim) span++;
        int32_t found = within(span, aim - (span ? s_.sums[span - 1] : 0.0));
        // the span's sums round differently, or what was hit is forbidden: the next allowed token, else the last one
        for (int64_t next = span + 1; found < 0 && next < spans_; next++) found = within(next, 0.0);
        for (; found < 0; span--) found = last_of(span);
        return found;
    }

    int32_t within(int64_t span, double aim) const {
        float each[kSpan];
        const float *x = x_ + span * kSpan;
        for (int64_t i = 0; i < kSpan; i += 16) store(each + i, weights(load(x + i)));
        double sums = 0;
        for (int64_t i = 0; i < kSpan; i++) {
            if (x[i] == -INFINITY) continue;
            sums += static_cast<double>(each[i]);
            if (sums > aim) return static_cast<int32_t>(span * kSpan + i);
        }
        return -1;
    }

    int32_t last_of(int64_t span) const {
        for (int64_t i = (span + 1) * kSpan - 1; i >= span * kSpan; i--)
            if (x_[i] != -INFINITY) return static_cast<int32_t>(i);
        return -1;
    }

    // A bound below which none of the k largest lies: the k-th largest maximum of a span.
    float bound_of_top(int64_t k) const {
        if (k > spans_) return -INFINITY;
        for (int64_t span = 0; span < spans_; span++) s_.order[span] = {s_.tops[span], static_cast<int32_t>(span)};
        std::nth_element(s_.order, s_.order + k - 1, s_.order + spans_, first);
        return s_.order[k - 1].weight;
    }

    // The allowed tokens with logits from `bound` on, in order of id, with their weights.
    void collect(float bound) {
        count_ = 0;
        for (int64_t span = 0; span < spans_; span++) {
            if (s_.tops[span] < bound || s_.tops[span] == -INFINITY) continue;
            float each[kSpan];
            const float *x = x_ + span * kSpan;
            for (int64_t i = 0; i < kSpan; i += 16) store(each + i, weights(load(x + i)));
            for (int64_t i = 0; i < kSpan; i++) {
                s_.found[count_] = {each[i], static_cast<int32_t>(span * kSpan + i)};
                count_ += x[i] >= bound && x[i] > -INFINITY;
            }
        }
    }

    // Enough of the largest that their weights reach `aim`. What is likely is usually near the peak.
    void collect_mass(double aim) {
        for (const float depth : {3.0f, 9.0f}) {
            collect(peak_ - depth * temperature_);
            if (mass() >= aim) return;
        }
        collect(-INFINITY);
    }

    double mass() const {
        double sums = 0;
        for (int64_t i = 0; i < count_; i++) sums += static_cast<double>(s_.found[i].weight);
        return sums;
    }

    Candidate last_of_count(int64_t count) {
        std::memcpy(s_.order, s_.found, static_cast<size_t>(count_) * sizeof *s_.found);
        std::nth_element(s_.order, s_.order + count - 1, s_.order + count_, first);
        return s_.order[count - 1];
    }

    // The last of the shortest prefix of the order whose weights reach `aim`; the last of all when none does. Only the
    // bin in which it lies is sorted.
    Candidate last_of_mass(double aim) {
        std::memset(s_.bins, 0, kBins * sizeof *s_.bins);
        for (int64_t i = 0; i < count_; i++) s_.bins[bin(s_.found[i])] += static_cast<double>(s_.found[i].weight);
        double before = 0;
        int64_t lowest = kBins, edge = kBins;
        while (edge > 0 && (lowest == kBins || before < aim))
            if (s_.bins[--edge] > 0) lowest = edge, before += s_.bins[edge];
        edge = lowest;
        before -= s_.bins[edge];
        int64_t inside = 0;
        for (int64_t i = 0; i < count_; i++) {
            s_.order[inside] = s_.found[i];
            inside += bin(s_.found[i]) == edge;
        }
        std::sort(s_.order, s_.order + inside, first);
        int64_t last = 0;
        for (; last + 1 < inside; last++) {
            before += static_cast<double>(s_.order[last].weight);
            if (before >= aim) break;
        }
        return s_.order[last];
    }

    static int64_t bin(const Candidate &c) { return bits_of_float(c.weight) >> 19; }  // weights are positive

    // Keep what comes up to `last` in the order.
    void cut(const Candidate &last) {
        int64_t kept = 0;
        for (int64_t i = 0; i < count_; i++) {
            s_.found[kept] = s_.found[i];
            kept += !first(last, s_.found[i]);
        }
        count_ = kept;
    }

    void drop_below(float weight) {
        int64_t kept = 0;
        for (int64_t i = 0; i < count_; i++) {
            s_.found[kept] = s_.found[i];
            kept += s_.found[i].weight >= weight;
        }
        count_ = kept;
    }

    int32_t from_found() const {
        const double aim = uniform_ * mass();
        double sums = 0;
        for (int64_t i = 0; i < count_; i++) {
            sums += static_cast<double>(s_.found[i].weight);
            if (sums > aim) return s_.found[i].id;
        }
        return s_.found[count_ - 1].id;
    }

    const Scratch s_;
    const int64_t vocab_, spans_, k_;
    const float temperature_, p_, least_;
    const double uniform_;
    const float *x_;
    float peak_ = 0, scale_ = 0;
    int64_t count_ = 0;
};

// The logarithm of the sum of exp(x) over a row; nan where that is no number.
inline double normaliser(const float *x, int64_t count) {
    float peak = -INFINITY;
    for (int64_t i = 0; i < count; i++) {
        if (x[i] != x[i]) return NAN;
        peak = most(peak, x[i]);
    }
    if (!(peak <= kLargest && peak >= -kLargest)) return NAN;
    const Vec by = set(1.44269504f);
    double sums = 0;
    int64_t i = 0;
    for (; i + kSpan <= count; i += kSpan) {
        Vec part = set(0);
        for (int64_t j = i; j < i + kSpan; j += 16) part = add(part, exp2(mul(sub(load(x + j), set(peak)), by)));
        sums += static_cast<double>(sum(part));
    }
    for (; i < count; i++) sums += std::exp(static_cast<double>(x[i]) - static_cast<double>(peak));
    return static_cast<double>(peak) + std::log(sums);
}

struct Drawing {
    const RametDraws *draws;
    Team *team;
    char *memory;
    int64_t bytes;  // of a thread

    void make(int64_t i, const Scratch &scratch) const {
        if (draws->token) draws->token[i] = Draw(*draws, i, scratch).token();
        if (draws->normaliser) draws->normaliser[i] = normaliser(drawn_from(*draws, i), draws->vocab);
    }
};

inline void draw(Team &team, const RametDraws &draws, char *memory, int64_t bytes) {
    Drawing drawing{&draws, &team, memory, bytes};
    if (draws.count == 1) return drawing.make(0, scratch_at(memory, draws.vocab));  // nobody is woken for one
    team.run(
        [](void *context, int thread) {
            const Drawing &d = *static_cast<const Drawing *>(context);
            const Scratch scratch = scratch_at(d.memory + thread * d.bytes, d.draws->vocab);
            for (int64_t i; (i = d.team->claim(1)) < d.draws->count;) d.make(i, scratch);
        },
        &drawing);
}

}  // namespace
}  // namespace ramet
