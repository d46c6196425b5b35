// The kernels of one level; its compiler flags are in sources.py. Without them (setup.py compiles it so where the
// compiler does not know AMX) it is a table of nothing, and no CPU has the level.
#if defined(__x86_64__)
#if defined(__AMX_INT8__)
#include "simd_avx512.h"
#include "gemm.h"
#include "unpack.h"
#include "rows.h"
#include "attend.h"
#include "forward.h"
#include "draw.h"

namespace ramet {

const Kernels kernels_amx = {forward, product_of, draw};

}  // namespace ramet
#else
#include "step.h"

namespace ramet {

const Kernels kernels_amx = {};

}  // namespace ramet
#endif
#endif
