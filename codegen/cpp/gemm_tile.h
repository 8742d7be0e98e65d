// In: rows of activations, one weight panel of 32 columns. Out: a tile of up to Op::ROWS x 32 sums, in a buffer in L1.
//
// The tile functions know nothing of the epilogue: each is compiled once per unit, and no epilogue, however large, can
// push an accumulator out of the registers of the inner loop. The buffer's cost (16 stores and loads a tile) is below
// 1 % of a tile at K = 384.
#pragma once

#include "gemm_ops.h"

namespace af {
namespace gemm AF_HIDDEN {

constexpr long PANEL = 32;     // columns of a panel
constexpr long BLOCK = 128;    // bytes of a panel's block: 32 columns x 4 bytes

AF_INLINE long round_up(long x, long unit) { return (x + unit - 1) / unit * unit; }

// Tiles of few rows run several sums side by side, so that the latency of the multiply-add does not show.
template <class Op, int R>
constexpr int chains() {
    return R * Op::VECS >= Op::ENOUGH ? 1 : R * Op::VECS >= 3 ? 2 : 4;
}

// Adds one block into the accumulators: a[r] + at points at row r's words, b at the columns.
template <class Op, int R>
AF_INLINE void multiply_block(typename Op::Acc (&c)[R][Op::VECS], const char* const (&a)[R], long at, const char* b) {
    typename Op::Raw raw[Op::VECS];
    AF_UNROLL for (int v = 0; v < Op::VECS; ++v) raw[v] = Op::raw(b + v * Op::LANES * 4);
    AF_UNROLL for (int i = 0; i < Op::WORDS; ++i) {
        typename Op::Weight w[Op::VECS];
        AF_UNROLL for (int v = 0; v < Op::VECS; ++v) w[v] = Op::weight(raw[v], i);
        AF_UNROLL for (int r = 0; r < R; ++r) {
            typename Op::Word x = Op::word(a[r] + at + i * 4);
            AF_UNROLL for (int v = 0; v < Op::VECS; ++v) Op::dot(c[r][v], x, w[v]);
        }
    }
}

// Cache lines to ask for, into L2, while a tile works: `lines` per 4 blocks (8 lines) of the panel.
struct Fetch {
    const char* at;
    long lines;
    AF_INLINE void step() {
        for (long i = 0; i < lines; ++i, at += 64) __builtin_prefetch(at, 0, 2);
    }
};

// Sums over `blocks` blocks, a multiple of 4 unless Op::REMAINDER.
template <class Op, int R, int S = chains<Op, R>()>
AF_INLINE void multiply(typename Op::Acc (&sum)[R][Op::VECS], const char* const (&a)[R], const char* b, long blocks,
                        Fetch& fetch) {
    typename Op::Acc c[S][R][Op::VECS];
    AF_UNROLL for (int s = 0; s < S; ++s)
        AF_UNROLL for (int r = 0; r < R; ++r)
            AF_UNROLL for (int v = 0; v < Op::VECS; ++v) c[s][r][v] = Op::zero();
    long i = 0, at = 0;
    for (; i + 4 <= blocks; i += 4, at += 16 * Op::WORDS, b += 4 * BLOCK) {
        fetch.step();
        AF_UNROLL for (int s = 0; s < 4; ++s)
            multiply_block<Op, R>(c[s % S], a, at + s * 4 * Op::WORDS, b + s * BLOCK);
    }
    if (Op::REMAINDER)
        for (; i < blocks; ++i, at += 4 * Op::WORDS, b += BLOCK) multiply_block<Op, R>(c[0], a, at, b);
    AF_UNROLL for (int r = 0; r < R; ++r)
        AF_UNROLL for (int v = 0; v < Op::VECS; ++v) {
            sum[r][v] = c[0][r][v];
            AF_UNROLL for (int s = 1; s < S; ++s) sum[r][v] = Op::add(sum[r][v], c[s][r][v]);
        }
}

// Raw sums of a tile, Op::Acc lanes in order: out[r][32].
template <class Op, int R>
AF_NOINLINE void tile(const char* a, long lda, const char* b, long blocks, char* out, Fetch fetch) {
    const char* row[R];
    AF_UNROLL for (int r = 0; r < R; ++r) row[r] = a + r * lda;
    for (int part = 0; part < PANEL / Op::WIDTH; ++part, b += Op::WIDTH * 4, out += Op::WIDTH * 4) {
        typename Op::Acc c[R][Op::VECS];
        multiply<Op, R>(c, row, b, blocks, fetch);
        AF_UNROLL for (int r = 0; r < R; ++r)
            AF_UNROLL for (int v = 0; v < Op::VECS; ++v)
                std::memcpy(out + r * PANEL * 4 + v * Op::LANES * 4, &c[r][v], sizeof(c[r][v]));
    }
}

}  // namespace gemm
}  // namespace af
