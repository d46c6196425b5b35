// The instructions of AMX (Intel's Software Developer's Manual, volume 2) that are used, one function each. In and out:
// eight tile registers, each of up to 16 rows of 64 bytes, whose shapes the configuration says. In assembly rather than
// by the compilers' intrinsics: those of GCC 12 do not say that they read memory, so that stores before them may be
// moved behind them. RAMET_EMULATED_TILES puts plain C++ in their place, for tests on other CPUs.
#pragma once

#include <cstdint>

namespace ramet {
namespace {

constexpr int kTileNames = 8;

// What LDTILECFG reads: bytes of a row and rows of each tile register; whatever has no name is zero.
struct alignas(64) TileConfig {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[kTileNames], more_bytes[kTileNames];
    uint8_t rows[kTileNames], more_rows[kTileNames];
};
static_assert(sizeof(TileConfig) == 64, "LDTILECFG reads 64 bytes");

}  // namespace
}  // namespace ramet

#if defined(RAMET_EMULATED_TILES)
#include "amx_emulated.h"
#else

namespace ramet {
namespace {

// Every register is zero after this; tile_release gives the state back, so that context switches need not save it.
inline void tile_configure(const TileConfig &config) { asm volatile("ldtilecfg %0" : : "m"(config)); }
inline void tile_release() { asm volatile("tilerelease"); }

template <int T>
inline void tile_zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(T));
}

// Row i is at `base` + i * `stride` bytes.
template <int T>
inline void tile_load(const void *base, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(base), "r"(stride), "i"(T) : "memory");
}

template <int T>
inline void tile_store(void *base, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(base), "r"(stride), "i"(T) : "memory");
}

// C[m][n] += the sum over k and i of A[m][4k + i], signed bytes, times B[k][4n + i], unsigned bytes; C of 32 bits.
template <int C, int A, int B>
inline void tile_dot() {
    static_assert(C != A && C != B && A != B, "three registers");
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

}  // namespace
}  // namespace ramet
#endif
