// The kernels of one level; its compiler flags are in sources.py.
#if defined(__x86_64__)
#include "simd_avx512.h"
#include "gemm.h"
#include "unpack.h"
#include "rows.h"
#include "attend.h"
#include "forward.h"
#include "draw.h"

namespace ramet {

const Kernels kernels_avx512_vnni = {forward, product_of, draw};

}  // namespace ramet
#endif
