// In: one block of a weight panel (128 bytes) and words of activations (4 bytes). Out: products summed in zmm
// registers of 16 columns. Each Op names its accumulator, how a block unfolds into WORDS steps of 32 columns, and the
// multiply-add of one step.
//
// The dot products are inline assembly: with the intrinsics GCC 12 copies every accumulator inside the loop.
#pragma once

#include <immintrin.h>

#include "vec.h"

namespace af {
namespace gemm {

// What every form shares: 8 rows by 2 registers of 16 columns leave half the registers to weights and constants.
struct OpBase {
    static constexpr int ROWS = 8;    // rows of the largest tile
    static constexpr int VECS = 2;    // registers across a tile
    static constexpr int WIDTH = 32;  // columns of a tile
    static constexpr int LANES = 16;  // columns of a register
    static constexpr bool REMAINDER = false;  // may the count of blocks be no multiple of 4?
    using Word = __m512i;
    using Raw = __m512i;
    static AF_INLINE Word word(const char* a) {
        int32_t x;
        std::memcpy(&x, a, 4);
        return _mm512_set1_epi32(x);
    }
    static AF_INLINE Raw raw(const char* b) { return _mm512_load_si512(b); }
    using Float = __m512;
    static constexpr int KEEP_ROWS = 5;  // up to here a second set of sums fits the registers
    static AF_INLINE Float splat(const char* p) {
        float x;
        std::memcpy(&x, p, 4);
        return _mm512_set1_ps(x);
    }
    static AF_INLINE Float floats(const float* p) { return _mm512_loadu_ps(p); }
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
        c = _mm512_fmadd_ps(_mm512_castsi512_ps(x), _mm512_castsi512_ps(w), c);
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
    static AF_INLINE Weight weight(Raw b, int) { return b; }
};

// u8 x 4-bit codes: a block is eight k. A weight is 16 * (code - 8): the nibble in the upper half of its byte, top bit
// flipped, one ternary operation; UNIT takes the 16 out again.
struct U8S4 : IntAcc {
    static constexpr int WORDS = 2;
    static constexpr float UNIT = 1.0f / 16;
    static AF_INLINE Weight weight(Raw b, int i) {
        __m512i high = i == 0 ? _mm512_slli_epi16(b, 4) : b;
        // 0x78: first ^ (second & third)
        return _mm512_ternarylogic_epi32(_mm512_set1_epi8(char(0x80)), high, _mm512_set1_epi8(char(0xf0)), 0x78);
    }
};

}  // namespace gemm
}  // namespace af
