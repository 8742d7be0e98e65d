// Products in float and in bf16.
//
// In: rows of floats, or of bf16 zero-padded to a multiple of 32; weights in panels of 32 columns: [N/32][K][32] floats
// or [N/32][Kp/2][32][2] bf16. Out: columns [n0, n1) of y[r][n] = sum_k x[r][k] w[n][k], through the epilogue
// ep(row, n, vf, count).
// Error: float sums in another order than k's: |error| <= (K + 8) eps sum_k |x w| with eps = 2^-24; the products of
// bf16 are exact in float, except that vdpbf16ps takes subnormal inputs as zero.
#pragma once

#include "gemm_sweep.h"

namespace af {
namespace gemm AF_HIDDEN {

template <class Op, class Ep>
AF_INLINE void product(const Shape& s, const void* b, long blocks, Ep& ep) {
    const auto each = [&](long row, int rows, long n, const char* panel, Fetch fetch) AF_LAMBDA {
        alignas(64) float sums[Op::ROWS * PANEL];
        Tiles<Op>::calls[rows - 1](s.a + row * s.lda, s.lda, panel, blocks, (char*)sums, fetch);
        finish(s, row, rows, n, ep, [&](int r, int half) AF_LAMBDA { return load(sums + r * PANEL + half * 16); });
    };
    sweep<Op::ROWS>(s, b, blocks * BLOCK, each);
}

}  // namespace gemm

template <class Ep>
void gemm_f32(const char* a, long lda, long rows, const void* b, long K, long N, long n0, long n1, Ep&& ep) {
    gemm::product<gemm::F32>({a, lda, rows, N, n0, n1}, b, K, ep);
}

template <class Ep>
void gemm_bf16(const char* a, long lda, long rows, const void* b, long K, long N, long n0, long n1, Ep&& ep) {
    gemm::product<gemm::Bf16>({a, lda, rows, N, n0, n1}, b, gemm::round_up(K, 32) / 2, ep);
}

}  // namespace af

#define AF_TILES_GEMM_F32(KIND) KIND struct af::gemm::Tiles<af::gemm::F32>;
#define AF_TILES_GEMM_BF16(KIND) KIND struct af::gemm::Tiles<af::gemm::Bf16>;
