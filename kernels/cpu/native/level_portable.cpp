// The kernels of one level; its compiler flags are in sources.py.
#include "simd_portable.h"
#include "gemm.h"
#include "unpack.h"
#include "rows.h"
#include "attend.h"
#include "forward.h"
#include "draw.h"

namespace ramet {

const Kernels kernels_portable = {forward, product_of, draw};

}  // namespace ramet
