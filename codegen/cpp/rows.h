// In: a row of K floats, usually scratch in L1. Out: the row in an activation form that a product reads, or a row of
// an embedding table as floats. Loops that generated regions share.
//
// Forms (K bytes of codes padded with zeros to a multiple of 64, then floats):
//   u8t      scale, minimum                            x ~ code * scale + minimum
//   u8g<G>   scale[K / G], minimum[K / G]              the same per group of G = 32, 64, 128 columns
// The scale is (maximum - minimum) / 255; where that is 0 it is 1 and the codes are 0. A nan in a row (group) makes its
// minimum nan, so that it comes through. With rotation H = 64 or 128, each aligned block of H columns is first
// multiplied by the normalised Hadamard matrix in Sylvester's order; K is then a multiple of H.
#pragma once

#include "vec.h"

namespace af {

AF_INLINE long pad64(long n) { return (n + 63) / 64 * 64; }

// ---- rotation
template <int S>
AF_INLINE vf butterfly(vf x) {  // lanes without bit S: x + partner; with it: partner - x
    alignas(64) static constexpr float sign[16] = {
        1, S & 1 ? -1 : 1, S & 2 ? -1 : 1, S & 3 ? -1 : 1, S & 4 ? -1 : 1, S & 5 ? -1 : 1, S & 6 ? -1 : 1,
        S & 7 ? -1 : 1, S & 8 ? -1 : 1, S & 9 ? -1 : 1, S & 10 ? -1 : 1, S & 11 ? -1 : 1, S & 12 ? -1 : 1, S & 13 ? -1 : 1,
        S & 14 ? -1 : 1, S & 15 ? -1 : 1};
    return fma(x, load(sign), swap<S>(x));
}

// x times the Hadamard matrix of 16 N columns, not yet divided by its square root.
template <int N>
AF_INLINE void hadamard(vf (&x)[N]) {
    AF_UNROLL for (int step = N / 2; step > 0; step /= 2)
        AF_UNROLL for (int i = 0; i < N; i++)
            if ((i & step) == 0) {
                vf a = x[i], b = x[i + step];
                x[i] = a + b;
                x[i + step] = a - b;
            }
    AF_UNROLL for (int i = 0; i < N; i++) x[i] = butterfly<1>(butterfly<2>(butterfly<4>(butterfly<8>(x[i]))));
}

constexpr float hadamard_scale(int H) { return H == 64 ? 0.125f : H == 128 ? 0.0883883476483184406f : 1.0f; }

// ---- minimum and maximum, and whether there was a nan
struct Extent {
    vf low, high;
    vm odd;  // lanes that met a nan
    AF_INLINE static Extent none() { return {set1(__builtin_inff()), set1(-__builtin_inff()), not_(lanes(16))}; }
    AF_INLINE void add(vf a, vf b) {
        low = fast_min(low, fast_min(a, b));
        high = fast_max(high, fast_max(a, b));
        odd = or_(odd, unordered(a, b));
    }
    AF_INLINE void join(const Extent& o) {
        low = fast_min(low, o.low);
        high = fast_max(high, o.high);
        odd = or_(odd, o.odd);
    }
};

// What a row (group) is stored with, and what its floats are turned into codes with: (x - low) * inverse. Where low is
// not far from 0 in terms of the range that is one multiply-add, whose error is below 1/1000 of a code.
struct Coding {
    float scale, minimum;
    vf low, inverse, offset;
    bool near;
    template <bool Near>
    AF_INLINE vf level(vf x) const {
        return Near ? fma(x, inverse, offset) : (x - low) * inverse;
    }
    template <bool Near>
    AF_INLINE void code(const vf* x, uint8_t* out) const {
        store_codes(out, level<Near>(x[0]), level<Near>(x[1]), level<Near>(x[2]), level<Near>(x[3]));
    }
};

// `unit` is what the floats still have to be multiplied by.
AF_INLINE Coding coding(const Extent& e, float unit) {
    float low, high;
    extremes(e.low, e.high, low, high);
    if (__builtin_expect(any(e.odd), 0)) low = high = __builtin_nanf("");
    const float range = high - low;
    if (!(range > 0.0f)) return {1.0f, low * unit, set1(low), zero(), zero(), false};
    const float inverse = 255.0f / range;
    return {range * (unit / 255.0f), low * unit, set1(low), set1(inverse), set1(-low * inverse),
            __builtin_fabsf(low) <= 16.0f * range};
}

template <int N>
AF_INLINE void load_all(const float* x, vf (&v)[N]) {
    AF_UNROLL for (int i = 0; i < N; i++) v[i] = load(x + 16 * i);
}
template <int N>
AF_INLINE void add_all(Extent& e, const vf (&v)[N]) {
    AF_UNROLL for (int i = 0; i < N; i += 2) e.add(v[i], v[i + 1]);
}

// ---- u8t
inline Extent row_extent(const float* x, long K) {
    Extent a = Extent::none(), b = Extent::none();
    long i = 0;
    for (; i + 64 <= K; i += 64) {
        a.add(load(x + i), load(x + i + 16));
        b.add(load(x + i + 32), load(x + i + 48));
    }
    for (; i + 16 <= K; i += 16) a.add(load(x + i), load(x + i));
    if (i < K) {
        vf last = select(lanes(int(K - i)), load(x + i, int(K - i)), set1(x[i]));
        a.add(last, last);
    }
    a.join(b);
    return a;
}

template <bool Near>
AF_INLINE void row_codes_as(const float* x, long K, const Coding& c, uint8_t* out) {
    long i = 0;
    for (; i + 64 <= K; i += 64) {
        vf v[4];
        load_all(x + i, v);
        c.code<Near>(v, out + i);
    }
    for (; i + 16 <= K; i += 16) store_codes(out + i, c.level<Near>(load(x + i)));
    if (i < K) {
        store_codes(out + i, first(c.level<Near>(load(x + i, int(K - i))), int(K - i), 0.0f));
        i += 16;
    }
    for (; i < pad64(K); i += 16) store(out + i, zero());
}
inline void row_codes(const float* x, long K, const Coding& c, uint8_t* out) {
    if (c.near) return row_codes_as<true>(x, K, c, out);
    row_codes_as<false>(x, K, c, out);
}

// Rotates blocks [0, K) from x to y.
template <int H>
AF_INLINE Extent rotate_blocks(const float* x, long K, float* y) {
    Extent e = Extent::none();
    for (long i = 0; i < K; i += H) {
        vf v[H / 16];
        load_all(x + i, v);
        hadamard(v);
        add_all(e, v);
        AF_UNROLL for (int j = 0; j < H / 16; j++) store(y + i + 16 * j, v[j]);
    }
    return e;
}

constexpr long kRotatedAtOnce = 4096;  // floats of rotated row kept on the stack; longer rows are rotated twice

template <int H>
inline void quantise_long_row(const float* x, long K, char* out, float* part) {
    Extent e = Extent::none();
    for (long i = 0; i < K; i += kRotatedAtOnce)
        e.join(rotate_blocks<H>(x + i, K - i < kRotatedAtOnce ? K - i : kRotatedAtOnce, part));
    const Coding c = coding(e, hadamard_scale(H));
    for (long i = 0; i < K; i += kRotatedAtOnce) {
        const long n = K - i < kRotatedAtOnce ? K - i : kRotatedAtOnce;
        rotate_blocks<H>(x + i, n, part);
        row_codes(part, n, c, (uint8_t*)out + i);
    }
    const float tail[2] = {c.scale, c.minimum};
    std::memcpy(out + K, tail, 8);
}

template <int H = 0>
inline void quantise_row_u8t(const float* x, long K, char* out) {
    static_assert(H == 0 || H == 64 || H == 128, "rotations are over 64 or 128 columns");
    alignas(64) float rotated[H == 0 ? 16 : kRotatedAtOnce];
    Extent e;
    if constexpr (H == 0) {
        e = row_extent(x, K);
    } else {
        if (K > kRotatedAtOnce) return quantise_long_row<H>(x, K, out, rotated);
        e = rotate_blocks<H>(x, K, rotated);
        x = rotated;
    }
    const Coding c = coding(e, hadamard_scale(H));
    row_codes(x, K, c, (uint8_t*)out);
    const float tail[2] = {c.scale, c.minimum};
    std::memcpy(out + pad64(K), tail, 8);
}

// The extent of values met one vector at a time. A nan shows in the sum; where that is nan the row is looked at again.
struct Span {
    vf low, high, sum;
    AF_INLINE static Span none() { return {set1(__builtin_inff()), set1(-__builtin_inff()), zero()}; }
    AF_INLINE void add(vf a, int n) {  // its first n lanes
        low = fast_min(low, first(a, n, __builtin_inff()));
        high = fast_max(high, first(a, n, -__builtin_inff()));
        sum += first(a, n, 0.0f);
    }
    AF_INLINE void join(const Span& o) {
        low = fast_min(low, o.low);
        high = fast_max(high, o.high);
        sum += o.sum;
    }
};
AF_INLINE Coding coding(const float* x, long K, const Span& s) {
    if (__builtin_expect(any(isnan(s.sum)), 0)) return coding(row_extent(x, K), 1.0f);
    return coding(Extent{s.low, s.high, not_(lanes(16))}, 1.0f);
}
inline void write_u8t(const float* x, long K, char* out, const Coding& c) {
    row_codes(x, K, c, (uint8_t*)out);
    const float tail[2] = {c.scale, c.minimum};
    std::memcpy(out + pad64(K), tail, 8);
}

// ---- u8g
// Groups that lie in 16 N columns held in registers; their scales and minima go to s and m.
template <int G, int N>
AF_INLINE void quantise_groups(const vf (&v)[N], uint8_t* codes, float* s, float* m, float unit) {
    AF_UNROLL for (int g = 0; g < N; g += G / 16) {
        Extent e = Extent::none();
        AF_UNROLL for (int i = 0; i < G / 16; i += 2) e.add(v[g + i], v[g + i + 1]);
        const Coding c = coding(e, unit);
        if constexpr (G == 32) {
            for (int i = 0; i < 2; i++) store_codes(codes + 16 * (g + i), c.level<false>(v[g + i]));
        } else {
            AF_UNROLL for (int i = 0; i < G / 16; i += 4) c.code<false>(v + g + i, codes + 16 * (g + i));
        }
        s[g / (G / 16)] = c.scale;
        m[g / (G / 16)] = c.minimum;
    }
}

// K is a multiple of G (and of H).
template <int G, int H = 0>
inline void quantise_row_u8g(const float* x, long K, char* out) {
    static_assert((G == 32 || G == 64 || G == 128) && (H == 0 || H == 64 || H == 128), "groups of 32, 64 or 128");
    constexpr int SPAN = G > H ? G : H;
    float* s = (float*)(out + pad64(K));
    float* m = s + K / G;
    for (long i = 0; i < K; i += SPAN) {
        vf v[SPAN / 16];
        load_all(x + i, v);
        if constexpr (H == 64 && SPAN == 128) {
            vf(&low)[4] = *(vf(*)[4])v;
            vf(&high)[4] = *(vf(*)[4])(v + 4);
            hadamard(low);
            hadamard(high);
        } else if constexpr (H != 0) {
            hadamard(v);
        }
        quantise_groups<G>(v, (uint8_t*)out + i, s + i / G, m + i / G, hadamard_scale(H));
    }
    for (long i = K; i < pad64(K); i += 16) store((uint8_t*)out + i, zero());
}

// ---- bf16 and f32 rows
// K floats as bf16, zeros up to a multiple of 32.
template <int H = 0>
inline void bf16_row(const float* x, long K, char* out) {
    bf16* y = (bf16*)out;
    long i = 0;
    if constexpr (H != 0) {
        for (; i < K; i += H) {
            vf v[H / 16];
            load_all(x + i, v);
            hadamard(v);
            AF_UNROLL for (int j = 0; j < H / 16; j++) store(y + i + 16 * j, v[j] * hadamard_scale(H));
        }
    }
    for (; i + 16 <= K; i += 16) store(y + i, load(x + i));
    if (i < K) {
        store(y + i, load(x + i, int(K - i)));
        i += 16;
    }
    for (; i < (K + 31) / 32 * 32; i += 16) store(y + i, zero());
}

// ---- norms
struct Moments {
    float mean, variance;  // the variance divides by K, as layer norm's does
};

// Sums of a lane's distances from the lane's first value, and of their squares: one pass, and the squares lose at most
// a factor K / 16 of precision whatever the row holds.
struct LaneSums {
    vf sum, squares;
    AF_INLINE void add(vf d) {
        sum += d;
        squares = fma(d, d, squares);
    }
};

inline Moments short_moments(const float* x, int K) {
    const float mean = hsum(load(x, K)) / float(K);
    const vf d = first(load(x, K) - set1(mean), K, 0.0f);
    return {mean, hsum(d * d) / float(K)};
}

inline Moments moments(const float* x, long K) {
    if (K < 16) return short_moments(x, int(K));
    const vf start = load(x);
    LaneSums a{zero(), zero()}, b = a;
    long i = 0;
    for (; i + 32 <= K; i += 32) {
        a.add(load(x + i) - start);
        b.add(load(x + i + 16) - start);
    }
    for (; i + 16 <= K; i += 16) a.add(load(x + i) - start);
    vf count = set1(float(K / 16));
    if (i < K) {
        a.add(first(load(x + i, int(K - i)) - start, int(K - i), 0.0f));
        count = select(lanes(int(K - i)), count + 1.0f, count);
    }
    const vf sum = a.sum + b.sum, lane_mean = sum / count;
    const float mean = hsum(fma(start, count, sum)) / float(K);
    const vf between = (start - set1(mean)) + lane_mean;
    const vf within = fnma(sum, lane_mean, a.squares + b.squares);
    return {mean, hsum(fma(between * between, count, within)) / float(K)};
}

// y = (x - mean) / sqrt(variance + eps) * weight + bias; y may be x.
inline void layer_norm_row(const float* x, const float* weight, const float* bias, float eps, long K, float* y) {
    const Moments m = moments(x, K);
    const vf mean = set1(m.mean), factor = set1(1.0f / __builtin_sqrtf(m.variance + eps));
    long i = 0;
    for (; i + 16 <= K; i += 16) store(y + i, fma((load(x + i) - mean) * factor, load(weight + i), load(bias + i)));
    const int n = int(K - i);
    if (n > 0) store(y + i, fma((load(x + i, n) - mean) * factor, load(weight + i, n), load(bias + i, n)), n);
}

// y = the normalised row; its extent is met on the way.
inline Extent normalise(const float* x, const Moments& m, const float* weight, const float* bias, float eps, long K,
                        float* y) {
    const vf mean = set1(m.mean), factor = set1(1.0f / __builtin_sqrtf(m.variance + eps));
    Extent e = Extent::none();
    long i = 0;
    for (; i + 32 <= K; i += 32) {
        vf a = fma((load(x + i) - mean) * factor, load(weight + i), load(bias + i));
        vf b = fma((load(x + i + 16) - mean) * factor, load(weight + i + 16), load(bias + i + 16));
        e.add(a, b);
        store(y + i, a);
        store(y + i + 16, b);
    }
    for (; i < K; i += 16) {
        const int n = int(K - i < 16 ? K - i : 16);
        vf a = fma((load(x + i, n) - mean) * factor, load(weight + i, n), load(bias + i, n));
        store(y + i, a, n);
        a = select(lanes(n), a, set1(y[i]));
        e.add(a, a);
    }
    return e;
}

constexpr long kRowsAtOnce = 4;  // each step is done for 4 rows before the next: none waits for its own reductions

// Layer norm straight to u8t, rows x_row floats and out_row bytes apart. `scratch`: kRowsAtOnce x K floats.
inline void layer_norm_rows_u8t(const float* x, long x_row, long rows, const float* weight, const float* bias,
                                float eps, long K, float* scratch, char* out, long out_row) {
    for (long r = 0; r < rows; r += kRowsAtOnce, x += kRowsAtOnce * x_row, out += kRowsAtOnce * out_row) {
        const long n = rows - r < kRowsAtOnce ? rows - r : kRowsAtOnce;
        Moments m[kRowsAtOnce];
        Extent e[kRowsAtOnce];
        Coding c[kRowsAtOnce];
        for (long i = 0; i < n; i++) m[i] = moments(x + i * x_row, K);
        for (long i = 0; i < n; i++) e[i] = normalise(x + i * x_row, m[i], weight, bias, eps, K, scratch + i * K);
        for (long i = 0; i < n; i++) c[i] = coding(e[i], 1.0f);
        for (long i = 0; i < n; i++) {
            row_codes(scratch + i * K, K, c[i], (uint8_t*)out + i * out_row);
            const float tail[2] = {c[i].scale, c[i].minimum};
            std::memcpy(out + i * out_row + pad64(K), tail, 8);
        }
    }
}

// ---- rows of an embedding table as floats
template <class T>
AF_INLINE void gather_plain(const void* block, long width, long row, float* out) {
    const T* p = (const T*)block + row * width;
    long i = 0;
    for (; i + 16 <= width; i += 16) store(out + i, load(p + i));
    if (i < width) store(out + i, load(p + i, int(width - i)), int(width - i));
}
// [rows][width] floats or bf16.
inline void gather_f32(const void* block, long width, long row, float* out) {
    gather_plain<float>(block, width, row, out);
}
inline void gather_bf16(const void* block, long width, long row, float* out) {
    gather_plain<bf16>(block, width, row, out);
}

template <class Code>
AF_INLINE void gather_codes(const char* line, long width, vf scale, vf minimum, float* out) {
    const Code* codes = (const Code*)line;
    long i = 0;
    for (; i + 16 <= width; i += 16) store(out + i, fma(load(codes + i), scale, minimum));
    if (i < width) store(out + i, fma(load(codes + i, int(width - i)), scale, minimum), int(width - i));
}
// A line is `width` codes, then scale and minimum as floats (u8), or a scale alone (s8); pitch 0: the line's length.
inline void gather_u8(const void* block, long width, long row, float* out, long pitch = 0) {
    const char* line = (const char*)block + row * (pitch != 0 ? pitch : width + 8);
    float tail[2];
    std::memcpy(tail, line + width, 8);
    gather_codes<uint8_t>(line, width, set1(tail[0]), set1(tail[1]), out);
}
inline void gather_s8(const void* block, long width, long row, float* out, long pitch = 0) {
    const char* line = (const char*)block + row * (pitch != 0 ? pitch : width + 4);
    float scale;
    std::memcpy(&scale, line + width, 4);
    gather_codes<int8_t>(line, width, set1(scale), zero(), out);
}

}  // namespace af
