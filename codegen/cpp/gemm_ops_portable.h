// The Ops of gemm_ops_avx512.h in GCC vector types of 4 lanes, for any CPU: a tile is a quarter of a panel.
#pragma once

#include "vec.h"

namespace af {
namespace gemm AF_HIDDEN {

typedef int32_t Int4 __attribute__((vector_size(16)));
typedef float Float4 __attribute__((vector_size(16)));

AF_INLINE int32_t word_at(const char* a) {
    int32_t x;
    std::memcpy(&x, a, 4);
    return x;
}
AF_INLINE Int4 spread(int32_t x) { return Int4{x, x, x, x}; }
AF_INLINE Float4 spread(float x) { return Float4{x, x, x, x}; }

struct OpBase {
    static constexpr int ROWS = 4;
    static constexpr int VECS = 2;
    static constexpr int WIDTH = 8;
    static constexpr int LANES = 4;
    static constexpr int ENOUGH = 6;    // sums that hide the latency of a multiply-add
    static constexpr bool REMAINDER = false;
    using Raw = Int4;
    static AF_INLINE Raw raw(const char* b) {
        Int4 x;
        std::memcpy(&x, b, 16);
        return x;
    }
    using Float = Float4;
    static constexpr int KEEP_ROWS = 2;
    static AF_INLINE Float splat(const char* p) { return spread(float_of(uint32_t(word_at(p)))); }
    static AF_INLINE Float floats(const float* p) {
        Float x;
        std::memcpy(&x, p, 16);
        return x;
    }
    using Entries = Int4;
    static AF_INLINE Entries raw_entries(const char* p) { return raw(p); }
    static AF_INLINE Int4 upper(Entries e, long half) { return half ? e : e << 16; }  // what lies below is undefined
    static AF_INLINE Float bf16_half(const char* p, long half) {
        return Float4(upper(raw_entries(p), half) & spread(int32_t(0xffff0000u)));
    }
    static AF_INLINE void keep(float* p, Float x) { std::memcpy(p, &x, 16); }
    static AF_INLINE Float madd(Float x, Float y, Float z) { return x * y + z; }
};

struct IntAcc : OpBase {
    using Acc = Int4;
    static AF_INLINE Acc zero() { return Int4{}; }
    static AF_INLINE Acc add(Acc x, Acc y) { return x + y; }
    static AF_INLINE Float value(Acc x) { return __builtin_convertvector(x, Float4); }
    static AF_INLINE void add_shorts(Acc& c, Acc z, int32_t x) { c += z * spread(x >> 16); }
};

struct FloatAcc : OpBase {
    using Acc = Float4;
    static AF_INLINE Acc zero() { return Float4{}; }
    static AF_INLINE Acc add(Acc x, Acc y) { return x + y; }
    static AF_INLINE Float value(Acc x) { return x; }
};

struct F32 : FloatAcc {
    static constexpr int WORDS = 1;
    static constexpr bool REMAINDER = true;
    using Word = Float4;
    using Weight = Float4;
    static AF_INLINE Word word(const char* a) { return spread(float_of(uint32_t(word_at(a)))); }
    static AF_INLINE Weight weight(Raw b, int) { return Float4(b); }
    static AF_INLINE void dot(Acc& c, Word x, Weight w) { c += x * w; }
};

struct FloatPair {
    Float4 even, odd;
};
AF_INLINE FloatPair split_bf16(Int4 x) { return {Float4(x << 16), Float4(x & spread(int32_t(0xffff0000u)))}; }

struct Bf16Acc : FloatAcc {
    using Word = FloatPair;
    using Weight = FloatPair;
    static AF_INLINE Word word(const char* a) { return split_bf16(spread(word_at(a))); }
    static AF_INLINE void dot(Acc& c, const Word& x, const Weight& w) { c += x.even * w.even + x.odd * w.odd; }
};

struct Bf16 : Bf16Acc {
    static constexpr int WORDS = 1;
    static AF_INLINE Weight weight(Raw b, int) { return split_bf16(b); }
};

// Signed byte i of every lane as floats.
AF_INLINE Float4 byte_floats(Int4 b, int i) { return __builtin_convertvector(b << (24 - 8 * i) >> 24, Float4); }

struct Bf16S8 : Bf16Acc {
    static constexpr int WORDS = 2;
    static constexpr float UNIT = 1.0f;
    static AF_INLINE Weight weight(Raw b, int i) { return {byte_floats(b, 2 * i), byte_floats(b, 2 * i + 1)}; }
};

struct Bf16S4 : Bf16Acc {  // 16 * (nibble - 8) in every byte
    static constexpr int WORDS = 4;
    static constexpr float UNIT = 1.0f / 16;
    static AF_INLINE Weight weight(Raw b, int i) {
        Int4 high = (i < 2 ? b << 4 : b) & spread(int32_t(0xf0f0f0f0u));
        if (i < 2) high ^= spread(int32_t(0x80808080u));
        return {byte_floats(high, i % 2 * 2), byte_floats(high, i % 2 * 2 + 1)};
    }
    static AF_INLINE Float eight_less(const char* p, long half) {  // 16 * (8 - z)
        const uint8_t* z = (const uint8_t*)p;
        const Int4 bytes = Int4{z[0], z[1], z[2], z[3]};
        return __builtin_convertvector(spread(int32_t(128)) - ((half ? bytes : bytes << 4) & spread(int32_t(0xf0))),
                                       Float4);
    }
};

// Four k of a register as four registers of ints; the first k lies in the lowest byte.
struct IntQuad {
    Int4 k[4];
};
struct ByteAcc : IntAcc {
    using Word = IntQuad;
    using Weight = IntQuad;
    static AF_INLINE Word word(const char* a) {
        const uint8_t* u = (const uint8_t*)a;
        return {{spread(int32_t(u[0])), spread(int32_t(u[1])), spread(int32_t(u[2])), spread(int32_t(u[3]))}};
    }
    static AF_INLINE void dot(Acc& c, const Word& x, const Weight& w) {
        c += x.k[0] * w.k[0] + x.k[1] * w.k[1] + (x.k[2] * w.k[2] + x.k[3] * w.k[3]);
    }
};

struct U8S8 : ByteAcc {
    static constexpr int WORDS = 1;
    static constexpr float UNIT = 1.0f;
    static AF_INLINE Weight weight(Raw b, int) { return {{b << 24 >> 24, b << 16 >> 24, b << 8 >> 24, b >> 24}}; }
    template <bool>
    static AF_INLINE Acc column_sum(Entries e, long half) { return upper(e, half) >> 16; }
};

struct U8S4 : ByteAcc {
    static constexpr int WORDS = 2;
    static constexpr float UNIT = 1.0f;
    static AF_INLINE Weight weight(Raw b, int i) {
        Int4 mask = spread(int32_t(15)), eight = spread(int32_t(8));
        Int4 low = i == 0 ? b : (b ^ spread(int32_t(0x80808080u))) >> 4;
        return {{(low & mask) - eight, (low >> 8 & mask) - eight, (low >> 16 & mask) - eight,
                 (low >> 24 & mask) - eight}};
    }
    template <bool>
    static AF_INLINE Acc column_sum(Entries e, long half) { return upper(e, half) >> 20; }
    static AF_INLINE Acc zero_point(Entries e, long half) { return upper(e, half) << 12 >> 28; }  // z - 8
};

}  // namespace gemm
}  // namespace af
