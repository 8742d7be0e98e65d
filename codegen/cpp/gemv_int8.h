// One or two rows of bf16 by int8 weights at the speed of memory (AVX-512).
//
// In and out as in gemm_weight_only.h. Instead of many weights the few activations are converted: to fixed point of 24
// bits, x = unit * (65536 c2 + 256 c1 + c0 - 2^23) with bytes c, unit = 2^(e - 22), 2^e <= max|x| < 2^(e + 1). Then
// three integer dot products and the sum of the codes give the product. Every bf16 of at least 2^-15 max|x| is exact;
// |error| <= (K + 16) eps sum |x w| + 4 eps max|x| sum |w|, eps = 2^-24.
#pragma once

#include "gemm_sweep.h"

#if defined(AF_AVX512)
namespace af {
namespace gemm AF_HIDDEN {

constexpr long MOST_FIXED = 8192;  // k of a row; longer rows take the general path

// One row of bf16 as three planes of bytes, [3][MOST_FIXED]. False: no unit serves (zero, tiny, inf, nan).
AF_INLINE bool fixed_point(const char* a, long K, uint8_t* planes, float* unit) {
    __m512i most = _mm512_setzero_si512();
    for (long k = 0; k < K; k += 32) {
        const __m512i x = _mm512_loadu_si512(a + k * 2);
        most = _mm512_max_epu16(most, _mm512_and_si512(x, _mm512_set1_epi16(0x7fff)));
    }
    const __m512i odd = _mm512_srli_epi32(most, 16), even = _mm512_and_si512(most, _mm512_set1_epi32(0xffff));
    const int e = int(_mm512_reduce_max_epu32(_mm512_max_epu32(odd, even)) >> 7) - 127;
    if (e < -80 || e > 100) return false;
    *unit = float_of(uint32_t(e - 22 + 127) << 23);
    const __m512 scale = _mm512_set1_ps(float_of(uint32_t(22 - e + 127) << 23));
    for (long k = 0; k < K; k += 16) {
        const __m512 x = load((const bf16*)(a + k * 2)).v;
        const __m512i u = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(x, scale)), _mm512_set1_epi32(1 << 23));
        _mm_storeu_si128((__m128i*)(planes + k), _mm512_cvtepi32_epi8(u));
        _mm_storeu_si128((__m128i*)(planes + MOST_FIXED + k), _mm512_cvtepi32_epi8(_mm512_srli_epi32(u, 8)));
        _mm_storeu_si128((__m128i*)(planes + 2 * MOST_FIXED + k), _mm512_cvtepi32_epi8(_mm512_srli_epi32(u, 16)));
    }
    return true;
}

// Sums of x * code for R rows in units of each row, one panel: out[r][32].
template <int R>
AF_NOINLINE void int8_rows(const uint8_t* planes, const char* b, long blocks, float* out) {
    const __m512i ones = _mm512_set1_epi8(1);
    __m512i c[R][3][2], codes[2];
    AF_UNROLL for (int v = 0; v < 2; ++v) {
        codes[v] = _mm512_setzero_si512();
        AF_UNROLL for (int r = 0; r < R; ++r)
            AF_UNROLL for (int p = 0; p < 3; ++p) c[r][p][v] = _mm512_setzero_si512();
    }
    for (long i = 0; i < blocks; ++i) {
        const __m512i raw[2] = {U8S8::raw_once(b + i * BLOCK), U8S8::raw_once(b + i * BLOCK + 64)};
        AF_UNROLL for (int v = 0; v < 2; ++v) U8S8::dot(codes[v], ones, raw[v]);
        AF_UNROLL for (int r = 0; r < R; ++r)
            AF_UNROLL for (int p = 0; p < 3; ++p) {
                const __m512i x = U8S8::word((const char*)planes + (r * 3 + p) * MOST_FIXED + i * 4);
                AF_UNROLL for (int v = 0; v < 2; ++v) U8S8::dot(c[r][p][v], x, raw[v]);
            }
    }
    AF_UNROLL for (int r = 0; r < R; ++r)
        AF_UNROLL for (int v = 0; v < 2; ++v) {
            const __m512i top = _mm512_sub_epi32(c[r][2][v], _mm512_slli_epi32(codes[v], 7));
            __m512 sum = _mm512_cvtepi32_ps(c[r][0][v]);
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(c[r][1][v]), _mm512_set1_ps(256.0f), sum);
            sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(top), _mm512_set1_ps(65536.0f), sum);
            _mm512_storeu_ps(out + r * PANEL + v * 16, sum);
        }
}

// The product of one or two rows, or false where a row has no fixed point (nothing is written then).
template <class Ep>
AF_INLINE bool int8_gemv(const Shape& s, const void* b, const float* sw, long K, long bytes, Ep& ep) {
    alignas(64) uint8_t planes[2 * 3 * MOST_FIXED];
    float unit[2];
    for (long r = 0; r < s.rows; ++r)
        if (!fixed_point(s.a + r * s.lda, K, planes + r * 3 * MOST_FIXED, unit + r)) return false;
    for (long n = s.n0; n < s.n1; n += PANEL) {
        alignas(64) float sums[2 * PANEL];
        const char* panel = (const char*)b + n / PANEL * bytes;
        if (s.rows == 1)
            int8_rows<1>(planes, panel, K / 4, sums);
        else
            int8_rows<2>(planes, panel, K / 4, sums);
        finish(s, 0, int(s.rows), n, ep, [&](int r, int half) AF_LAMBDA {
            return load(sums + r * PANEL + half * 16) * unit[r] * load(sw + n + half * 16);
        });
    }
    return true;
}

}  // namespace gemm
}  // namespace af
#endif
