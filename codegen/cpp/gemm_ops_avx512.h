// In: one block of a weight panel (128 bytes) and words of activations (4 bytes). Out: products summed in zmm
// registers of 16 columns. Each Op names its accumulator, how a block unfolds into WORDS steps of 32 columns, and the
// multiply-add of one step.
//
// The multiply-adds are inline assembly: with the intrinsics GCC 12 copies every accumulator inside the loop.
#pragma once

#include <immintrin.h>

#include "vec.h"

namespace af {
namespace gemm AF_HIDDEN {

// What every form shares: 8 rows by 2 registers of 16 columns leave half the registers to weights and constants.
struct OpBase {
    static constexpr int ROWS = 8;    // rows of the largest tile
    static constexpr int VECS = 2;    // registers across a tile
    static constexpr int WIDTH = 32;  // columns of a tile
    static constexpr int LANES = 16;  // columns of a register
    static constexpr int ENOUGH = 8;    // sums that hide the latency of a multiply-add
    static constexpr bool REMAINDER = false;  // may the count of blocks be no multiple of 4?
    using Word = __m512i;
    using Raw = __m512i;
    static AF_INLINE Word word(const char* a) {
        int32_t x;
        std::memcpy(&x, a, 4);
        return _mm512_set1_epi32(x);
    }
    static AF_INLINE Raw raw(const char* b) { return _mm512_load_si512(b); }
    static AF_INLINE Raw raw_once(const char* b) {  // for blocks used twice: GCC would rather load them twice
        Raw x = raw(b);
        asm("" : "+v"(x));
        return x;
    }
    using Float = __m512;
    static constexpr int KEEP_ROWS = 3;  // up to here a second set of sums fits the registers
    static AF_INLINE Float splat(const char* p) {
        float x;
        std::memcpy(&x, p, 4);
        return _mm512_set1_ps(x);
    }
    static AF_INLINE Float floats(const float* p) { return _mm512_loadu_ps(p); }
    // 16-bit entries of a table, two to a dword; half 0 is the lower one.
    using Entries = __m512i;
    static AF_INLINE Entries raw_entries(const char* p) { return _mm512_loadu_si512(p); }
    static AF_INLINE Float bf16_half(const char* p, long half) {  // two loads: one, shared, would be spilled
        return _mm512_castsi512_ps(half ? _mm512_maskz_loadu_epi16(0xaaaaaaaau, p)
                                        : _mm512_slli_epi32(_mm512_loadu_si512(p), 16));
    }
    static AF_INLINE void keep(float* p, Float x) { _mm512_storeu_ps(p, x); }
    static AF_INLINE Float madd(Float x, Float y, Float z) { return _mm512_fmadd_ps(x, y, z); }
};

struct IntAcc : OpBase {
    using Acc = __m512i;
    using Weight = __m512i;
    static AF_INLINE Acc zero() { return _mm512_setzero_si512(); }
    static AF_INLINE Acc add(Acc x, Acc y) { return _mm512_add_epi32(x, y); }
    static AF_INLINE Float value(Acc x) { return _mm512_cvtepi32_ps(x); }
    static AF_INLINE void dot(Acc& c, Word x, Weight w) { asm("vpdpbusd %2,%1,%0" : "+v"(c) : "v"(x), "v"(w)); }
    static AF_INLINE Acc short_half(Entries e, long half) {
        return _mm512_srai_epi32(half ? e : _mm512_slli_epi32(e, 16), 16);
    }
    // Adds the product of the 16-bit numbers in both halves of z (one of them is 0) with those of x.
    static AF_INLINE void add_shorts(Acc& c, Acc z, int32_t x) {
        asm("vpdpwssd %2,%1,%0" : "+v"(c) : "v"(z), "v"(_mm512_set1_epi32(x)));
    }
};

struct FloatAcc : OpBase {
    using Acc = __m512;
    static AF_INLINE Acc zero() { return _mm512_setzero_ps(); }
    static AF_INLINE Acc add(Acc x, Acc y) { return _mm512_add_ps(x, y); }
    static AF_INLINE Float value(Acc x) { return x; }
};

struct Bf16Acc : FloatAcc {
    using Weight = __m512i;
    static AF_INLINE void dot(Acc& c, Word x, Weight w) { asm("vdpbf16ps %2,%1,%0" : "+v"(c) : "v"(x), "v"(w)); }
};

// float x float: a word is one float, a block one k.
struct F32 : FloatAcc {
    static constexpr int WORDS = 1;
    static constexpr bool REMAINDER = true;
    using Weight = __m512i;
    static AF_INLINE Weight weight(Raw b, int) { return b; }
    static AF_INLINE void dot(Acc& c, Word x, Weight w) {
        asm("vfmadd231ps %2,%1,%0" : "+v"(c) : "v"(x), "v"(w));
    }
};

// bf16 x bf16: a word is two k, a block two k.
struct Bf16 : Bf16Acc {
    static constexpr int WORDS = 1;
    static AF_INLINE Weight weight(Raw b, int) { return b; }
};

// u8 x s8: a word is four k, a block four k.
struct U8S8 : IntAcc {
    static constexpr int WORDS = 1;
    static constexpr float UNIT = 1.0f;
    template <bool>
    static AF_INLINE Acc column_sum(Entries e, long half) { return short_half(e, half); }
    static AF_INLINE Weight weight(Raw b, int) { return b; }
};

// u8 x 4-bit codes: a block is eight k. A weight is 16 * (code - 8): a high nibble as it stands, a low one in the upper
// half of its byte, top bit flipped by one ternary operation (half as fast as a plain one); UNIT takes the 16 out again.
struct U8S4 : IntAcc {
    static constexpr int WORDS = 2;
    static constexpr float UNIT = 1.0f / 16;
    static AF_INLINE Raw raw(const char* b) { return raw_once(b); }
    static AF_INLINE Weight weight(Raw b, int i) {
        const __m512i upper = _mm512_set1_epi8(char(0xf0));
        if (i == 1) return _mm512_and_si512(b, upper);
        // 0x6a: (first & second) ^ third; the shifted block is first because that one is overwritten
        return _mm512_ternarylogic_epi32(_mm512_slli_epi16(b, 4), upper, _mm512_set1_epi8(char(0x80)), 0x6a);
    }
    // 16 * sum(code - z), the entry as it stands but for the zero point's bits (none set where symmetric).
    template <bool ASYM>
    static AF_INLINE Acc column_sum(Entries e, long half) {
        return short_half(ASYM ? _mm512_andnot_si512(_mm512_set1_epi16(15), e) : e, half);
    }
    // 16 * (z - 8) in the half that the columns lie in, 0 in the other.
    static AF_INLINE Acc zero_point(Entries e, long half) {
        return _mm512_maskz_srai_epi16(half ? 0xaaaaaaaau : 0x55555555u, _mm512_slli_epi16(e, 12), 8);
    }
};

// bf16 x int8: a block is four k. A code in the top byte of an int32, converted, is a float whose upper half is the
// bf16 of code * 2^24, exactly; one permutation joins the halves of two k.
struct Bf16S8 : Bf16Acc {
    static constexpr int WORDS = 2;
    static constexpr float UNIT = 1.0f / (1 << 24);
    static AF_INLINE Raw raw(const char* b) { return raw_once(b); }
    static AF_INLINE Weight weight(Raw b, int i) {
        const __m512i top = _mm512_set1_epi32(int(0xff000000u));
        __m512i even = _mm512_slli_epi32(b, i == 0 ? 24 : 8), odd = i == 0 ? _mm512_slli_epi32(b, 16) : b;
        if (i == 1) even = _mm512_and_si512(even, top);
        __m512 x = _mm512_cvtepi32_ps(even), y = _mm512_cvtepi32_ps(_mm512_and_si512(odd, top));
        // word 2j of the result: upper half of x's lane j; word 2j + 1: of y's
        return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(_mm512_castps_si512(x), 16),
                                       _mm512_castps_si512(y));
    }
};

// bf16 x 4-bit codes: a block is eight k. The permutation looks words up by their low five bits, so a nibble needs no
// mask: a table of 2 x 16 entries gives the bf16 of code - 8, exactly; read from its middle it serves high nibbles.
struct Bf16S4 : Bf16Acc {
    static constexpr int WORDS = 4;
    static constexpr float UNIT = 1.0f;
    static AF_INLINE Raw raw(const char* b) { return raw_once(b); }
    static AF_INLINE Weight weight(Raw b, int i) {
        alignas(16) static const uint16_t table[40] = {
            0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0,
            0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80, 0, 0x3f80, 0x4000, 0x4040,
            0x4080, 0x40a0, 0x40c0, 0x40e0, 0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80};
        const __m512i nibbles = i < 2 ? b : _mm512_srli_epi32(b, 4);
        // bytes 0 and 1 (i even) or 2 and 3 of every dword to the low halves of its words
        const __m128i lanes = i % 2 == 0 ? _mm_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13)
                                         : _mm_setr_epi8(2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15);
        const __m512i index = _mm512_shuffle_epi8(nibbles, _mm512_broadcast_i32x4(lanes));
        return _mm512_permutexvar_epi16(index, _mm512_loadu_si512(table + (i < 2 ? 0 : 8)));
    }
    // 8 - z from 16 bytes of zero points, columns of half 0 in the low nibbles: looked up by the low four bits.
    static AF_INLINE Float eight_less(const char* p, long half) {
        const __m512i z = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
        return _mm512_permutexvar_ps(half ? _mm512_srli_epi32(z, 4) : z,
                                     _mm512_setr_ps(8, 7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7));
    }
};

}  // namespace gemm
}  // namespace af
