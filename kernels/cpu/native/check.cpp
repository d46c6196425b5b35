// See check.h. Bounds are some times beyond the largest models, so that no product of sizes can overflow.
#include "check.h"

#include <cstring>
#include <vector>

#include "numeric.h"
#include "step.h"

namespace ramet {

namespace {

bool within(int64_t value, int64_t low, int64_t high) { return low <= value && value <= high; }

bool all_within(const int32_t *values, int64_t count, int64_t limit) {
    bool ok = true;
    for (int64_t i = 0; i < count; i++) ok &= static_cast<uint32_t>(values[i]) < static_cast<uint64_t>(limit);
    return ok;
}

// Offsets from 0 to `end` that never fall.
bool ascending(const int32_t *offsets, int64_t count, int64_t end) {
    bool ok = offsets[0] == 0 && offsets[count] == end;
    for (int64_t i = 0; i < count; i++) ok &= offsets[i] <= offsets[i + 1];
    return ok;
}

int64_t check_layer(const RametModel &m, const RametLayer &layer) {
    const int64_t mixed = m.heads * m.head_dim, inner = round_up(m.intermediate, kGroup);
    const struct {
        const RametWeight &weight;
        int64_t n, k;
    } wanted[] = {{layer.qkv, mixed + 2 * m.kv_heads * m.head_dim, m.hidden},
                  {layer.o, m.hidden, mixed},
                  {layer.gate_up, 2 * inner, m.hidden},
                  {layer.down, m.hidden, m.intermediate}};
    for (const auto &w : wanted)
        if (const int64_t code = check_weight(w.weight, w.n, w.k)) return code;
    if (!layer.norm1 || !layer.norm2) return RAMET_NULL;
    if (!layer.q_norm != !layer.k_norm) return RAMET_NULL;
    if (!within(layer.window, 0, INT32_MAX)) return RAMET_SHAPE;
    return RAMET_OK;
}

int64_t check_arrays(const RametBatch &b) {
    if (!within(b.tokens, 0, INT32_MAX) || !within(b.segments, 0, INT32_MAX)) return RAMET_BATCH;
    if (!within(b.rows, 0, INT32_MAX) || !within(b.groups, 0, b.segments)) return RAMET_BATCH;
    if (!within(b.indices, 0, INT32_MAX) || !within(b.members, 0, INT32_MAX)) return RAMET_BATCH;
    if (!b.qo_indptr || !b.kv_indptr || (b.tokens && (!b.token || !b.position || !b.slot))) return RAMET_NULL;
    if (b.rows && !b.row) return RAMET_NULL;
    const bool grouped = b.group_indptr && b.group_segments && b.group_start && b.group_stop;
    if (b.groups && !grouped) return RAMET_NULL;
    if (b.indices && !b.kv_indices) return RAMET_NULL;
    if (!ascending(b.qo_indptr, b.segments, b.tokens)) return RAMET_BATCH;
    if (!ascending(b.kv_indptr, b.segments, b.indices)) return RAMET_BATCH;
    for (int64_t s = 0; s < b.segments; s++)
        if (b.kv_indptr[s + 1] - b.kv_indptr[s] < b.qo_indptr[s + 1] - b.qo_indptr[s]) return RAMET_BATCH;
    return RAMET_OK;
}

bool same_slots(const RametBatch &b, int32_t s, int32_t t, int64_t start, int64_t stop) {
    const int32_t *left = b.kv_indices + b.kv_indptr[s] + start, *right = b.kv_indices + b.kv_indptr[t] + start;
    return std::memcmp(left, right, static_cast<size_t>(stop - start) * sizeof *left) == 0;
}

// `outer` and `nested`: the group of each segment as far as groups were checked, -1 for none.
bool good_group(const RametBatch &b, int32_t g, std::vector<int32_t> &outer, std::vector<int32_t> &nested) {
    const int32_t first = b.group_indptr[g], last = b.group_indptr[g + 1];
    const int64_t start = b.group_start[g], stop = b.group_stop[g];
    if (first == last || start < 0 || stop <= start || start % kBlock || stop % kBlock) return false;
    const int32_t leader = b.group_segments[first], around = outer[static_cast<size_t>(leader)];
    if (start && (around < 0 || b.group_stop[around] != start)) return false;
    for (int32_t i = first; i < last; i++) {
        const int32_t s = b.group_segments[i];
        const int64_t length = b.kv_indptr[s + 1] - b.kv_indptr[s], fresh = b.qo_indptr[s + 1] - b.qo_indptr[s];
        if (stop > length - fresh || !same_slots(b, leader, s, start, stop)) return false;
        if (start && outer[static_cast<size_t>(s)] != around) return false;
        int32_t &mine = (start ? nested : outer)[static_cast<size_t>(s)];
        if (mine >= 0) return false;
        mine = g;
    }
    return true;
}

int64_t check_groups(const RametBatch &b) {
    if (!b.groups) return RAMET_OK;
    if (!ascending(b.group_indptr, b.groups, b.members)) return RAMET_BATCH;
    if (!all_within(b.group_segments, b.members, b.segments)) return RAMET_BATCH;
    std::vector<int32_t> outer(static_cast<size_t>(b.segments), -1), nested(outer);
    for (int32_t g = 0; g < b.groups; g++)
        if (!good_group(b, g, outer, nested)) return RAMET_BATCH;
    return RAMET_OK;
}

}  // namespace

int64_t check_weight(const RametWeight &weight, int64_t n, int64_t k) {
    if (!within(weight.kind, RAMET_BF16, RAMET_INT4)) return RAMET_KIND;
    if (weight.n != n || weight.k != k) return RAMET_SHAPE;
    if (!weight.data) return RAMET_NULL;
    return RAMET_OK;
}

int64_t check_model(const RametModel &m, const RametCache &cache) {
    const int64_t big = 1 << 22;
    const bool sized = within(m.layers, 1, 4096) && within(m.hidden, 16, 1 << 17) && within(m.heads, 1, 4096) &&
                       within(m.kv_heads, 1, m.heads) && within(m.head_dim, 16, kMostDim) &&
                       within(m.intermediate, 1, 1 << 20) && within(m.vocab, 1, big) && within(m.context, 1, INT32_MAX);
    if (!sized || m.hidden % 16 || m.head_dim % 16 || m.heads % m.kv_heads) return RAMET_SHAPE;
    if (m.heads / m.kv_heads > kMostRows || !within(cache.capacity, 1, INT32_MAX)) return RAMET_SHAPE;
    if (!m.layer || !m.norm || !m.cos || !m.sin || !cache.data) return RAMET_NULL;
    for (int64_t l = 0; l < m.layers; l++)
        if (const int64_t code = check_layer(m, m.layer[l])) return code;
    return check_weight(m.head, m.vocab, m.hidden);
}

int64_t check_batch(const RametModel &model, const RametCache &cache, const RametBatch &b) {
    if (const int64_t code = check_arrays(b)) return code;
    const bool inside = all_within(b.token, b.tokens, model.vocab) && all_within(b.position, b.tokens, model.context) &&
                        all_within(b.slot, b.tokens, cache.capacity) && all_within(b.row, b.rows, b.tokens) &&
                        all_within(b.kv_indices, b.indices, cache.capacity);
    if (!inside) return RAMET_BATCH;
    return check_groups(b);
}

int64_t check_draws(const RametDraws &draws) {
    if (draws.count < 0 || draws.vocab < 1 || draws.vocab > INT32_MAX / 2 || draws.rows < 0) return RAMET_SHAPE;
    if (!draws.logits || !draws.row) return RAMET_NULL;
    for (int64_t i = 0; i < draws.count; i++)
        if (draws.row[i] < 0 || draws.row[i] >= draws.rows) return RAMET_BATCH;
    if (!draws.token) return RAMET_OK;
    if (!draws.draw || !(draws.uniform || draws.position)) return RAMET_NULL;
    for (int64_t i = 0; i < draws.count; i++) {
        const RametDraw &draw = draws.draw[i];
        const bool numbers = draw.temperature >= 0 && draw.top_p >= 0 && draw.min_p <= 1;
        if (!numbers || (draws.uniform && !(draws.uniform[i] >= 0 && draws.uniform[i] < 1))) return RAMET_BATCH;
    }
    return RAMET_OK;
}

}  // namespace ramet
