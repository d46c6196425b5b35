// See plan.h. An item is what one thread computes of one KV head: up to kMostRows query rows, and spans of slots in
// ascending order of position. Members of a group are in one item as far as rows allow, so that a shared block is read
// once for all of them.
#include "plan.h"

#include <algorithm>
#include <numeric>

#include "numeric.h"

namespace ramet {

void Plan::make(const RametModel &model, const RametBatch &batch, int threads) {
    items_.clear();
    spans_.clear();
    token_.clear();
    seen_.clear();
    cost_.clear();
    heads_ = model.heads / model.kv_heads;
    const int64_t all = batch.tokens * heads_ * model.kv_heads;
    const int64_t rows = std::min(kMostRows, std::max<int64_t>(12, all / (2 * threads)));
    tokens_ = std::max<int64_t>(1, rows / heads_);
    const size_t segments = static_cast<size_t>(batch.segments);
    outer_.assign(segments, -1);
    nested_.assign(segments, -1);
    for (int32_t g = 0; g < batch.groups; g++) {
        std::vector<int32_t> &of = batch.group_start[g] ? nested_ : outer_;
        for (int32_t i = batch.group_indptr[g]; i < batch.group_indptr[g + 1]; i++)
            of[static_cast<size_t>(batch.group_segments[i])] = g;
    }
    for (int64_t g = 0; g < batch.groups; g++)
        if (batch.group_start[g] == 0) group_items(batch, g);
    for (int32_t s = 0; s < batch.segments; s++) {
        if (outer_[static_cast<size_t>(s)] >= 0) continue;
        pieces_.clear();
        add_pieces(batch, s, pieces_);
        for (const Piece &piece : pieces_) close(batch, &piece, 1, -1);
    }
    sort();
}

Attention Plan::attention() const {
    return {items_.data(), static_cast<int64_t>(items_.size()), spans_.data(), token_.data(), seen_.data()};
}

void Plan::add_pieces(const RametBatch &batch, int32_t segment, std::vector<Piece> &pieces) const {
    const int64_t count = batch.qo_indptr[segment + 1] - batch.qo_indptr[segment];
    for (int64_t first = 0; first < count; first += tokens_)
        pieces.push_back({segment, first, std::min(tokens_, count - first)});
}

// Members of nested groups side by side, as many to an item as fit.
void Plan::group_items(const RametBatch &batch, int64_t group) {
    std::vector<int32_t> members(batch.group_segments + batch.group_indptr[group],
                                 batch.group_segments + batch.group_indptr[group + 1]);
    const auto nested = [this](int32_t s) { return nested_[static_cast<size_t>(s)]; };
    std::stable_sort(members.begin(), members.end(), [&](int32_t a, int32_t b) { return nested(a) < nested(b); });
    pieces_.clear();
    for (const int32_t s : members) add_pieces(batch, s, pieces_);
    for (size_t first = 0, next = 0; first < pieces_.size(); first = next) {
        int64_t tokens = 0;
        while (next < pieces_.size() && tokens + pieces_[next].count <= tokens_) tokens += pieces_[next++].count;
        close(batch, &pieces_[first], static_cast<int64_t>(next - first), group);
    }
}

void Plan::add_span(const RametBatch &batch, int64_t first, int64_t last, int32_t segment, int64_t from, int64_t to) {
    const int32_t *slots = batch.kv_indices + batch.kv_indptr[segment];
    spans_.push_back({static_cast<int32_t>(first * heads_), static_cast<int32_t>(last * heads_), slots, from, to});
    cost_.back() += (last - first + 4) * (to - from);  // gathering a block costs about as much as four tokens of it
}

// One item of `pieces`, members of `group` or (-1) of none.
void Plan::close(const RametBatch &batch, const Piece *pieces, int64_t count, int64_t group) {
    Item item{static_cast<int64_t>(token_.size()), 0, static_cast<int64_t>(spans_.size()), 0};
    cost_.push_back(0);
    for (int64_t i = 0; i < count; i++) {
        const Piece &p = pieces[i];
        const int64_t first = batch.qo_indptr[p.segment], next = batch.qo_indptr[p.segment + 1];
        const int64_t length = batch.kv_indptr[p.segment + 1] - batch.kv_indptr[p.segment];
        for (int64_t t = p.first; t < p.first + p.count; t++) {
            token_.push_back(static_cast<int32_t>(first + t));
            seen_.push_back(length - (next - first) + t + 1);
        }
        item.tokens += p.count;
    }
    if (group >= 0) add_span(batch, 0, item.tokens, pieces[0].segment, 0, batch.group_stop[group]);
    for (int64_t i = 0, row = 0; group >= 0 && i < count;) {
        const int32_t nested = nested_[static_cast<size_t>(pieces[i].segment)], leader = pieces[i].segment;
        const int64_t first = row;
        for (; i < count && nested_[static_cast<size_t>(pieces[i].segment)] == nested; i++) row += pieces[i].count;
        if (nested >= 0) add_span(batch, first, row, leader, batch.group_start[nested], batch.group_stop[nested]);
    }
    for (int64_t i = 0, row = 0; i < count; row += pieces[i++].count) {
        const int32_t nested = nested_[static_cast<size_t>(pieces[i].segment)];
        const int64_t from = group < 0 ? 0 : batch.group_stop[nested < 0 ? group : nested];
        const int64_t last = row + pieces[i].count;
        add_span(batch, row, last, pieces[i].segment, from, seen_[static_cast<size_t>(item.first_token + last - 1)]);
    }
    item.spans = static_cast<int64_t>(spans_.size()) - item.first_span;
    items_.push_back(item);
}

// Long items first: what is left at the end is short, whoever does it.
void Plan::sort() {
    std::vector<size_t> order(items_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [this](size_t a, size_t b) { return cost_[a] > cost_[b]; });
    std::vector<Item> sorted;
    sorted.reserve(items_.size());
    for (const size_t i : order) sorted.push_back(items_[i]);
    items_.swap(sorted);
}

}  // namespace ramet
