// One row of 8-bit activations by int4 weights at the speed of memory (AVX-512).
//
// In, out and error as in gemm_w4a8.h. The tiles shift a block's low nibbles into the upper half of their bytes; with
// one row that shift is a fifth of the work. Here low nibbles are taken as they stand, unsigned, in sums of their own:
//   16 sum x (code - 8)  =  [sum over high x 16 (code - 8)]  +  16 [sum over low x code]  -  128 [sum over low x],
// the last term, one integer per group, being what the sums of the high nibbles start from.
#pragma once

#include "gemm_grouped.h"

#if defined(AF_AVX512)
namespace af {
namespace gemm AF_HIDDEN {

constexpr long LOW_SUMS = 4096;  // groups a row may have; more take the general path

// -128 * (sum of the codes that meet low nibbles: bytes 0..3 of every 8), per group.
template <int G>
AF_INLINE void low_sums(const char* a, long groups, int32_t* out) {
    const __m256i low = _mm256_set1_epi64x(0xffffffff);
    for (long g = 0; g < groups; ++g, a += G) {
        __m256i sum = _mm256_setzero_si256();
        AF_UNROLL for (int i = 0; i < G; i += 32) {
            __m256i codes = _mm256_and_si256(_mm256_loadu_si256((const __m256i*)(a + i)), low);
            sum = _mm256_add_epi64(sum, _mm256_sad_epu8(codes, _mm256_setzero_si256()));
        }
        __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
        out[g] = -128 * (_mm_cvtsi128_si32(half) + _mm_extract_epi32(half, 2));
    }
}

template <int G, bool ASYM>
AF_NOINLINE void int4_row(const Grouped& p, const char* a, const char* b, const int32_t* code_sums, const int32_t* low,
                          long n, float* out) {
    using Op = U8S4;
    const __m512i nibble = _mm512_set1_epi8(15);
    const char* const scales[1] = {a + p.codes};
    const Tables tables(p, n);
    Sums<Op, 1> sums(out);
    for (long g = 0; g < p.groups; ++g) {
        __m512i high[2] = {_mm512_set1_epi32(low[g]), _mm512_set1_epi32(low[g])}, under[2] = {Op::zero(), Op::zero()};
        for (int i = 0; i < G / 8; ++i, a += 8, b += BLOCK) {
            const __m512i first = Op::word(a), second = Op::word(a + 4);
            AF_UNROLL for (int v = 0; v < 2; ++v) {
                const __m512i raw = Op::raw(b + v * 64);
                Op::dot(under[v], first, _mm512_and_si512(raw, nibble));
                Op::dot(high[v], second, Op::weight(raw, 1));
            }
        }
        __m512i c[1][2];
        AF_UNROLL for (int v = 0; v < 2; ++v) c[0][v] = _mm512_add_epi32(high[v], _mm512_slli_epi32(under[v], 4));
        fold<Op, 1, ASYM>(p, tables, sums, c, scales, code_sums, g, 0);
    }
    sums.done(out);
}

template <int G, bool ASYM, class Ep>
AF_INLINE void int4_gemv(const Grouped& p, const Shape& s, const void* b, Ep& ep) {
    alignas(64) int32_t low[LOW_SUMS];
    alignas(64) int32_t code_sums[ASYM ? LOW_SUMS : 1];
    low_sums<G>(s.a, p.groups, low);
    if (ASYM) sum_codes<G>(p, s.a, 1, code_sums);
    for (long n = s.n0; n < s.n1; n += PANEL) {
        alignas(64) float sums[PANEL];
        int4_row<G, ASYM>(p, s.a, (const char*)b + n * p.codes / 2, code_sums, low, n, sums);
        finish(s, 0, 1, n, ep, [&](int, int half) AF_LAMBDA { return load(sums + half * 16) * U8S4::UNIT; });
    }
}

}  // namespace gemm
}  // namespace af
#endif
