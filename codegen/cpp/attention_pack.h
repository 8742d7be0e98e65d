// In: keys and values of one head, rows with a stride. Out: both as panels of 32 columns that the tile functions read:
// keys [T/32][depth words][32 keys], values [D/32][key words][32 columns]; a word is a float or a pair of bf16.
#pragma once

#include "gemm_ops.h"

namespace af {
namespace attention {

constexpr long PANEL = 32;   // columns of a panel
constexpr long BLOCK = 128;  // bytes of one word of all its columns

AF_INLINE long round_up(long x, long unit) { return (x + unit - 1) / unit * unit; }

// The arithmetic: which multiply-add, what a word holds, how many keys are softened at once (their scores stay in L1).
template <bool Bf16>
struct Kind {
    using Op = gemm::Bf16;
    using Item = bf16;
    static constexpr long PER_WORD = 2, AT_ONCE = 512;
};
template <>
struct Kind<false> {
    using Op = gemm::F32;
    using Item = float;
    static constexpr long PER_WORD = 1, AT_ONCE = 256;
};

// Words of n items.
template <bool Bf16>
AF_INLINE long words(long n) {
    return Bf16 ? (n + 1) / 2 : n;
}

// c[r] += row r's word at `at` times one block of a panel.
template <class Op, int R>
AF_INLINE void multiply_word(typename Op::Acc (&c)[R][Op::VECS], const char* const (&row)[R], long at,
                             const char* block) {
    typename Op::Weight w[Op::VECS];
    AF_UNROLL for (int v = 0; v < Op::VECS; v++) w[v] = Op::weight(Op::raw(block + v * Op::LANES * 4), 0);
    AF_UNROLL for (int r = 0; r < R; r++) {
        const typename Op::Word x = Op::word(row[r] + at);
        AF_UNROLL for (int v = 0; v < Op::VECS; v++) Op::dot(c[r][v], x, w[v]);
    }
}

// out[r][32] = rows of a, `pitch` bytes apart, times one panel.
template <class Op, int R>
AF_NOINLINE void tile(const char* a, long pitch, const char* panel, long blocks, float* out) {
    const char* row[R];
    AF_UNROLL for (int r = 0; r < R; r++) row[r] = a + r * pitch;
    for (long n = 0; n < PANEL; n += Op::WIDTH) {
        typename Op::Acc c[R][Op::VECS];
        AF_UNROLL for (int r = 0; r < R; r++)
            AF_UNROLL for (int v = 0; v < Op::VECS; v++) c[r][v] = Op::zero();
        const char* from = panel + n * 4;
        long i = 0;
        for (; i + 4 <= blocks; i += 4, from += 4 * BLOCK)
            AF_UNROLL for (int j = 0; j < 4; j++) multiply_word<Op, R>(c, row, (i + j) * 4, from + j * BLOCK);
        for (; i < blocks; i++, from += BLOCK) multiply_word<Op, R>(c, row, i * 4, from);
        AF_UNROLL for (int r = 0; r < R; r++)
            AF_UNROLL for (int v = 0; v < Op::VECS; v++)
                std::memcpy(out + r * PANEL + n + v * Op::LANES, &c[r][v], sizeof(c[r][v]));
    }
}
using Tile = void (*)(const char* a, long pitch, const char* panel, long blocks, float* out);
template <class Op>
struct Tiles {
    static const Tile calls[8];
};
template <class Op>
const Tile Tiles<Op>::calls[8] = AF_BY_ROWS(tile, Op);

template <bool Bf16>
struct Layout {
    long key_panel;    // bytes of 32 keys
    long value_panel;  // bytes of 32 columns of all values
    long values;       // where they begin
    long bytes;
    Layout(long keys, long width)
        : key_panel(words<Bf16>(width) * BLOCK),
          value_panel(words<Bf16>(keys) * BLOCK),
          values((keys + PANEL - 1) / PANEL * key_panel),
          bytes(values + (width + PANEL - 1) / PANEL * value_panel) {}
};

// n elements from p as items, zeros up to `padded`, a multiple of 16.
template <class T, class Item>
AF_INLINE void copy_row(const T* p, long n, long padded, Item* out) {
    long i = 0;
    for (; i + 16 <= n; i += 16) store(out + i, load(p + i));
    if (i < n) {
        store(out + i, load(p + i, int(n - i)));
        i += 16;
    }
    for (; i < padded; i += 16) store(out + i, zero());
}

#if defined(AF_AVX512)
// 16 words from p, of which n items exist.
AF_INLINE __m512i row_words(const bf16* p, long n, bf16) {
    return _mm512_maskz_loadu_epi16(n >= 32 ? ~0u : (1u << n) - 1, p);
}
template <class T>
AF_INLINE __m512i row_words(const T* p, long n, float) {
    return _mm512_castps_si512(load(p, n < 16 ? int(n) : 16).v);
}
template <class T>
AF_INLINE __m512i row_words(const T* p, long n, bf16) {
    vf low = load(p, n < 16 ? int(n) : 16), high = n > 16 ? load(p + 16, n < 32 ? int(n - 16) : 16) : zero();
    return (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v);
}

// Rows become columns: pairs of registers exchange halves at distance 8, 4 (quarters), 2, 1 (within quarters).
AF_INLINE void transpose(__m512i (&x)[16]) {
    __m512i y[16];
    AF_UNROLL for (int i = 0; i < 8; i++) {
        int a = i / 4 * 8 + i % 4;
        y[a] = _mm512_unpacklo_epi32(x[i * 2], x[i * 2 + 1]);
        y[a + 4] = _mm512_unpackhi_epi32(x[i * 2], x[i * 2 + 1]);
    }
    // y[g * 8 + j], y[g * 8 + 4 + j]: low and high words of rows 8 g + 2 j and 8 g + 2 j + 1
    AF_UNROLL for (int i = 0; i < 8; i++) {
        const int g = i / 4, half = i / 2 % 2, j = i % 2;
        __m512i a = y[g * 8 + half * 4 + j * 2], b = y[g * 8 + half * 4 + j * 2 + 1];
        x[(g * 2 + j) * 4 + half * 2] = _mm512_unpacklo_epi64(a, b);
        x[(g * 2 + j) * 4 + half * 2 + 1] = _mm512_unpackhi_epi64(a, b);
    }
    // x[q * 4 + c]: word c of each quarter, of rows 4 q .. 4 q + 3
    AF_UNROLL for (int c = 0; c < 4; c++) {
        __m512i a = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x88), b = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x88);
        __m512i d = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xdd), e = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xdd);
        y[c] = _mm512_shuffle_i32x4(a, b, 0x88);
        y[8 + c] = _mm512_shuffle_i32x4(a, b, 0xdd);
        y[4 + c] = _mm512_shuffle_i32x4(d, e, 0x88);
        y[12 + c] = _mm512_shuffle_i32x4(d, e, 0xdd);
    }
    AF_UNROLL for (int i = 0; i < 16; i++) x[i] = y[i];
}

// A panel of `count` <= 32 keys.
template <bool Bf16, class T>
AF_NOINLINE void pack_key_panel(const T* k, long stride, long count, long width, char* out) {
    using Item = typename Kind<Bf16>::Item;
    const long all = words<Bf16>(width);
    for (long half = 0; half < 2; half++)
        for (long w = 0; w < all; w += 16) {
            __m512i x[16];
            const long rest = width - w * Kind<Bf16>::PER_WORD;
            AF_UNROLL for (int i = 0; i < 16; i++) {
                const bool there = half * 16 + i < count && rest > 0;
                x[i] = there ? row_words(k + (half * 16 + i) * stride + w * Kind<Bf16>::PER_WORD, rest, Item{})
                             : _mm512_setzero_si512();
            }
            transpose(x);
            char* to = out + w * BLOCK + half * 64;
            for (int i = 0; i < 16 && w + i < all; i++) _mm512_store_si512(to + i * BLOCK, x[i]);
        }
}
#else
template <bool Bf16, class T>
AF_NOINLINE void pack_key_panel(const T* k, long stride, long count, long width, char* out) {
    constexpr long SPAN = 64;  // items of a row at a time
    typename Kind<Bf16>::Item row[SPAN];
    const long all = words<Bf16>(width);
    for (long i = 0; i < PANEL; i++)
        for (long d = 0; d < width; d += SPAN) {
            copy_row(k + i * stride + d, i < count ? (width - d < SPAN ? width - d : SPAN) : 0, SPAN, row);
            const long first = d / Kind<Bf16>::PER_WORD, left = all - first, some = SPAN / Kind<Bf16>::PER_WORD;
            for (long w = 0; w < (left < some ? left : some); w++)
                std::memcpy(out + (first + w) * BLOCK + i * 4, (const char*)row + w * 4, 4);
        }
}
#endif

// One word of keys (two rows, or one): 32 columns from `n` that exist.
template <class T>
AF_INLINE void pack_value_word(const T* v, long stride, long keys, long n, float* out) {
    copy_row(v, keys > 0 ? (n < PANEL ? n : PANEL) : 0, PANEL, out);
    (void)stride;
}
template <class T>
AF_INLINE void pack_value_word(const T* v, long stride, long keys, long n, bf16* out) {
    bf16 two[2][PANEL];
    for (int i = 0; i < 2; i++) copy_row(v + i * stride, keys > i ? (n < PANEL ? n : PANEL) : 0, PANEL, two[i]);
    uint32_t words[PANEL];
    for (int d = 0; d < PANEL; d++) words[d] = uint32_t(two[0][d].bits) | uint32_t(two[1][d].bits) << 16;
    std::memcpy((void*)out, words, sizeof(words));
}

template <bool Bf16, class T>
AF_NOINLINE void pack_values(const T* v, long stride, long t0, long t1, long keys, long width, const Layout<Bf16>& at,
                           char* packed) {
    using Item = typename Kind<Bf16>::Item;
    constexpr long STEP = Kind<Bf16>::PER_WORD;
    for (long d = 0; d < width; d += PANEL) {
        char* panel = packed + at.values + d / PANEL * at.value_panel;
        const long end = t1 < keys ? t1 : words<Bf16>(keys) * STEP;
        for (long t = t0; t < end; t += STEP)
            pack_value_word(v + t * stride + d, stride, keys - t, width - d, (Item*)(panel + t / STEP * BLOCK));
    }
}

}  // namespace attention
}  // namespace af
