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
constexpr float kNear = 16.0f * 255.0f;
struct Coding {
    float scale, minimum;
    vf low, inverse, offset;
    bool near;
    template <bool Near>
    AF_INLINE vf level(vf x) const {
        return Near ? fma(x, inverse, offset) : (x - low) * inverse;
    }
};

// The same of 16 rows (groups), one a lane; `unit` is what the floats still have to be multiplied by.
struct Codings {
    alignas(64) float scale[16], minimum[16], low[16], inverse[16], offset[16];
    bool near;  // all of them
    AF_INLINE void set(vf least, vf most, float unit) {
        const vf range = most - least;
        const vm ranges = gt(range, zero());
        store(scale, select(ranges, range * (unit / 255.0f), set1(1.0f)));
        store(minimum, least * unit);
        store(low, least);
        const vf factor = select(ranges, set1(255.0f) / range, zero());
        store(inverse, factor);
        store(offset, -(least * factor));
        near = all(le(abs(least) * factor, set1(kNear)));
    }
    AF_INLINE void put(long i, const Coding& c) {
        scale[i] = c.scale;
        minimum[i] = c.minimum;
        low[i] = lane0(c.low);
        inverse[i] = lane0(c.inverse);
        offset[i] = lane0(c.offset);
    }
    template <bool Near>
    AF_INLINE vf level(vf x, long i) const {
        return Near ? fma(x, set1(inverse[i]), set1(offset[i])) : (x - set1(low[i])) * set1(inverse[i]);
    }
    AF_INLINE Coding operator[](long i) const {
        return {scale[i], minimum[i], set1(low[i]), set1(inverse[i]), set1(offset[i]),
                __builtin_fabsf(low[i]) * inverse[i] <= kNear};
    }
};

AF_INLINE Coding coding(const Extent& e, float unit) {
    float low, high;
    extremes(e.low, e.high, low, high);
    if (__builtin_expect(any(e.odd), 0)) low = high = __builtin_nanf("");
    Codings made;
    made.set(set1(low), set1(high), unit);
    return made[0];
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
    AF_ROLLED for (; i + 64 <= K; i += 64) {
        vf v[4];
        load_all(x + i, v);
        AF_UNROLL for (int j = 0; j < 4; j++) v[j] = c.level<Near>(v[j]);
        store_codes(out + i, v[0], v[1], v[2], v[3]);
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

// The extent of values met one vector at a time. `odd` is 0 until a value is no number or no finite one; then the row
// is looked at again. (A multiply-add, because sums would wait for the same units as minimum and maximum.)
struct Span {
    vf low, high, odd;
    AF_INLINE static Span none() { return {set1(__builtin_inff()), set1(-__builtin_inff()), zero()}; }
    AF_INLINE void add(vf a, int n) {  // its first n lanes
        low = fast_min(low, first(a, n, __builtin_inff()));
        high = fast_max(high, first(a, n, -__builtin_inff()));
        odd = fma(first(a, n, 0.0f), zero(), odd);
    }
    AF_INLINE void join(const Span& o) {
        low = fast_min(low, o.low);
        high = fast_max(high, o.high);
        odd += o.odd;
    }
};
inline void write_u8t(const float* x, long K, char* out, const Coding& c) {
    row_codes(x, K, c, (uint8_t*)out);
    const float tail[2] = {c.scale, c.minimum};
    std::memcpy(out + pad64(K), tail, 8);
}

// ---- u8g
constexpr long kGroups = 16;  // that get their scales at once

// Least and most of up to 16 groups, two groups after two others: least, least, -most, -most.
struct GroupExtents {
    alignas(64) float pairs[kGroups / 2][4];
    bool odd;  // there was a value that is no number or no finite one
};

// Of the groups in columns [begin, end); value(column) makes 16 columns.
template <int G, class F>
AF_INLINE void group_extents(long begin, long end, GroupExtents& e, F&& value) {
    vf odd[2] = {zero(), zero()};  // as in Span
    const auto meet = [&](long at, vf& least, vf& most) AF_LAMBDA {
        least = most = once(value(at));
        odd[0] = fma(least, zero(), odd[0]);
        AF_UNROLL for (int i = 1; i < G / 16; i++) {
            const vf v = once(value(at + 16 * i));
            least = fast_min(least, v);
            most = fast_max(most, v);
            odd[i % 2] = fma(v, zero(), odd[i % 2]);
        }
    };
    float* out = e.pairs[0];
    AF_ROLLED for (; begin + 2 * G <= end; begin += 2 * G, out += 4) {
        vf least[2], most[2];
        AF_UNROLL for (int j = 0; j < 2; j++) meet(begin + j * G, least[j], most[j]);
        store4(out, fast_hmin4(least[0], least[1], -most[0], -most[1]));
    }
    if (begin < end) {
        vf least, most;
        meet(begin, least, most);
        store4(out, fast_hmin4(least, least, -most, -most));
    }
    e.odd = any(isnan(odd[0] + odd[1]));
}
template <int G>
AF_INLINE void group_extents(const float* x, long n, GroupExtents& e) {
    group_extents<G>(0, n, e, [&](long at) AF_LAMBDA { return load(x + at); });
}

template <int G, bool Near>
AF_INLINE void group_codes(const float* x, long n, const Codings& c, uint8_t* out) {
    constexpr int STEP = G == 32 ? 2 : 1;  // groups in 64 columns
    long g = 0;
    AF_ROLLED for (; g + STEP <= n; g += STEP)
        AF_UNROLL for (int i = 0; i < STEP * G; i += 64) {
            vf v[4];
            load_all(x + g * G + i, v);
            AF_UNROLL for (int j = 0; j < 4; j++) v[j] = c.level<Near>(v[j], g + j * 16 / G);
            store_codes(out + g * G + i, v[0], v[1], v[2], v[3]);
        }
    for (; g < n; g++)
        for (int i = 0; i < G; i += 16) store_codes(out + g * G + i, c.level<Near>(load(x + g * G + i), g));
}

// Of columns [at, at + n) of a row of K, n up to 16 groups; they are at x, rotated by H, and e is theirs. Writes all of
// the row's form but the codes.
template <int G, int H>
AF_INLINE void group_codings(const float* x, long n, long at, long K, char* out, const GroupExtents& e, Codings& c) {
    vf least, most;
    deal(e.pairs[0], least, most);
    if (__builtin_expect(e.odd, 0)) {
        alignas(64) float nan[16] = {};
        for (long i = 0; i < n; i++)
            if (x[i] != x[i]) nan[i / G] = x[i];
        least += load(nan);
    }
    c.set(least, -most, hadamard_scale(H));
    float* const scale = (float*)(out + pad64(K)) + at / G;
    store(scale, load(c.scale), int(n / G));
    store(scale + K / G, load(c.minimum), int(n / G));
    for (long i = K; at + n == K && i < pad64(K); i += 16) store((uint8_t*)out + i, zero());
}
template <int G>
AF_INLINE void write_u8g(const float* x, long n, char* out, const Codings& c) {
    c.near ? group_codes<G, true>(x, n / G, c, (uint8_t*)out) : group_codes<G, false>(x, n / G, c, (uint8_t*)out);
}

// K is a multiple of G and of H.
template <int G, int H = 0>
inline void quantise_row_u8g(const float* x, long K, char* out) {
    static_assert((G == 32 || G == 64 || G == 128) && (H == 0 || H == 64 || H == 128), "groups of 32, 64 or 128");
    alignas(64) float rotated[H == 0 ? 16 : kGroups * G];
    for (long at = 0; at < K; at += kGroups * G) {
        const long n = K - at < kGroups * G ? K - at : kGroups * G;
        if constexpr (H != 0) rotate_blocks<H>(x + at, n, rotated);
        const float* const from = H == 0 ? x + at : rotated;
        GroupExtents e{};
        Codings c;
        group_extents<G>(from, n, e);
        group_codings<G, H>(from, n, at, K, out, e, c);
        write_u8g<G>(from, n, out + at, c);
    }
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
