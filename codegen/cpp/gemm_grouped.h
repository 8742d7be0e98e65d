// Tiles of products whose scales change along K: integer sums of one group, then scaled into float sums.
//
// In: rows of the form u8g<G> (x ~= code * s + m per group; s then m as floats behind the codes), weights
// w = sw * (code - z). Tables of 16-bit entries [N/32][K/G][16][2], 64 bytes for a panel and group; column c of a panel
// lies in half c / 16 of dword c % 16, so that one load serves two registers. sw: bf16. sums: of int8 codes
// sum(code) as an integer; of int4 codes 16 * sum(code - z) + ((z - 8) & 15). Per group g a tile adds
//   sw * (s * sum(code_x * (code_w - z))  +  m * sum(code_w - z)),
// both sums exact integers: what z changes of the first, -(z - 8) * sum(code_x), joins it before it becomes a float.
// With 6 and more rows the float sums do not fit the registers beside the integers; they then live in L1, by design
// and not by the compiler's choice.
#pragma once

#include "gemm_sweep.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace af {
namespace gemm AF_HIDDEN {

struct Grouped {
    long lda;
    long codes;      // bytes of codes in a row: K rounded up to 64
    long groups;
    const char *sw, *sums;
};

constexpr long ENTRIES = 64;  // bytes of a table for one panel and group

// The float sums of a tile part: in registers for few rows, in the output buffer for more.
template <class Op, int R, bool KEEP = (R <= Op::KEEP_ROWS)>
struct Sums {
    typename Op::Float f[R][Op::VECS];
    AF_INLINE explicit Sums(float*) {
        AF_UNROLL for (int r = 0; r < R; ++r)
            AF_UNROLL for (int v = 0; v < Op::VECS; ++v) f[r][v] = typename Op::Float{};
    }
    AF_INLINE typename Op::Float get(int r, int v) const { return f[r][v]; }
    AF_INLINE void set(int r, int v, typename Op::Float x) { f[r][v] = x; }
    AF_INLINE void done(float* out) const {
        AF_UNROLL for (int r = 0; r < R; ++r)
            AF_UNROLL for (int v = 0; v < Op::VECS; ++v) Op::keep(out + r * PANEL + v * Op::LANES, f[r][v]);
    }
};
template <class Op, int R>
struct Sums<Op, R, false> {
    float* at;
    AF_INLINE explicit Sums(float* out) : at(out) {
        AF_UNROLL for (int r = 0; r < R; ++r)
            AF_UNROLL for (int v = 0; v < Op::VECS; ++v) set(r, v, typename Op::Float{});
    }
    AF_INLINE typename Op::Float get(int r, int v) const { return Op::floats(at + r * PANEL + v * Op::LANES); }
    AF_INLINE void set(int r, int v, typename Op::Float x) {
        Op::keep(at + r * PANEL + v * Op::LANES, x);
        asm volatile("" ::: "memory");  // else GCC keeps some sums in registers over the loop and spills others
    }
    AF_INLINE void done(float*) const {}
};

// The tables of one panel.
struct Tables {
    const char *sw, *sums;
    AF_INLINE Tables(const Grouped& p, long n)
        : sw(p.sw + n / PANEL * p.groups * ENTRIES), sums(p.sums + n / PANEL * p.groups * ENTRIES) {}
};

// Scales the integer sums of group g into the float sums, in units of 1 / Op::UNIT; n: first column of the part in the
// panel, code_sums [R][groups]: the row's sum of codes, negated, in both halves of a dword.
template <class Op, int R, bool ASYM>
AF_INLINE void fold(const Grouped& p, const Tables& t, Sums<Op, R>& sums, typename Op::Acc (&c)[R][Op::VECS],
                    const char* const (&scales)[R], const int32_t* code_sums, long g, long n) {
    typename Op::Float scale[Op::VECS], offset[Op::VECS];
    typename Op::Acc zero[Op::VECS];
    AF_UNROLL for (int v = 0; v < Op::VECS; ++v) {
        const long column = n + v * Op::LANES, at = g * ENTRIES + column % 16 * 4;
        scale[v] = Op::bf16_half(t.sw + at, column / 16);
        const typename Op::Entries words = Op::raw_entries(t.sums + at);
        offset[v] = Op::value(Op::template column_sum<ASYM>(words, column / 16));
        if constexpr (ASYM) zero[v] = Op::zero_point(words, column / 16);
    }
    AF_UNROLL for (int r = 0; r < R; ++r) {
        const typename Op::Float s = Op::splat(scales[r] + g * 4), m = Op::splat(scales[r] + (p.groups + g) * 4);
        AF_UNROLL for (int v = 0; v < Op::VECS; ++v) {
            if (ASYM) Op::add_shorts(c[r][v], zero[v], code_sums[r * p.groups + g]);
            const typename Op::Float value = Op::madd(Op::value(c[r][v]), s, offset[v] * m);
            sums.set(r, v, Op::madd(value, scale[v], sums.get(r, v)));
        }
    }
}

template <class Op, int G, bool ASYM, int R>
AF_NOINLINE void grouped_tile(const Grouped& p, const char* a, const char* b, const int32_t* code_sums, long n,
                              float* out, Fetch fetch) {
    constexpr long BLOCKS = G / (4 * Op::WORDS);
    const Tables tables(p, n);
    const char* scales[R];
    AF_UNROLL for (int r = 0; r < R; ++r) scales[r] = a + r * p.lda + p.codes;
    for (int part = 0; part < PANEL / Op::WIDTH; ++part, b += Op::WIDTH * 4, out += Op::WIDTH) {
        Sums<Op, R> sums(out);
        for (long g = 0; g < p.groups; ++g) {
            const char* row[R];
            AF_UNROLL for (int r = 0; r < R; ++r) row[r] = a + r * p.lda + g * G;
            typename Op::Acc c[R][Op::VECS];
            multiply<Op, R, (R == 1 || 2 * R + 2 == Op::ENOUGH) ? 2 : 1>(c, row, b + g * BLOCKS * BLOCK, BLOCKS, fetch);
            fold<Op, R, ASYM>(p, tables, sums, c, scales, code_sums, g, part * Op::WIDTH);
        }
        sums.done(out);
    }
}

using GroupedCall = void (*)(const Grouped&, const char*, const char*, const int32_t*, long, float*, Fetch);

template <class Op, int G, bool ASYM>
struct GroupedTiles {
    static const GroupedCall calls[8];
};
template <class Op, int G, bool ASYM>
const GroupedCall GroupedTiles<Op, G, ASYM>::calls[8] = AF_BY_ROWS(grouped_tile, Op, G, ASYM);

// Sum of G unsigned bytes.
template <int G>
AF_INLINE int sum_of_codes(const char* p) {
#if defined(__SSE2__)
    __m128i sum = _mm_setzero_si128();
    AF_UNROLL for (int i = 0; i < G; i += 16)
        sum = _mm_add_epi64(sum, _mm_sad_epu8(_mm_loadu_si128((const __m128i*)(p + i)), _mm_setzero_si128()));
    return _mm_cvtsi128_si32(sum) + _mm_extract_epi16(sum, 4);
#else
    int sum = 0;
    for (int i = 0; i < G; ++i) sum += (unsigned char)p[i];
    return sum;
#endif
}

// Minus the sum of codes (at most 255 * 128) for every row and group, in both halves of a dword.
template <int G>
inline void sum_codes(const Grouped& p, const char* a, long rows, int32_t* out) {
    for (long r = 0; r < rows; ++r, a += p.lda)
        for (long g = 0; g < p.groups; ++g)
            *out++ = int32_t((uint32_t(-sum_of_codes<G>(a + g * G)) & 0xffffu) * 0x10001u);
}

constexpr long CODE_SUMS = 8192;  // sums kept at a time

template <class Op, int G, bool ASYM, class Ep>
AF_INLINE void grouped_product(const Grouped& p, const Shape& all, const void* b, Ep& ep) {
    const long bytes = p.codes * PANEL / Op::WORDS;
    alignas(64) int32_t code_sums[ASYM ? CODE_SUMS : 1];
    long chunk = all.rows;
    if (ASYM && chunk * p.groups > CODE_SUMS) chunk = CODE_SUMS / p.groups < 8 ? 1 : CODE_SUMS / p.groups / 8 * 8;
    for (long first = 0; first < all.rows; first += chunk) {
        Shape s = all;
        s.a += first * s.lda;
        s.rows = all.rows - first < chunk ? all.rows - first : chunk;
        if (ASYM) sum_codes<G>(p, s.a, s.rows, code_sums);
        const auto each = [&](long row, int rows, long n, const char* panel, Fetch fetch) AF_LAMBDA {
            alignas(64) float sums[Op::ROWS * PANEL];
            const int32_t* of_rows = code_sums + (ASYM ? row * p.groups : 0);
            GroupedTiles<Op, G, ASYM>::calls[rows - 1](p, s.a + row * s.lda, panel, of_rows, n, sums, fetch);
            const auto value = [&](int r, int half) AF_LAMBDA { return load(sums + r * PANEL + half * 16) * Op::UNIT; };
            finish(s, first + row, rows, n, ep, value);
        };
        sweep<Op::ROWS>(s, b, bytes, each);
    }
}

}  // namespace gemm
}  // namespace af
