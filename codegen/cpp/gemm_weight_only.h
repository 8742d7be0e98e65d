// Products of bf16 activations with int8 or int4 weights.
//
// In: rows of bf16 zero-padded to a multiple of 32. int8: panels [N/32][Kp/4][32][4], sw[Np]. int4: panels
// [N/32][Kp/8][32][4] (see gemm_w4a8.h), w = sw * (code - z), z a whole number 0..15, 8 where symmetric; table sw of
// gemm_grouped.h and, where asymmetric, zeros [N/32][K/G][16] bytes: z of a panel's columns c in the low, c + 16 in the
// high nibble of byte c. K a multiple of G. Out: columns [n0, n1) through the epilogue.
// Codes are exact in bf16; scales are applied to the float sums of a group, so nothing is rounded to bf16 on the way:
// |error| <= (K + 16) eps sum_k |x| |sw| (|code - 8| + asymmetric: |8 - z|), eps = 2^-24
// (one or two rows by int8: see gemv_int8.h).
//
// Every tile unpacks its weights in registers: shifts, conversions and permutations run beside the multiply-adds, so
// that from 8 rows on unpacking a panel to L1 first is slower (measured: 85 against 92 % of the peak for int8).
#pragma once

#include "gemm_grouped.h"
#include "gemv_int8.h"

namespace af {
namespace gemm AF_HIDDEN {

struct WeightOnly {
    long lda;
    long K;
    long group;      // k that share a scale
    const char *sw, *zeros;
    long groups() const { return K / group; }
};

template <class Op, bool ASYM, int R>
AF_NOINLINE void weight_only_tile(const WeightOnly& p, const char* a, const char* b, const float* x_sums, long n,
                                  float* out, Fetch fetch) {
    const long groups = p.groups(), blocks = p.group / (2 * Op::WORDS);
    const char *sw = p.sw + n / PANEL * groups * ENTRIES, *zeros = p.zeros + n / PANEL * groups * 16;
    for (int part = 0; part < PANEL / Op::WIDTH; ++part, b += Op::WIDTH * 4, out += Op::WIDTH) {
        Sums<Op, R> sums(out);
        for (long g = 0; g < groups; ++g) {
            const char* row[R];
            AF_UNROLL for (int r = 0; r < R; ++r) row[r] = a + r * p.lda + g * p.group * 2;
            typename Op::Acc c[R][Op::VECS];
            multiply<Op, R>(c, row, b + g * blocks * BLOCK, blocks, fetch);
            typename Op::Float scale[Op::VECS], zero[Op::VECS];
            AF_UNROLL for (int v = 0; v < Op::VECS; ++v) {
                const long column = part * Op::WIDTH + v * Op::LANES;
                scale[v] = Op::bf16_half(sw + g * ENTRIES + column % 16 * 4, column / 16);
                if (ASYM) zero[v] = Op::eight_less(zeros + g * 16 + column % 16, column / 16);
            }
            AF_UNROLL for (int r = 0; r < R; ++r)
                AF_UNROLL for (int v = 0; v < Op::VECS; ++v) {
                    typename Op::Float sum = c[r][v];
                    if (ASYM) sum = Op::madd(zero[v], Op::splat((const char*)(x_sums + r * groups + g)), sum);
                    sums.set(r, v, Op::madd(sum, scale[v], sums.get(r, v)));
                }
        }
        sums.done(out);
    }
}

using WeightOnlyCall = void (*)(const WeightOnly&, const char*, const char*, const float*, long, float*, Fetch);

template <class Op, bool ASYM>
struct WeightOnlyTiles {
    static const WeightOnlyCall calls[8];
};
template <class Op, bool ASYM>
const WeightOnlyCall WeightOnlyTiles<Op, ASYM>::calls[8] = AF_BY_ROWS(weight_only_tile, Op, ASYM);

// Sums of x over every group, [rows][groups].
inline void sum_rows(const WeightOnly& p, const char* a, long rows, float* out) {
    for (long r = 0; r < rows; ++r, a += p.lda)
        for (long k = 0; k < p.K; k += p.group) {
            vf sum = set1(0.0f);
            for (long i = k; i < k + p.group; i += 16) sum += load((const bf16*)(a + i * 2));
            *out++ = hsum(sum);
        }
}

template <class Op, bool ASYM, class Ep>
AF_INLINE void weight_only_product(const WeightOnly& p, const Shape& all, const void* b, long bytes, Ep& ep) {
    const long groups = p.groups();
    alignas(64) float x_sums[ASYM ? CODE_SUMS : 1];
    long chunk = all.rows;
    if (ASYM && chunk * groups > CODE_SUMS) chunk = CODE_SUMS / groups < 8 ? 1 : CODE_SUMS / groups / 8 * 8;
    for (long first = 0; first < all.rows; first += chunk) {
        Shape s = all;
        s.a += first * s.lda;
        s.rows = all.rows - first < chunk ? all.rows - first : chunk;
        if (ASYM) sum_rows(p, s.a, s.rows, x_sums);
        const auto each = [&](long row, int rows, long n, const char* panel, Fetch fetch) AF_LAMBDA {
            alignas(64) float sums[Op::ROWS * PANEL];
            const float* of_rows = x_sums + (ASYM ? row * groups : 0);
            WeightOnlyTiles<Op, ASYM>::calls[rows - 1](p, s.a + row * s.lda, panel, of_rows, n, sums, fetch);
            const auto value = [&](int r, int half) AF_LAMBDA { return load(sums + r * PANEL + half * 16) * Op::UNIT; };
            finish(s, first + row, rows, n, ep, value);
        };
        sweep<Op::ROWS>(s, b, bytes, each);
    }
}

}  // namespace gemm

template <class Ep>
void gemm_w8(const char* a, long lda, long rows, const int8_t* b, const float* sw, long K, long N, long n0, long n1,
             Ep&& ep) {
    using Op = gemm::Bf16S8;
    const long k = gemm::round_up(K, 32), bytes = gemm::round_up(K, 64) * gemm::PANEL;
    const gemm::Shape shape{a, lda, rows, N, n0, n1};
#if defined(AF_AVX512)
    if (rows <= 2 && k <= gemm::MOST_FIXED && gemm::int8_gemv(shape, b, sw, k, bytes, ep)) return;
#endif
    const auto each = [&](long row, int count, long n, const char* panel, gemm::Fetch fetch) AF_LAMBDA {
        alignas(64) float sums[Op::ROWS * gemm::PANEL];
        gemm::Tiles<Op>::calls[count - 1](a + row * lda, lda, panel, k / (2 * Op::WORDS), (char*)sums, fetch);
        const vf scale[2] = {load(sw + n) * Op::UNIT, load(sw + n + 16) * Op::UNIT};
        const auto value = [&](int r, int half) AF_LAMBDA {
            return load(sums + r * gemm::PANEL + half * 16) * scale[half];
        };
        gemm::finish(shape, row, count, n, ep, value);
    };
    gemm::sweep<Op::ROWS>(shape, b, bytes, each);
}

template <int G, bool ASYM, class Ep>
void gemm_w4(const char* a, long lda, long rows, const void* b, const void* sw, const void* zeros, long K, long N,
             long n0, long n1, Ep&& ep) {
    const gemm::WeightOnly parts{lda, K, G, (const char*)sw, (const char*)zeros};
    const long bytes = gemm::round_up(K, 64) * gemm::PANEL / 2;
    gemm::weight_only_product<gemm::Bf16S4, ASYM>(parts, {a, lda, rows, N, n0, n1}, b, bytes, ep);
}

}  // namespace af

#define AF_TILES_GEMM_W8(KIND) KIND struct af::gemm::Tiles<af::gemm::Bf16S8>;
#define AF_TILES_GEMM_W4(KIND, G, ASYM) KIND struct af::gemm::WeightOnlyTiles<af::gemm::Bf16S4, ASYM>;
