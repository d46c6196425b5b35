// Loops that do one thing as fast as a core can. In: memory, or a number of rounds. Out: a value that depends on all of
// it, so that no compiler leaves any of it out.
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {
typedef uint64_t Pair __attribute__((vector_size(16), aligned(16)));
constexpr int kSums = 12;         // independent chains: latency times throughput of a product, or more
constexpr int64_t kAhead = 2048;  // bytes: the hardware's prefetcher stops at the end of a page
}  // namespace

extern "C" {

// Reads `bytes` (a multiple of 128) at a multiple of 16.
uint64_t probe_read(const char *memory, int64_t bytes) {
    Pair sum[8] = {};
    for (int64_t at = 0; at < bytes; at += 128) {
        __builtin_prefetch(memory + at + kAhead);
        __builtin_prefetch(memory + at + kAhead + 64);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) sum[i] += *reinterpret_cast<const Pair *>(memory + at + 16 * i);
    }
    Pair all = {};
    for (const Pair &one : sum) all += one;
    return all[0] ^ all[1];
}

#if defined(__x86_64__)
// A round is kSums instructions of 16 lanes with two products each: 2 * 32 operations an instruction.
__attribute__((target("avx512f,avx512bf16"))) float probe_bf16(int64_t rounds) {
    __m512 sum[kSums];
    const __m512bh x = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3f80));
    for (int i = 0; i < kSums; i++) sum[i] = _mm512_set1_ps(static_cast<float>(i));
    for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < kSums; i++) sum[i] = _mm512_dpbf16_ps(sum[i], x, x);
    }
    __m512 all = _mm512_setzero_ps();
    for (int i = 0; i < kSums; i++) all = _mm512_add_ps(all, sum[i]);
    return _mm512_reduce_add_ps(all);
}

// The same with four products of bytes in a lane: 2 * 64 operations an instruction.
__attribute__((target("avx512f,avx512vnni"))) int32_t probe_int8(int64_t rounds) {
    __m512i sum[kSums];
    const __m512i x = _mm512_set1_epi8(1);
    for (int i = 0; i < kSums; i++) sum[i] = _mm512_set1_epi32(i);
    for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < kSums; i++) sum[i] = _mm512_dpbusd_epi32(sum[i], x, x);
    }
    __m512i all = _mm512_setzero_si512();
    for (int i = 0; i < kSums; i++) all = _mm512_add_epi32(all, sum[i]);
    return _mm512_reduce_add_epi32(all);
}
#endif

}  // extern "C"
