// In: af::vf. Out: functions of analysis over it, the same polynomials on every instruction set.
// Errors are against float64 over dense ranges (tests/codegen/test_vec.py): about one unit in the last place where
// nothing else is said. At infinities, nan and subnormals the results are torch's, except gelu(inf) = inf and
// gelu(-inf) = 0, where torch's own vector and scalar forms differ.
#pragma once
#if __has_include_next(<math.h>)
#include_next <math.h>  // this folder stands before the system's, so <math.h> may mean this file
#endif

#include <cmath>

#include "vec.h"

namespace af {

// c[0] + c[1] x + ... , highest coefficient first in the arguments.
AF_INLINE vf poly(vf, float c) { return set1(c); }
template <class... Rest>
AF_INLINE vf poly(vf x, float c0, float c1, Rest... rest) {
    if constexpr (sizeof...(rest) == 0) {
        return fma(set1(c0), x, set1(c1));
    } else {
        vf y = fma(set1(c0), x, set1(c1));
        ((y = fma(y, x, set1(rest))), ...);
        return y;
    }
}

// ---- exponentials
AF_INLINE vf exp2(vf x) {
    x = clamp(x, set1(-151.0f), set1(129.0f));
    vf n = round(x), f = x - n;
    vf p = poly(f, 0.00015353362f, 0.00133988739f, 0.00961843692f, 0.0555033237f, 0.240226477f, 0.693147182f, 1.0f);
    return scale2(p, n);
}

// Relative error 1.2e-7, for softmax: one step shorter, x <= 128.
AF_INLINE vf exp2_short(vf x) {
    x = fast_max(set1(-151.0f), x);
    vf n = round(x), f = x - n;
    return scale2(poly(f, 0.00132647273f, 0.00967151299f, 0.0555073358f, 0.240222424f, 0.693147004f, 1.0f), n);
}

struct Reduced {
    vf n, r;  // x = n ln 2 + r, |r| <= ln(2) / 2
};
AF_INLINE Reduced reduce_exp(vf x) {
    x = clamp(x, set1(-104.0f), set1(89.0f));
    vf n = round(x * set1(1.44269502f));
    vf r = fnma(n, set1(0.693359375f), x);  // exact: ten bits times eight
    return {n, fnma(n, set1(-2.12194440e-4f), r)};
}
// (e^r - 1 - r) / r^2
AF_INLINE vf exp_tail(vf r) { return poly(r, 0.00138637866f, 0.00836747605f, 0.0416672379f, 0.166665345f, 0.5f); }

AF_INLINE vf exp(vf x) {
    Reduced part = reduce_exp(x);
    vf q = fma(exp_tail(part.r), part.r * part.r, part.r);
    return scale2(q + set1(1.0f), part.n);
}

AF_INLINE vf expm1(vf x) {
    Reduced part = reduce_exp(x);
    vf q = fma(exp_tail(part.r), part.r * part.r, part.r);
    vf half = scale2(set1(0.5f), part.n);  // e^x - 1 = 2 (2^(n-1) q + (2^(n-1) - 1/2)): no overflow before the result's
    vf y = fma(half, q, half - set1(0.5f));
    return select(eq(part.n, zero()), copysign(q, x), y + y);
}

// ---- logarithms
AF_INLINE vf log_special(vf x, vf y) {
    vf inf = set1(__builtin_inff());
    y = select(eq(x, zero()), -inf, y);
    y = select(eq(x, inf), inf, y);
    return select(ge(x, zero()), y, set1(__builtin_nanf("")));
}
// log(1 + f) - f for f in [-0.25, 0.5]
AF_INLINE vf log_tail(vf f) {
    vf p = poly(f, 0.0376729183f, -0.0911619067f, 0.117006615f, -0.127277792f, 0.142762393f, -0.166552961f,
                0.199996054f, -0.250001639f, 0.333333403f);
    vf s = f * f;
    return fma(p * f, s, s * set1(-0.5f));
}

AF_INLINE vf log(vf x) {
    vf e, f = split2(x, e) - set1(1.0f);
    vf y = fma(e, set1(-2.12194440e-4f), log_tail(f));
    return log_special(x, fma(e, set1(0.693359375f), f + y));
}

AF_INLINE vf log2(vf x) {
    vf e, f = split2(x, e) - set1(1.0f);
    vf tail = log_tail(f);  // log2(e) = 1.4375 + 0.005195...: products with the short part are nearly exact
    vf y = fma(tail, set1(0.00519504104f), f * set1(0.00519504104f));
    y = fma(tail, set1(1.4375f), y);
    return log_special(x, fma(f, set1(1.4375f), y) + e);
}

AF_INLINE vf log1p(vf x) {
    vf u = x + set1(1.0f), lost = x - (u - set1(1.0f));
    vf y = log(u);
    y = select(and_(gt(u, zero()), lt(u, set1(__builtin_inff()))), y + lost / u, y);
    return select(eq(u, set1(1.0f)), x, y);
}

// ---- sigmoids
AF_INLINE vf sigmoid(vf x) { return recip(set1(1.0f) + exp(-x)); }
AF_INLINE vf silu(vf x) { return x / (set1(1.0f) + exp(-x)); }

AF_INLINE vf tanh(vf x) {
    vf a = abs(x), s = x * x;
    vf small = fma(poly(s, -0.00590586849f, 0.020805385f, -0.0537866838f, 0.133319587f, -0.333332986f) * s, x, x);
    vf large = set1(1.0f) - set1(2.0f) / (exp(a + a) + set1(1.0f));
    return select(lt(a, set1(0.6f)), small, copysign(large, x));
}

AF_INLINE vf gelu_tanh(vf x) {  // x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3))
    vf u = x * fma(x * x, set1(-0.0713548163f), set1(-1.59576912f));
    return x / (set1(1.0f) + exp(u));
}

// Two ranges; the larger is 1 - exp of a polynomial.
AF_INLINE vf erf(vf x) {
    vf a = abs(x), s = x * x, t = fast_min(set1(4.0f), a);
    vf small = poly(s, -5.96761703e-4f, 4.99119423e-3f, -2.67681349e-2f, 1.12819925e-1f, -3.76125336e-1f,
                    1.28379166e-1f);
    small = fma(small, x, x);
    vf q = fma(poly(t, -1.72853470e-5f, 3.83197126e-4f), t * t, poly(t, -3.88396438e-3f, 2.42546219e-2f));
    q = fma(q, t, set1(-1.06777877e-1f));
    q = fma(q, t, set1(-6.34846687e-1f));
    q = fma(q, t, set1(-1.28717512e-1f));
    q = fma(q, t, -t);
    return select(lt(a, set1(0.921875f)), small, copysign(set1(1.0f) - exp(q), x));
}

// Phi(-t) on 16 intervals of width 0.35, degree 4, in the position within the interval; exactly 1/2 at 0 and 0 at 5.6.
alignas(64) constexpr float normal_tail[5][16] = {
    {0.5f, 0.363169283f, 0.241963685f, 0.146859124f, 0.0807567239f, 0.0400591902f, 0.0178644247f, 0.00714280037f,
     0.00255511818f, 0.000816343876f, 0.000232624705f, 5.9057078e-05f, 1.33451103e-05f, 2.68210806e-06f,
     4.79136077e-07f, 6.46775291e-08f},
    {-0.139626324f, -0.131331384f, -0.109290108f, -0.0804620087f, -0.052407667f, -0.0301986709f, -0.0153944762f,
     -0.00694257347f, -0.00276980968f, -0.000977570657f, -0.000305218389f, -8.43011076e-05f, -2.05973847e-05f,
     -4.45188289e-06f, -8.51187281e-07f, 2.14669654e-07f},
    {-3.38462742e-05f, 0.00802306551f, 0.0133962836f, 0.0148091689f, 0.0128631685f, 0.0092609087f, 0.00565941026f,
     0.00297302147f, 0.0013527571f, 0.000535738305f, 0.00018528667f, 5.60955668e-05f, 1.4892641e-05f,
     3.47182208e-06f, 7.11445466e-07f, -1.65050039e-06f},
    {0.00295367138f, 0.00241290312f, 0.00111905416f, -0.000235006519f, -0.0010941556f, -0.00130938715f,
     -0.00107865536f, -0.000699036871f, -0.000373663439f, -0.000168533486f, -6.49682988e-05f, -2.15790078e-05f,
     -6.2092513e-06f, -1.55383009e-06f, -3.39129429e-07f, 2.76626224e-06f},
    {-0.000124054059f, -0.000310187112f, -0.000329871924f, -0.000214670436f, -5.89632509e-05f, 5.23543022e-05f,
     9.21041792e-05f, 8.09283665e-05f, 5.19610185e-05f, 2.66586412e-05f, 1.1338213e-05f, 4.07490006e-06f,
     1.25177019e-06f, 3.31140427e-07f, 7.58287868e-08f, -1.39510917e-06f},
};

// x Phi(x) = max(x, 0) - |x| Phi(-|x|). Absolute error 2e-7 and half a unit in the last place of x.
AF_INLINE vf gelu(vf x) {
    vf t = fast_min(abs(x), set1(5.59999f));
    vf at = t * set1(2.85714293f), i = floor(at), u = at - i;
    vf p = lookup(normal_tail[4], i);
    p = fma(p, u, lookup(normal_tail[3], i));
    p = fma(p, u, lookup(normal_tail[2], i));
    p = fma(p, u, lookup(normal_tail[1], i));
    p = fma(p, u, lookup(normal_tail[0], i));
    return fnma(t, p, relu(x));
}

}  // namespace af

#include "math_double.h"
