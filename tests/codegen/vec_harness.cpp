// Every operation of vec.h and math.h over arrays of any length, by name.
#include "math.h"

using namespace af;

template <class F>
static void each(long n, F f) {
    long i = 0;
    for (; i + 16 <= n; i += 16) f(i, 16);
    if (i < n) f(i, int(n - i));
}

template <class From, class To>
static void convert(const void* x, void* y, long n) {
    const From* from = (const From*)x;
    To* to = (To*)y;
    long i = 0;
    for (; i + 16 <= n; i += 16) store(to + i, load(from + i));
    if (i < n) store(to + i, load(from + i, int(n - i)), int(n - i));
}

#define UNARY(name) \
    extern "C" void u_##name(const float* x, float* y, long n) { \
        each(n, [&](long i, int k) { store(y + i, af::name(load(x + i, k)), k); }); \
    }
#define BINARY(name) \
    extern "C" void b_##name(const float* a, const float* b, float* y, long n) { \
        each(n, [&](long i, int k) { store(y + i, af::name(load(a + i, k), load(b + i, k)), k); }); \
    }
#define COMPARE(name) \
    extern "C" void c_##name(const float* a, const float* b, float* y, long n) { \
        vf one = set1(1.0f), none = zero(); \
        each(n, [&](long i, int k) { store(y + i, select(af::name(load(a + i, k), load(b + i, k)), one, none), k); }); \
    }
#define CONVERT(kind, type) \
    extern "C" void load_##kind(const void* x, void* y, long n) { convert<type, float>(x, y, n); } \
    extern "C" void store_##kind(const void* x, void* y, long n) { convert<float, type>(x, y, n); }

UNARY(abs) UNARY(sqrt) UNARY(rsqrt) UNARY(recip) UNARY(floor) UNARY(ceil) UNARY(round) UNARY(trunc) UNARY(sign)
UNARY(relu) UNARY(exp) UNARY(exp2) UNARY(exp2_short) UNARY(expm1) UNARY(log) UNARY(log2) UNARY(log1p) UNARY(tanh)
UNARY(erf) UNARY(sigmoid) UNARY(silu) UNARY(gelu) UNARY(gelu_tanh) UNARY(sin) UNARY(cos)
BINARY(min) BINARY(max) BINARY(copysign) BINARY(pow) BINARY(mod) BINARY(floordiv)
COMPARE(lt) COMPARE(le) COMPARE(gt) COMPARE(ge) COMPARE(eq) COMPARE(ne)
CONVERT(bf16, bf16) CONVERT(f16, fp16) CONVERT(i8, int8_t) CONVERT(u8, uint8_t) CONVERT(i32, int32_t)
CONVERT(i64, int64_t) CONVERT(bool, bool)

extern "C" void u_neg(const float* x, float* y, long n) {
    each(n, [&](long i, int k) { store(y + i, -load(x + i, k), k); });
}
extern "C" void arithmetic(const float* a, const float* b, const float* c, float* y, long n) {
    each(n, [&](long i, int k) {
        vf u = load(a + i, k), v = load(b + i, k), w = load(c + i, k);
        vf r = fma(u, v, w) + fnma(u, w, v) * (u - v) / (w + 3.0f);
        r += clamp(u, set1(-0.5f), set1(0.5f));
        store(y + i, r, k);
    });
}
extern "C" void masks(const float* a, const float* b, float* y, long n) {
    each(n, [&](long i, int k) {
        vf u = load(a + i, k), v = load(b + i, k);
        vm m = or_(and_(lt(u, v), not_(lt(u, zero()))), xor_(isnan(u), isinf(v)));
        store(y + i, select(m, u, v), k);
    });
}
extern "C" void reductions(const float* x, int n, float* y) {
    y[0] = hsum(load(x, n), n);
    y[1] = hmax(load(x, n), n);
    y[2] = hmin(load(x, n), n);
    vm below = lt(iota(), set1(float(n)));
    y[3] = float(mask_bits(below));
    y[4] = float(any(below)) + 2 * float(all(below));
    y[5] = float(mask_bits(lanes(n)));
}
extern "C" void codes(const float* x, uint8_t* y) { store_codes(y, load(x)); }
extern "C" void scalar_halves(const float* x, uint16_t* bf, uint16_t* fp, float* back, long n) {
    for (long i = 0; i < n; i++) {
        bf[i] = to_bf16(x[i]).bits;
        fp[i] = to_fp16(x[i]).bits;
        back[i] = to_float(fp16{fp[i]});
    }
}
