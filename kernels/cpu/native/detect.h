// What this CPU and its operating system can run. In: nothing. Out: the highest level.
#pragma once

#include <cstdint>

namespace ramet {

// What the instructions CPUID (leaf 1, leaf 7) and XGETBV say; xcr0 is 0 where XGETBV is not there.
struct Registers {
    uint32_t ecx1, edx7;
    uint64_t xcr0;
};

// AMX's tiles and products of 8 bits are there, and the system saves both parts of their state.
inline bool has_tiles(const Registers &r) {
    constexpr uint32_t kXgetbv = 1u << 27, kTiles = 1u << 24, kInt8 = 1u << 25;
    constexpr uint64_t kState = 3u << 17;
    return (r.ecx1 & kXgetbv) && (r.edx7 & kTiles) && (r.edx7 & kInt8) && (r.xcr0 & kState) == kState;
}

// Asks the system for the state of AMX the first time, for the whole process: call it before threads are made.
int64_t best_level();

}  // namespace ramet
