// Products of 8-bit codes: one scale per row and one per column, or one of each per group of G along K.
//
// In: rows of the form u8t (x ~= code * s + m: uint8 codes zero-padded to Kp, a multiple of 64; s and m as floats at
// byte Kp), int8 weights in panels [N/32][Kp/4][32][4], sw[Np], csw[Np] = sw * column sum of the codes.
// Out: columns [n0, n1) of  s * sw * sum(code * code) + m * csw  through the epilogue.
// Error: the integer sum is exact for K <= 65,000; what follows rounds four times, so that
// |error| <= 4 eps (|s sw sum| + |m csw|), eps = 2^-24.
// Grouped: rows of the form u8g<G>, tables sw and sums of gemm_grouped.h, K a multiple of G;
// |error| <= (3 + K/G) eps (sum over groups of the same terms).
#pragma once

#include "gemm_grouped.h"

namespace af {

template <class Ep>
void gemm_w8a8(const char* a, long lda, long rows, const int8_t* b, const float* sw, const float* csw, long K, long N,
               long n0, long n1, Ep&& ep) {
    using Op = gemm::U8S8;
    constexpr long PANEL = gemm::PANEL;
    const long codes = gemm::round_up(K, 64);
    const gemm::Shape shape{a, lda, rows, N, n0, n1};
    const auto each = [&](long row, int count, long n, const char* panel, gemm::Fetch fetch) AF_LAMBDA {
        alignas(64) int32_t sums[Op::ROWS * PANEL];
        const char* first = a + row * lda;
        gemm::Tiles<Op>::calls[count - 1](first, lda, panel, codes / 4, (char*)sums, fetch);
        const vf scale[2] = {load(sw + n), load(sw + n + 16)}, sum[2] = {load(csw + n), load(csw + n + 16)};
        gemm::finish(shape, row, count, n, ep, [&](int r, int half) AF_LAMBDA {
            float of_row[2];
            std::memcpy(of_row, first + r * lda + codes, 8);
            return fma(load(sums + r * PANEL + half * 16) * scale[half], set1(of_row[0]), sum[half] * of_row[1]);
        });
    };
    gemm::sweep<Op::ROWS>(shape, b, codes * PANEL, each);
}

template <int G, class Ep>
void gemm_w8a8_grouped(const char* a, long lda, long rows, const int8_t* b, const void* sw, const void* sums, long K,
                       long N, long n0, long n1, Ep&& ep) {
    const gemm::Grouped parts{lda, gemm::round_up(K, 64), K / G, (const char*)sw, (const char*)sums};
    gemm::grouped_product<gemm::U8S8, G, false>(parts, {a, lda, rows, N, n0, n1}, b, ep);
}

}  // namespace af

#define AF_TILES_GEMM_W8A8(KIND) KIND struct af::gemm::Tiles<af::gemm::U8S8>;
#define AF_TILES_GEMM_W8A8_GROUPED(KIND, G) KIND struct af::gemm::GroupedTiles<af::gemm::U8S8, G, false>;
