// Weights into panels. In: source rows. Out: columns of a packed weight (ramet_cpu.h has the formats).
#pragma once

#include <cstdint>

namespace ramet {

// What ramet_pack was asked for, checked.
struct Packing {
    int64_t kind, k, source;
    const char *values;
    int64_t row_bytes;
    const int32_t *column;
    char *packed;
};

int64_t packed_panel_bytes(int64_t kind, int64_t k);
// `row` is scratch of k values, rounded up to 64.
void pack_row(const Packing &packing, int64_t i, float *row);

}  // namespace ramet
