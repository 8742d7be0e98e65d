// The Ops of gemm_ops_avx512.h for AVX2: a tile is half a panel, 2 registers of 8 columns.
//
// vpmaddubsw adds pairs in 16 bits and saturates (255 * 127 * 2), so u8 x s8 is widened to 16 bits first and summed by
// vpmaddwd, exactly; 4-bit codes minus 8 stay below 255 * 8 * 2 and may use it.
#pragma once

#include <immintrin.h>

#include "vec.h"

namespace af {
namespace gemm AF_HIDDEN {

struct OpBase {
    static constexpr int ROWS = 4;
    static constexpr int VECS = 2;
    static constexpr int WIDTH = 16;
    static constexpr int LANES = 8;
    static constexpr int ENOUGH = 6;    // sums that hide the latency of a multiply-add
    static constexpr bool REMAINDER = false;
    using Raw = __m256i;
    static AF_INLINE __m256i spread(const char* a) {
        int32_t x;
        std::memcpy(&x, a, 4);
        return _mm256_set1_epi32(x);
    }
    static AF_INLINE Raw raw(const char* b) { return _mm256_load_si256((const __m256i*)b); }
    using Float = __m256;
    static constexpr int KEEP_ROWS = 2;
    static AF_INLINE Float splat(const char* p) { return _mm256_broadcast_ss((const float*)p); }
    static AF_INLINE Float floats(const float* p) { return _mm256_loadu_ps(p); }
    using Entries = __m256i;
    static AF_INLINE Entries raw_entries(const char* p) { return _mm256_loadu_si256((const __m256i*)p); }
    // The half as the upper one, what lies below it undefined.
    static AF_INLINE __m256i upper(Entries e, long half) {
        return _mm256_sll_epi32(e, _mm_cvtsi32_si128(half ? 0 : 16));
    }
    static AF_INLINE Float bf16_half(const char* p, long half) {
        return _mm256_castsi256_ps(_mm256_and_si256(upper(raw_entries(p), half), _mm256_set1_epi32(int(0xffff0000u))));
    }
    static AF_INLINE void keep(float* p, Float x) { _mm256_storeu_ps(p, x); }
    static AF_INLINE Float madd(Float x, Float y, Float z) { return _mm256_fmadd_ps(x, y, z); }
};

struct IntAcc : OpBase {
    using Acc = __m256i;
    static AF_INLINE Acc zero() { return _mm256_setzero_si256(); }
    static AF_INLINE Acc add(Acc x, Acc y) { return _mm256_add_epi32(x, y); }
    static AF_INLINE Float value(Acc x) { return _mm256_cvtepi32_ps(x); }
    static AF_INLINE void accumulate(Acc& c, __m256i x) {
        c = _mm256_add_epi32(c, x);
        asm("" : "+x"(c));  // else GCC regroups the sums of several steps and spills them all
    }
    static AF_INLINE void add_shorts(Acc& c, Acc z, int32_t x) {
        c = _mm256_add_epi32(c, _mm256_madd_epi16(z, _mm256_set1_epi32(x)));
    }
};

struct FloatAcc : OpBase {
    using Acc = __m256;
    static AF_INLINE Acc zero() { return _mm256_setzero_ps(); }
    static AF_INLINE Acc add(Acc x, Acc y) { return _mm256_add_ps(x, y); }
    static AF_INLINE Float value(Acc x) { return x; }
};

struct F32 : FloatAcc {
    static constexpr int ROWS = 6;
    static constexpr int WORDS = 1;
    static constexpr bool REMAINDER = true;
    using Word = __m256;
    using Weight = __m256;
    static AF_INLINE Word word(const char* a) { return _mm256_broadcast_ss((const float*)a); }
    static AF_INLINE Weight weight(Raw b, int) { return _mm256_castsi256_ps(b); }
    static AF_INLINE void dot(Acc& c, Word x, Weight w) { c = _mm256_fmadd_ps(x, w, c); }
};

// Two bf16 of one register as two registers of floats: even k, odd k.
struct FloatPair {
    __m256 even, odd;
};
AF_INLINE FloatPair split_bf16(__m256i x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(int(0xffff0000u))))};
}

struct Bf16Acc : FloatAcc {
    using Word = FloatPair;
    using Weight = FloatPair;
    static AF_INLINE Word word(const char* a) { return split_bf16(spread(a)); }
    static AF_INLINE void dot(Acc& c, const Word& x, const Weight& w) {
        c = _mm256_fmadd_ps(x.odd, w.odd, _mm256_fmadd_ps(x.even, w.even, c));
    }
};

struct Bf16 : Bf16Acc {
    static constexpr int WORDS = 1;
    static AF_INLINE Weight weight(Raw b, int) { return split_bf16(b); }
};

// Signed byte i of every dword as floats.
AF_INLINE __m256 byte_floats(__m256i b, int i) {
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(b, 24 - 8 * i), 24));
}
struct Bf16S8 : Bf16Acc {
    static constexpr int WORDS = 2;
    static constexpr float UNIT = 1.0f;
    static AF_INLINE Weight weight(Raw b, int i) { return {byte_floats(b, 2 * i), byte_floats(b, 2 * i + 1)}; }
};

// 16 * (nibble - 8) in every byte, as in the 8-bit form.
struct Bf16S4 : Bf16Acc {
    static constexpr int WORDS = 4;
    static constexpr float UNIT = 1.0f / 16;
    static AF_INLINE Weight weight(Raw b, int i) {
        __m256i high = _mm256_and_si256(i < 2 ? _mm256_slli_epi16(b, 4) : b, _mm256_set1_epi8(char(0xf0)));
        if (i < 2) high = _mm256_xor_si256(high, _mm256_set1_epi8(char(0x80)));
        return {byte_floats(high, i % 2 * 2), byte_floats(high, i % 2 * 2 + 1)};
    }
    static AF_INLINE Float eight_less(const char* p, long half) {  // 16 * (8 - z)
        const __m256i z = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
        const __m256i high = _mm256_sll_epi32(z, _mm_cvtsi32_si128(half ? 0 : 4));
        return _mm256_cvtepi32_ps(
            _mm256_sub_epi32(_mm256_set1_epi32(128), _mm256_and_si256(high, _mm256_set1_epi32(0xf0))));
    }
};

struct U8S8 : IntAcc {
    static constexpr int WORDS = 1;
    static constexpr float UNIT = 1.0f;
    struct Shorts {
        __m256i even, odd;
    };
    using Word = Shorts;
    using Weight = Shorts;
    static AF_INLINE Word word(const char* a) {
        __m256i x = spread(a);
        return {_mm256_and_si256(x, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(x, 8)};
    }
    static AF_INLINE Weight weight(Raw b, int) {
        return {_mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), _mm256_srai_epi16(b, 8)};
    }
    static AF_INLINE void dot(Acc& c, const Word& x, const Weight& w) {
        accumulate(c, _mm256_madd_epi16(x.even, w.even));
        accumulate(c, _mm256_madd_epi16(x.odd, w.odd));
    }
    template <bool>
    static AF_INLINE Acc column_sum(Entries e, long half) { return _mm256_srai_epi32(upper(e, half), 16); }
};

struct U8S4 : IntAcc {
    static constexpr int WORDS = 2;
    static constexpr float UNIT = 1.0f;
    using Word = __m256i;
    using Weight = __m256i;
    static AF_INLINE Word word(const char* a) { return spread(a); }
    static AF_INLINE Weight weight(Raw b, int i) {
        __m256i low = i == 0 ? b : _mm256_srli_epi16(_mm256_xor_si256(b, _mm256_set1_epi8(char(0x80))), 4);
        return _mm256_sub_epi8(_mm256_and_si256(low, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));
    }
    static AF_INLINE void dot(Acc& c, Word x, Weight w) {
        accumulate(c, _mm256_madd_epi16(_mm256_maddubs_epi16(x, w), _mm256_set1_epi16(1)));
    }
    template <bool>
    static AF_INLINE Acc column_sum(Entries e, long half) { return _mm256_srai_epi32(upper(e, half), 20); }
    // z - 8 in the upper half, 0 in the lower.
    static AF_INLINE Acc zero_point(Entries e, long half) {
        const __m256i top = _mm256_and_si256(_mm256_slli_epi16(upper(e, half), 12), _mm256_set1_epi32(int(0xf0000000u)));
        return _mm256_srai_epi16(top, 12);
    }
};

}  // namespace gemm
}  // namespace af
