// Whether what a caller gave is complete and fits together. In: the structs of ramet_cpu.h. Out: RAMET_OK or why not.
#pragma once

#include "ramet_cpu.h"

namespace ramet {

int64_t check_weight(const RametWeight &weight, int64_t n, int64_t k);
int64_t check_model(const RametModel &model, const RametCache &cache);
int64_t check_batch(const RametModel &model, const RametCache &cache, const RametBatch &batch);
int64_t check_draws(const RametDraws &draws);

}  // namespace ramet
