// Products of 8-bit activations with scales per group of G along K, and int4 weights likewise.
//
// In: rows of the form u8g<G>; int4 codes in panels [N/32][Kp/8][32][4] (byte j: code of k = j in the low, of
// k = j + 4 less 8, in two's complement, in the high nibble);
// w = sw * (code - z), z a whole number 0..15, 8 where symmetric; tables sw and sums of gemm_grouped.h. K a multiple of
// G. Out: columns [n0, n1) through the epilogue.
// Error: with T the sum over groups of sw (|s sum(code_x (code - z))| + |m sum(code - z)|) and eps = 2^-24,
// |error| <= (3 + K/G) eps T.
#pragma once

#include "gemm_grouped.h"
#include "gemv_int4.h"

namespace af {

template <int G, bool ASYM, class Ep>
void gemm_w4a8(const char* a, long lda, long rows, const void* b, const void* sw, const void* sums, long K, long N,
               long n0, long n1, Ep&& ep) {
    const gemm::Grouped parts{lda, gemm::round_up(K, 64), K / G, (const char*)sw, (const char*)sums};
#if defined(AF_AVX512)
    if (rows == 1 && parts.groups <= gemm::LOW_SUMS)
        return gemm::int4_gemv<G, ASYM>(parts, {a, lda, rows, N, n0, n1}, b, ep);
#endif
    gemm::grouped_product<gemm::U8S4, G, ASYM>(parts, {a, lda, rows, N, n0, n1}, b, ep);
}

}  // namespace af

#define AF_TILES_GEMM_W4A8(KIND, G, ASYM) KIND struct af::gemm::GroupedTiles<af::gemm::U8S4, G, ASYM>;
