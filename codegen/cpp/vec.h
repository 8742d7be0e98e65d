// In: memory in the element types of the models. Out: af::vf, 16 floats, with the same operations on every
// instruction set, and af::vm, a mask of 16 lanes. Functions of analysis (exp, erf, ...) are in math.h.
//
// Rules that every form keeps:
//   load(p, n), store(p, x, n) touch the first n (1..16) elements only; lanes beyond n are loaded as 0.
//   min, max, clamp hand a nan through as torch does; fast_min, fast_max leave the result at a nan open.
//   store to an integer truncates towards zero and wraps, as a cast does; round first where that is meant.
//   store to bf16 and fp16 rounds to nearest even; subnormal floats may become bf16 zero.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(AF_AVX512) && !defined(AF_AVX2) && !defined(AF_PORTABLE)
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define AF_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define AF_AVX2 1
#else
#define AF_PORTABLE 1
#endif
#endif

#define AF_INLINE inline __attribute__((always_inline))
#define AF_NOINLINE __attribute__((noinline))
#define AF_LAMBDA __attribute__((always_inline))
#define AF_UNROLL _Pragma("GCC unroll 32")
#define AF_ROLLED _Pragma("GCC unroll 1")  // else GCC unrolls short known loops whole, and spills

namespace af {

struct bf16 {
    uint16_t bits;
};
struct fp16 {
    uint16_t bits;
};

AF_INLINE uint32_t bits_of(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return u;
}
AF_INLINE float float_of(uint32_t u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}

AF_INLINE float to_float(bf16 x) { return float_of(uint32_t(x.bits) << 16); }

AF_INLINE bf16 to_bf16(float x) {
    uint32_t u = bits_of(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return {uint16_t((u >> 16) | 0x40)};  // a nan stays a (quiet) nan
    return {uint16_t((u + 0x7fffu + ((u >> 16) & 1)) >> 16)};
}

// fp16 by integer arithmetic: the form of machines without F16C. Exact in one direction, nearest even in the other.
inline float to_float(fp16 h) {
    uint32_t sign = uint32_t(h.bits & 0x8000u) << 16, rest = h.bits & 0x7fffu;
    const uint32_t quiet = rest > 0x7c00u ? 0x400000u : 0;
    if (rest >= 0x7c00u) return float_of(sign | 0x7f800000u | ((rest & 0x3ffu) << 13) | quiet);
    if (rest >= 0x400u) return float_of(sign | ((rest << 13) + 0x38000000u));
    return float_of(sign | bits_of(float(rest) * 5.9604644775390625e-8f));  // subnormal: rest * 2^-24
}

inline fp16 to_fp16(float x) {
    uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000u, rest = u & 0x7fffffffu;
    if (rest > 0x7f800000u) return {uint16_t(sign | 0x7e00u | ((rest >> 13) & 0x3ffu))};
    if (rest >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // 65520 and above round to infinity
    if (rest < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the last place to 2^-24
        uint32_t low = bits_of(float_of(rest) + 0.5f) - 0x3f000000u;
        return {uint16_t(sign | low)};
    }
    return {uint16_t(sign | ((rest - 0x38000000u + 0xfffu + ((rest >> 13) & 1)) >> 13))};
}

}  // namespace af

#if defined(AF_AVX512)
#include "vec_avx512.h"
#elif defined(AF_AVX2)
#include "vec_avx2.h"
#else
#include "vec_portable.h"
#endif

namespace af {

// What follows is the same everywhere, in terms of the forms above.

// `n` elements at `p` in a buffer of 16 that reads as zeros beyond them.
template <class T>
AF_INLINE void gather_tail(const T* p, int n, T (&buffer)[16]) {
    std::memset(buffer, 0, sizeof(buffer));
    std::memcpy(buffer, p, size_t(n) * sizeof(T));
}

AF_INLINE vf operator+=(vf& a, vf b) { return a = a + b; }
AF_INLINE vf operator-=(vf& a, vf b) { return a = a - b; }
AF_INLINE vf operator*=(vf& a, vf b) { return a = a * b; }
AF_INLINE vf operator/=(vf& a, vf b) { return a = a / b; }
AF_INLINE vf operator+(vf a, float b) { return a + set1(b); }
AF_INLINE vf operator-(vf a, float b) { return a - set1(b); }
AF_INLINE vf operator*(vf a, float b) { return a * set1(b); }
AF_INLINE vf operator/(vf a, float b) { return a / set1(b); }
AF_INLINE vf operator+(float a, vf b) { return set1(a) + b; }
AF_INLINE vf operator-(float a, vf b) { return set1(a) - b; }
AF_INLINE vf operator*(float a, vf b) { return set1(a) * b; }
AF_INLINE vf operator/(float a, vf b) { return set1(a) / b; }
AF_INLINE vf fma(vf a, float b, float c) { return fma(a, set1(b), set1(c)); }
AF_INLINE vf fma(vf a, vf b, float c) { return fma(a, b, set1(c)); }

AF_INLINE vm isnan(vf a) { return ne(a, a); }
AF_INLINE vm isinf(vf a) { return eq(abs(a), set1(__builtin_inff())); }
AF_INLINE vm xor_(vm a, vm b) { return or_(and_(a, not_(b)), and_(not_(a), b)); }

// torch.minimum, torch.maximum: a nan in either operand gives a nan.
AF_INLINE vf min(vf a, vf b) { return select(isnan(a), a, fast_min(a, b)); }  // fast_min hands a nan in b through
AF_INLINE vf max(vf a, vf b) { return select(isnan(a), a, fast_max(a, b)); }
AF_INLINE vf clamp(vf x, vf low, vf high) { return fast_min(high, fast_max(low, x)); }  // a nan in x comes through
AF_INLINE vf relu(vf x) { return fast_max(set1(0.0f), x); }

AF_INLINE vf recip(vf x) { return set1(1.0f) / x; }
AF_INLINE vf rsqrt(vf x) { return set1(1.0f) / sqrt(x); }
AF_INLINE vf sign(vf x) {  // of a nan: 0, as in torch
    vf zero = set1(0.0f);
    return select(gt(x, zero), set1(1.0f), select(lt(x, zero), set1(-1.0f), zero));
}

// The first n lanes of x, `rest` in the others.
AF_INLINE vf first(vf x, int n, float rest) {
    if (__builtin_constant_p(n) && n == 16) return x;
    return select(lanes(n), x, set1(rest));
}
// Largest and smallest lane; a nan gives a nan. fast_hmax, fast_hmin leave that open.
AF_INLINE float hmax(vf x) { return any(isnan(x)) ? __builtin_nanf("") : fast_hmax(x); }
AF_INLINE float hmin(vf x) { return any(isnan(x)) ? __builtin_nanf("") : fast_hmin(x); }

#if !defined(AF_AVX512)
AF_INLINE vf once(vf a) { return a; }
// Four vectors at once: lane i of the result is of vector i; lanes 4 and above are zero.
AF_INLINE vf four(float a, float b, float c, float d) {
    alignas(64) const float lanes[16] = {a, b, c, d};
    return load(lanes);
}
AF_INLINE vf hsum4(vf a, vf b, vf c, vf d) { return four(hsum(a), hsum(b), hsum(c), hsum(d)); }
AF_INLINE vf fast_hmax4(vf a, vf b, vf c, vf d) {
    return four(fast_hmax(a), fast_hmax(b), fast_hmax(c), fast_hmax(d));
}
AF_INLINE vf fast_hmin4(vf a, vf b, vf c, vf d) {
    return four(fast_hmin(a), fast_hmin(b), fast_hmin(c), fast_hmin(d));
}
AF_INLINE void store4(float* p, vf a) { store(p, a, 4); }
// Of eight times four floats the first and the second two.
AF_INLINE void deal(const float* p, vf& first, vf& second) {
    alignas(64) float a[16], b[16];
    for (int i = 0; i < 16; i++) {
        a[i] = p[i / 2 * 4 + i % 2];
        b[i] = p[i / 2 * 4 + i % 2 + 2];
    }
    first = load(a);
    second = load(b);
}
// Lanes 0..3 of each, side by side.
AF_INLINE vf quarters(vf a, vf b, vf c, vf d) {
    alignas(64) float lanes[16];
    store(lanes, a, 4);
    store(lanes + 4, b, 4);
    store(lanes + 8, c, 4);
    store(lanes + 12, d, 4);
    return load(lanes);
}
#endif
// The same where a nan in a vector gives a nan.
AF_INLINE vf nan_where_met(vf x, vf a, vf b, vf c, vf d) {
    const vm na = isnan(a), nb = isnan(b), nc = isnan(c), nd = isnan(d);
    if (__builtin_expect(!any(or_(or_(na, nb), or_(nc, nd))), 1)) return x;
    const vf one = set1(1.0f), none = set1(0.0f);
    const vf met = hsum4(select(na, one, none), select(nb, one, none), select(nc, one, none), select(nd, one, none));
    return select(gt(met, none), set1(__builtin_nanf("")), x);
}
AF_INLINE vf hmax4(vf a, vf b, vf c, vf d) { return nan_where_met(fast_hmax4(a, b, c, d), a, b, c, d); }
AF_INLINE vf hmin4(vf a, vf b, vf c, vf d) { return nan_where_met(fast_hmin4(a, b, c, d), a, b, c, d); }

AF_INLINE float hsum(vf x, int n) { return hsum(first(x, n, 0.0f)); }
AF_INLINE float hmax(vf x, int n) { return hmax(first(x, n, -__builtin_inff())); }
AF_INLINE float hmin(vf x, int n) { return hmin(first(x, n, __builtin_inff())); }

}  // namespace af
