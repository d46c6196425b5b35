// The functions of amx.h in plain C++, written from the documentation of the instructions. In and out: the tile
// registers of a thread. Whatever would fault on a CPU ends the program, and says why. For tests alone.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace ramet {
namespace {

constexpr int kTileMostRows = 16, kTileMostBytes = 64;

struct EmulatedTile {
    int rows, bytes;
    uint8_t data[kTileMostRows][kTileMostBytes];
};

struct EmulatedTiles {
    bool configured;
    EmulatedTile of[kTileNames];
};

inline EmulatedTiles &tile_file() {
    static thread_local EmulatedTiles file{};
    return file;
}

inline void tile_must(bool holds, const char *what) {
    if (holds) return;
    std::fprintf(stderr, "fault: %s\n", what);
    std::abort();
}

inline EmulatedTile &tile_at(int name) {
    EmulatedTiles &file = tile_file();
    tile_must(file.configured, "tiles are not configured");
    tile_must(file.of[name].rows > 0, "a tile without a shape");
    return file.of[name];
}

inline void tile_release() { tile_file() = EmulatedTiles{}; }

inline void tile_configure(const TileConfig &config) {
    const TileConfig nothing{};
    tile_must(config.palette == 1, "a palette that does not exist");
    tile_must(!config.start_row && !std::memcmp(config.reserved, nothing.reserved, sizeof nothing.reserved) &&
                  !std::memcmp(config.more_bytes, nothing.more_bytes, sizeof nothing.more_bytes) &&
                  !std::memcmp(config.more_rows, nothing.more_rows, sizeof nothing.more_rows),
              "reserved bytes that are not zero");
    tile_release();
    EmulatedTiles &file = tile_file();
    file.configured = true;
    for (int i = 0; i < kTileNames; i++) {
        tile_must(config.rows[i] <= kTileMostRows && config.bytes[i] <= kTileMostBytes, "a tile that is too large");
        tile_must(!config.rows[i] == !config.bytes[i], "half a shape");
        file.of[i].rows = config.rows[i];
        file.of[i].bytes = config.bytes[i];
    }
}

template <int T>
inline void tile_zero() {
    EmulatedTile &tile = tile_at(T);
    std::memset(tile.data, 0, sizeof tile.data);
}

template <int T>
inline void tile_load(const void *base, int64_t stride) {
    tile_zero<T>();
    EmulatedTile &tile = tile_at(T);
    const char *from = static_cast<const char *>(base);
    for (int i = 0; i < tile.rows; i++) std::memcpy(tile.data[i], from + i * stride, static_cast<size_t>(tile.bytes));
}

template <int T>
inline void tile_store(void *base, int64_t stride) {
    const EmulatedTile &tile = tile_at(T);
    char *to = static_cast<char *>(base);
    for (int i = 0; i < tile.rows; i++) std::memcpy(to + i * stride, tile.data[i], static_cast<size_t>(tile.bytes));
}

template <int C, int A, int B>
inline void tile_dot() {
    static_assert(C != A && C != B && A != B, "three registers");
    EmulatedTile &c = tile_at(C);
    const EmulatedTile &a = tile_at(A), &b = tile_at(B);
    tile_must(a.bytes % 4 == 0 && b.bytes % 4 == 0 && c.bytes % 4 == 0, "rows that are not of 32-bit elements");
    tile_must(c.rows == a.rows && c.bytes == b.bytes && a.bytes / 4 == b.rows, "shapes that do not fit together");
    for (int m = 0; m < c.rows; m++) {
        for (int n = 0; n < c.bytes / 4; n++) {
            uint32_t total;
            std::memcpy(&total, c.data[m] + 4 * n, sizeof total);
            for (int j = 0; j < a.bytes; j++) {
                const int product = static_cast<int8_t>(a.data[m][j]) * static_cast<int>(b.data[j / 4][4 * n + j % 4]);
                total += static_cast<uint32_t>(product);
            }
            std::memcpy(c.data[m] + 4 * n, &total, sizeof total);
        }
    }
}

}  // namespace
}  // namespace ramet
