// A program for CPUs without AMX: products by emulated tiles against those of a level of the installed library, which
// needs AVX-512 VNNI. In: a level. Out: "ok" and the numbers of products and of those that tiles computed; or what has
// other bits, what faults, or which shape of the instructions' state is wrong, and status 1.
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "simd_avx512.h"
#include "gemm.h"
#include "unpack.h"
#include "rows.h"
#include "detect.h"

namespace {

std::mt19937 generator(11);

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

void must(bool holds, const char *what) {
    if (holds) return;
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

// Exactly as long as needed, on the heap.
std::vector<float> normal(int64_t count) {
    std::normal_distribution<float> draw;
    std::vector<float> values(static_cast<size_t>(count));
    for (float &value : values) value = draw(generator);
    return values;
}

struct Problem {
    int64_t kind, m, n, k;
    std::vector<char> packed;
    std::vector<float> bias, x;
    RametWeight weight{};
};

Problem random_problem(int64_t kind, int64_t m) {
    Problem p{kind, m, pick(1, 70), 16 * pick(1, 20), {}, {}, {}, {}};
    p.packed.resize(static_cast<size_t>(ramet_weight_bytes(kind, p.n, p.k)));
    std::vector<int32_t> columns;
    for (int64_t i = 0; i < p.n; i++) columns.push_back(static_cast<int32_t>(i));
    const std::vector<float> rows = normal(p.n * p.k);
    char *to = p.packed.data();
    must(!ramet_pack(nullptr, kind, p.n, p.k, to, RAMET_FROM_F32, rows.data(), p.n, columns.data()), "pack");
    p.x = normal(m * p.k);
    float *row = p.x.data() + pick(0, m - 1) * p.k;
    const float special[] = {0.0f, 1e-35f, 3e38f, std::numeric_limits<float>::infinity(), std::nanf("")};
    if (pick(0, 3) == 0)
        for (int64_t i = 0; i < p.k; i += pick(1, 9)) row[i] = special[pick(0, 4)];
    if (pick(0, 1)) p.bias = normal(p.n);
    p.weight = {kind, p.n, p.k, p.packed.data(), p.bias.empty() ? nullptr : p.bias.data()};
    return p;
}

// Rows from `first` on of the product, as forward.h computes them.
std::vector<float> by_tiles(const Problem &p, int64_t first) {
    using namespace ramet;
    const int64_t padded = round_up(p.k, kGroup), groups = padded / kGroup;
    std::vector<char> data(static_cast<size_t>(p.m * padded * (p.kind == RAMET_BF16 ? 2 : 1)));
    std::vector<float> scale(static_cast<size_t>(p.m * groups)), y(static_cast<size_t>(p.m * p.n));
    std::vector<int32_t> sum(static_cast<size_t>(p.m * groups * 2));
    const Acts acts{p.kind != RAMET_BF16, data.data(), scale.data(), sum.data(), padded};
    for (int64_t i = 0; i < p.m; i++) put_row(acts, i, p.x.data() + i * p.k, p.k, 1.0f, nullptr);
    const TileRegisters tiles(p.kind, p.m - first);
    for (int64_t panel = 0; panel < panels(p.weight); panel++)
        multiply(p.weight, panel, acts, first, p.m, [&](int64_t row, const float *out) {
            const int64_t width = least(kPanel, p.n - panel * kPanel);
            std::memcpy(y.data() + row * p.n + panel * kPanel, out, static_cast<size_t>(width) * sizeof *out);
        });
    return y;
}

// The same bits; a nan is a nan.
bool same(const std::vector<float> &found, const std::vector<float> &wanted, size_t from) {
    for (size_t i = from; i < found.size(); i++) {
        const uint32_t a = ramet::bits_of_float(found[i]), b = ramet::bits_of_float(wanted[i]);
        if (a != b && !(std::isnan(found[i]) && std::isnan(wanted[i]))) return false;
    }
    return true;
}

void compare(RametPool *pool, const Problem &p) {
    std::vector<float> wanted(static_cast<size_t>(p.m * p.n));
    must(!ramet_linear(pool, &p.weight, p.m, p.x.data(), wanted.data()), "linear");
    const int64_t first = pick(0, p.m - 1);
    for (const int64_t from : {int64_t{0}, first}) {
        const std::vector<float> found = by_tiles(p, from);
        must(!ramet::tile_file().configured, "tiles are not released");
        if (same(found, wanted, static_cast<size_t>(from * p.n))) continue;
        std::fprintf(stderr, "other bits: kind %" PRId64 ", rows %" PRId64 "..%" PRId64 ", %" PRId64 " x %" PRId64 "\n",
                     p.kind, from, p.m, p.n, p.k);
        std::exit(1);
    }
}

// Every bit that detection asks for is needed, and no other.
void check_detection() {
    const ramet::Registers all{1u << 27, 1u << 24 | 1u << 25, 1u << 17 | 1u << 18};
    must(ramet::has_tiles(all) && ramet::has_tiles({~0u, ~0u, ~0ull}), "AMX is there, and not seen");
    for (const ramet::Registers &less : {ramet::Registers{0, all.edx7, all.xcr0}, {all.ecx1, 1u << 24, all.xcr0},
                                         {all.ecx1, 1u << 25, all.xcr0}, {all.ecx1, all.edx7, 1u << 17},
                                         {all.ecx1, all.edx7, 1u << 18}, {~all.ecx1, ~all.edx7, ~all.xcr0}})
        must(!ramet::has_tiles(less), "AMX is seen where it is not");
}

}  // namespace

int main(int count, char **arguments) {
    must(count == 2, "which level?");
    check_detection();
    RametPool *pool = nullptr;
    must(!ramet_pool_create(1, &pool) && !ramet_set_level(pool, std::atoi(arguments[1])), "no such level");
    int64_t products = 0, tiled = 0;
    for (int64_t m = 1; m <= 40; m++) {
        for (int64_t kind = RAMET_BF16; kind <= RAMET_INT4; kind++) {
            compare(pool, random_problem(kind, m));
            products++;
            tiled += ramet::tiled_rows(kind, m) > 0;
        }
    }
    ramet_pool_destroy(pool);
    std::printf("ok %" PRId64 " %" PRId64 "\n", products, tiled);
    return 0;
}
