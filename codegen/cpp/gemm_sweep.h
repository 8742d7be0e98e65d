// In: rows of activations, a range of columns, packed weights. Out: every tile of the product computed once and handed
// to the epilogue, 16 columns of a row at a time.
//
// Order: blocks of rows whose activations stay in L2, then panels of weights, then tiles of rows. Rows are dealt to
// tiles evenly (9 rows are 5 + 4, not 8 + 1), so no count of rows falls off a cliff.
#pragma once

#include "gemm_tile.h"

namespace af {
namespace gemm AF_HIDDEN {

constexpr long ROW_BLOCK_BYTES = 128 << 10;  // activations of a row block: an eighth of an L2 of 1 MB
constexpr long FEWEST_ROWS = 32;             // of a row block
constexpr long FETCH_ROWS = 5;               // with fewer rows the hardware's own prefetch keeps up

// What a product is: where its parts lie and which columns are asked for.
struct Shape {
    const char* a;     // first row
    long lda;          // bytes from row to row
    long rows;
    long N;            // columns of the whole output, unpadded
    long n0, n1;       // columns asked for, n0 a multiple of 32
};

AF_INLINE long rows_of_block(const Shape& s, int tile_rows) {
    long fit = ROW_BLOCK_BYTES / (s.lda > 0 ? s.lda : 1) / tile_rows * tile_rows;
    if (fit < FEWEST_ROWS) fit = FEWEST_ROWS;
    return s.rows <= fit + fit / 2 ? s.rows : fit;
}

// What tile t of a panel's `tiles` fetches of the next panel (`bytes` long, at `next`). The first four, two or one
// tiles share it, spread over their inner loops: a burst of prefetches between tiles costs 3 to 20 %, this about 1 %
// with the weights in L3, and gains up to 25 % where they come from memory.
AF_INLINE Fetch share_of_next(const char* next, long bytes, long t, long tiles) {
    const long shares = tiles >= 4 ? 4 : tiles >= 2 ? 2 : 1;
    return {next + t * bytes / shares, t < shares ? 8 / shares : 0};
}

// Calls each(first row, rows, column of the panel, its weights, what to fetch) for all tiles; `bytes`: of a panel.
template <int ROWS, class Each>
AF_INLINE void sweep(const Shape& s, const void* b, long bytes, Each&& each) {
    const long block = rows_of_block(s, ROWS);
    for (long first = 0; first < s.rows; first += block) {
        const long rows = s.rows - first < block ? s.rows - first : block;
        const long tiles = (rows + ROWS - 1) / ROWS;
        for (long n = s.n0; n < s.n1; n += PANEL) {
            const char* panel = (const char*)b + n / PANEL * bytes;
            const bool last = n + PANEL >= s.n1 || rows < FETCH_ROWS;
            for (long t = 0; t < tiles; ++t) {
                const long r0 = rows * t / tiles, r1 = rows * (t + 1) / tiles;
                const Fetch fetch = last ? Fetch{panel, 0} : share_of_next(panel + bytes, bytes, t, tiles);
                each(first + r0, int(r1 - r0), n, panel, fetch);
            }
        }
    }
}

using TileCall = void (*)(const char* a, long lda, const char* b, long blocks, char* out, Fetch fetch);

// The tile functions for 1..Op::ROWS rows. Where a unit of their own compiles them, as AF_TILES_... at the end of a
// product's header says (KIND: template), others only name them (KIND: extern template).
template <class Op>
struct Tiles {
    static const TileCall calls[8];
};
template <class Op>
const TileCall Tiles<Op>::calls[8] = AF_BY_ROWS(tile, Op);

// Hands a tile to the epilogue: value(r, half) gives 16 columns of row r of the tile.
template <class Ep, class Value>
AF_INLINE void finish(const Shape& s, long row, int rows, long n, Ep& ep, const Value& value) {
    if (n + PANEL <= s.N) {
        for (int r = 0; r < rows; ++r) {
            vf left = value(r, 0), right = value(r, 1);
            ep(row + r, n, left, 16);
            ep(row + r, n + 16, right, 16);
        }
        return;
    }
    const long left = s.N - n;
    for (int r = 0; r < rows; ++r)
        for (int half = 0; half < 2 && half * 16 < left; ++half) {
            const long count = left - half * 16;
            ep(row + r, n + half * 16, value(r, half), int(count < 16 ? count : 16));
        }
}

}  // namespace gemm
}  // namespace af
