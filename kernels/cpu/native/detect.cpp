// See detect.h.
#include "detect.h"

#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <exception>
#include <vector>

#include "numeric.h"
#include "pack.h"
#include "pool.h"
#endif

#include "step.h"

namespace ramet {

#if defined(__x86_64__)
namespace {

#if defined(RAMET_EMULATED_TILES)
bool usable() { return true; }
#else
Registers registers() {
    Registers r{};
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (!__get_cpuid(1, &eax, &ebx, &r.ecx1, &edx) || !(r.ecx1 & bit_OSXSAVE)) return r;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &r.edx7)) return r;
    uint32_t low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    r.xcr0 = static_cast<uint64_t>(high) << 32 | low;
    return r;
}

// Linux gives a process the 8 KiB of state per thread on request, and may refuse: when an alternate signal stack is too
// small for it, for one.
bool permitted() {
    constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

bool usable() { return has_tiles(registers()) && permitted(); }
#endif

// A small product of each kind has the bits of the level below: 16 rows and 11 more, 40 outputs, 128 inputs.
bool same_products() {
    constexpr int64_t m = 27, n = 40, k = 128;
    Team team(1);
    std::vector<float> values(static_cast<size_t>(n * k)), found(static_cast<size_t>(m * n)), wanted(found.size());
    for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<float>(i * 7919 % 1009) / 512.0f - 1.0f;
    std::vector<int32_t> columns(static_cast<size_t>(n));
    for (size_t i = 0; i < columns.size(); i++) columns[i] = static_cast<int32_t>(i);
    std::vector<float> row(static_cast<size_t>(k));
    for (const int64_t kind : {RAMET_INT8, RAMET_INT4}) {
        std::vector<char> packed(static_cast<size_t>(round_up(n, kPanel) / kPanel * packed_panel_bytes(kind, k)));
        const auto *source = reinterpret_cast<const char *>(values.data());
        const Packing packing{kind, k, RAMET_FROM_F32, source, k * 4, columns.data(), packed.data()};
        for (int64_t i = 0; i < n; i++) pack_row(packing, i, row.data());
        const RametWeight weight{kind, n, k, packed.data(), nullptr};
        std::vector<float> acts(static_cast<size_t>(acts_bytes(kind, m, k) / 4 + 1));
        kernels_amx.linear(team, weight, m, values.data(), found.data(), acts.data());
        kernels_avx512_bf16.linear(team, weight, m, values.data(), wanted.data(), acts.data());
        if (std::memcmp(found.data(), wanted.data(), found.size() * sizeof(float))) return false;
    }
    return true;
}

bool tiles_work() {
    try {
        return kernels_amx.linear && usable() && same_products();
    } catch (const std::exception &) {  // no memory
        return false;
    }
}

}  // namespace

int64_t best_level() {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return RAMET_PORTABLE;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (!wide) return RAMET_AVX2;
    if (!__builtin_cpu_supports("avx512vnni")) return RAMET_AVX512;
    if (!__builtin_cpu_supports("avx512bf16")) return RAMET_AVX512_VNNI;
    static const bool tiles = tiles_work();
    return tiles ? RAMET_AMX : RAMET_AVX512_BF16;
}
#elif defined(__aarch64__)
int64_t best_level() { return getauxval(AT_HWCAP) & HWCAP_ASIMDDP ? RAMET_NEON_DOT : RAMET_NEON; }
#else
int64_t best_level() { return RAMET_PORTABLE; }
#endif

}  // namespace ramet
