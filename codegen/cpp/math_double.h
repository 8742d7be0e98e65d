// In: af::vf. Out: sin, cos, pow, remainders: functions whose argument reduction needs float64. They are rare in
// models and not in inner loops, so they favour exactness; hard lanes (huge, negative base) go to the C library.
#pragma once

#include "math.h"

namespace af {

typedef float eight_f __attribute__((vector_size(32)));
typedef double eight_d __attribute__((vector_size(64)));

struct vd {  // 16 doubles
    eight_d lo, hi;
};

AF_INLINE vd widen(vf x) {
    alignas(64) float b[16];
    eight_f lo, hi;
    store(b, x);
    std::memcpy(&lo, b, 32);
    std::memcpy(&hi, b + 8, 32);
    return {__builtin_convertvector(lo, eight_d), __builtin_convertvector(hi, eight_d)};
}
AF_INLINE vf narrow(vd x) {
    alignas(64) float b[16];
    eight_f lo = __builtin_convertvector(x.lo, eight_f), hi = __builtin_convertvector(x.hi, eight_f);
    std::memcpy(b, &lo, 32);
    std::memcpy(b + 8, &hi, 32);
    return load(b);
}
// Nearest integer, |x| < 2^51.
AF_INLINE eight_d nearest(eight_d x) { return (x + 6755399441055744.0) - 6755399441055744.0; }

template <class Scalar>
AF_NOINLINE vf repair(vm where, vf x, vf y, vf result, Scalar scalar) {
    float a[16], b[16], r[16];
    store(a, x);
    store(b, y);
    store(r, result);
    uint32_t bits = mask_bits(where);
    for (int i = 0; i < 16; i++)
        if (bits >> i & 1) r[i] = scalar(a[i], b[i]);
    return load(r);
}

// ---- sine and cosine
struct Quadrant {
    eight_d r, q;  // x = n pi/2 + r, q = n mod 4
};
AF_INLINE Quadrant reduce_angle(eight_d x) {  // |x| < 2^28: n has 28 bits, each part of pi/2 but the last 25
    eight_d n = nearest(x * 0.63661977236758134308);
    eight_d r = x - n * 1.5707963109016418;
    r = r - n * 1.5893254712295857e-08;
    r = r - n * 6.123233995736766e-17;
    eight_d q = n - 4.0 * nearest(n * 0.25 - 0.375);  // n/4 - 3/8 rounds to floor(n/4)
    return {r, q};
}

AF_INLINE vf sine(vf x, float shift) {
    vd wide = widen(x);
    Quadrant lo = reduce_angle(wide.lo), hi = reduce_angle(wide.hi);
    vf r = narrow(vd{lo.r, hi.r}), q = narrow(vd{lo.q, hi.q}) + set1(shift), s = r * r;
    q = select(ge(q, set1(4.0f)), q - set1(4.0f), q);
    vf sin_r = fma(poly(s, 2.71823728e-06f, -0.000198393274f, 0.00833332911f, -0.166666672f) * s, r, r);
    vf cos_r = fma(poly(s, 2.44377297e-05f, -0.00138873619f, 0.0416666456f, -0.5f), s, set1(1.0f));
    vm odd = or_(eq(q, set1(1.0f)), eq(q, set1(3.0f)));
    vf y = select(odd, cos_r, sin_r);
    return select(ge(q, set1(2.0f)), -y, y);
}

AF_INLINE vf sin(vf x) {
    vm easy = lt(abs(x), set1(268435456.0f));
    vf y = sine(select(easy, x, zero()), 0.0f);
    y = select(eq(x, zero()), x, y);  // keeps the sign of zero
    if (__builtin_expect(all(easy), 1)) return y;
    return repair(not_(easy), x, x, y, [](float a, float) { return std::sin(a); });
}
AF_INLINE vf cos(vf x) {
    vm easy = lt(abs(x), set1(268435456.0f));
    vf y = sine(select(easy, x, zero()), 1.0f);
    if (__builtin_expect(all(easy), 1)) return y;
    return repair(not_(easy), x, x, y, [](float a, float) { return std::cos(a); });
}

// ---- powers
// b log2(a) for a = m 2^e: log(m) = 2 atanh((m - 1) / (m + 1)), |.| <= 1/5.
AF_INLINE eight_d exponent(eight_d m, eight_d e, eight_d b) {
    eight_d s = (m - 1.0) / (m + 1.0), z = s * s;
    eight_d p = 1.0 / 15 + z * (1.0 / 17);
    p = 1.0 / 13 + z * p;
    p = 1.0 / 11 + z * p;
    p = 1.0 / 9 + z * p;
    p = 1.0 / 7 + z * p;
    p = 1.0 / 5 + z * p;
    p = 1.0 / 3 + z * p;
    p = 1.0 + z * p;
    eight_d y = b * (e + s * p * 2.8853900817779268);
    y = y < -160.0 ? eight_d{} - 160.0 : y;
    return y > 160.0 ? eight_d{} + 160.0 : y;
}

AF_INLINE vf pow(vf a, vf b) {
    vf inf = set1(__builtin_inff());
    vm easy = and_(and_(gt(a, zero()), lt(a, inf)), lt(abs(b), inf));
    vf e, m = split2(select(easy, a, set1(1.0f)), e);
    vd wide_m = widen(m), wide_e = widen(e), wide_b = widen(select(easy, b, zero()));
    eight_d lo = exponent(wide_m.lo, wide_e.lo, wide_b.lo), hi = exponent(wide_m.hi, wide_e.hi, wide_b.hi);
    eight_d n_lo = nearest(lo), n_hi = nearest(hi);
    vf n = narrow(vd{n_lo, n_hi}), f = narrow(vd{lo - n_lo, hi - n_hi});
    vf p = poly(f, 0.00015353362f, 0.00133988739f, 0.00961843692f, 0.0555033237f, 0.240226477f, 0.693147182f, 1.0f);
    vf y = scale2(p, n);
    if (__builtin_expect(all(easy), 1)) return y;
    return repair(not_(easy), a, b, y, [](float x, float z) { return std::pow(x, z); });
}

// ---- torch.remainder and torch.floor_divide on floats
AF_INLINE float remainder_scalar(float a, float b) {
    float r = std::fmod(a, b);
    return r != 0.0f && ((b < 0.0f) != (r < 0.0f)) ? r + b : r;
}
AF_INLINE float floordiv_scalar(float a, float b) {
    if (b == 0.0f) return a / b;
    float r = std::fmod(a, b), d = (a - r) / b;
    if (r != 0.0f && ((b < 0.0f) != (r < 0.0f))) d -= 1.0f;
    if (d == 0.0f) return std::copysign(0.0f, a / b);
    float whole = std::floor(d);
    return d - whole > 0.5f ? whole + 1.0f : whole;
}
AF_INLINE vf mod(vf a, vf b) {
    return repair(lanes(16), a, b, a, [](float x, float y) { return remainder_scalar(x, y); });
}
AF_INLINE vf floordiv(vf a, vf b) {
    return repair(lanes(16), a, b, a, [](float x, float y) { return floordiv_scalar(x, y); });
}

}  // namespace af
