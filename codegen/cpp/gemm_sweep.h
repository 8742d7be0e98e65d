// In: rows of activations, a range of columns, packed weights. Out: every tile of the product computed once and handed
// to the epilogue, 16 columns of a row at a time.
//
// Order: blocks of rows whose activations stay in L2, then panels of weights, then tiles of rows. Rows are dealt to
// tiles evenly (9 rows are 5 + 4, not 8 + 1), so no count of rows falls off a cliff.
#pragma once

#include "gemm_tile.h"

namespace af {
namespace gemm {

constexpr long ROW_BLOCK_BYTES = 128 << 10;  // activations of a row block: an eighth of an L2 of 1 MB
constexpr long FEWEST_ROWS = 32;             // of a row block

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

// A share of the next panel that a tile fetches into L2 while it works: the first four, two or one tiles do so, spread
// over their inner loop. (A burst of prefetches between tiles costs 3 to 20 %; this costs nothing measurable with the
// weights in L3 and gains up to 25 % where they come from memory.)
struct Ahead {
    int share, shares;  // shares = 0: none
};

// Calls each(first row, rows, column of the panel, ahead) for all tiles.
template <int ROWS, class Each>
AF_INLINE void sweep(const Shape& s, Each&& each) {
    const long block = rows_of_block(s, ROWS);
    for (long first = 0; first < s.rows; first += block) {
        const long rows = s.rows - first < block ? s.rows - first : block;
        const long tiles = (rows + ROWS - 1) / ROWS;
        const int shares = tiles >= 4 ? 4 : tiles >= 2 ? 2 : 1;
        for (long n = s.n0; n < s.n1; n += PANEL)
            for (long t = 0; t < tiles; ++t) {
                const long r0 = rows * t / tiles, r1 = rows * (t + 1) / tiles;
                const bool fetch = t < shares && r1 - r0 == ROWS && n + PANEL < s.n1;
                each(first + r0, int(r1 - r0), n, Ahead{int(t), fetch ? shares : 0});
            }
    }
}

using TileCall = void (*)(const char* a, long lda, const char* b, long blocks, char* out, const char* ahead);

// The tile function for 1..Op::ROWS rows.
template <class Op>
AF_INLINE TileCall tile_of(int rows) {
    static const TileCall calls[8] = {
        tile<Op, 1>,
        tile<Op, 2>,
        tile<Op, 3>,
        tile<Op, 4>,
        tile<Op, Op::ROWS < 5 ? Op::ROWS : 5>,
        tile<Op, Op::ROWS < 6 ? Op::ROWS : 6>,
        tile<Op, Op::ROWS < 7 ? Op::ROWS : 7>,
        tile<Op, Op::ROWS < 8 ? Op::ROWS : 8>,
    };
    return calls[rows - 1];
}

// Runs the tile of `rows` rows at `a` on panel n.
template <class Op>
AF_INLINE void run_tile(const Shape& s, const char* a, int rows, const char* b, long n, long blocks, Ahead ahead,
                        void* out) {
    const char* panel = b + n / PANEL * blocks * BLOCK;
    const char* next = panel + blocks * BLOCK;
    char* sums = (char*)out;
    const long part = ahead.share * blocks * BLOCK;
    switch (ahead.shares) {
        case 4: return tile<Op, Op::ROWS, 2>(a, s.lda, panel, blocks, sums, next + part / 4);
        case 2: return tile<Op, Op::ROWS, 4>(a, s.lda, panel, blocks, sums, next + part / 2);
        case 1: return tile<Op, Op::ROWS, 8>(a, s.lda, panel, blocks, sums, next);
        default: tile_of<Op>(rows)(a, s.lda, panel, blocks, sums, nullptr);
    }
}

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
