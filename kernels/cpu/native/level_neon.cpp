// The kernels of one level; its compiler flags are in sources.py.
#if defined(__aarch64__)
#include "simd_neon.h"
#include "gemm.h"
#include "unpack.h"
#include "rows.h"
#include "attend.h"
#include "forward.h"
#include "draw.h"

namespace ramet {

const Kernels kernels_neon = {forward, product_of, draw};

}  // namespace ramet
#endif
