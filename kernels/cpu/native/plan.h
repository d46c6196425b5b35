// The attention work of one batch. In: a checked batch and its groups. Out: items that threads can take in any order.
#pragma once

#include <cstdint>
#include <vector>

#include "step.h"

namespace ramet {

class Plan {
   public:
    // Throws std::bad_alloc. `threads`: items are made small enough to keep that many busy.
    void make(const RametModel &model, const RametBatch &batch, int threads);
    Attention attention() const;

   private:
    // Some new tokens of one segment.
    struct Piece {
        int32_t segment;
        int64_t first, count;
    };

    void add_pieces(const RametBatch &batch, int32_t segment, std::vector<Piece> &pieces) const;
    void group_items(const RametBatch &batch, int64_t group);
    void close(const RametBatch &batch, const Piece *pieces, int64_t count, int64_t group);
    void add_span(const RametBatch &batch, int64_t first, int64_t last, int32_t segment, int64_t from, int64_t to);
    void sort();

    int64_t heads_ = 1, tokens_ = 1;  // query heads of a KV head; new tokens of an item at most
    std::vector<Item> items_;
    std::vector<Span> spans_;
    std::vector<int32_t> token_, outer_, nested_;  // the last two: the group of each segment, -1 for none
    std::vector<int64_t> seen_, cost_;
    std::vector<Piece> pieces_;
};

}  // namespace ramet
