// Windows that slide over images [N, H, W, C]: their taps side by side, sums of weighted taps, maxima.
// In: images with any strides, weights [KH * KW, C]. Out: rows (n, oh, ow), each written whole, none of its neighbours.
//
// Rows are walked in runs of one line of windows, so that what a line has in common (the image, the kernel's rows that
// lie inside) is worked out once; nothing is divided for a row. Sums and maxima keep several neighbouring windows in
// registers: the weights are loaded once for all of them.
#pragma once

#include "vec.h"

namespace af {

struct Windows {
    long height, width, channels;
    long stride[4];  // of the images, in floats: n, h, w, c
    long kernel[2], step[2], padding[4], dilation[2];  // height, width; padding: top, left, bottom, right

    long count(int axis, long size) const {
        return (size + padding[axis] + padding[axis + 2] - dilation[axis] * (kernel[axis] - 1) - 1) / step[axis] + 1;
    }
    // The places of the kernel that lie inside for a window whose first one is at `first`.
    void inside(int axis, long first, long size, long& begin, long& end) const {
        const long d = dilation[axis];
        begin = 0;
        end = kernel[axis];
        if (first < 0) begin = (d - 1 - first) / d;
        if (first + (end - 1) * d >= size) end = size > first ? (size - first + d - 1) / d : 0;
        if (begin > kernel[axis]) begin = kernel[axis];
        if (end < begin) end = begin;
    }
};

// Windows [from, to) of one line, and the rows of the kernel that lie inside the image.
struct Line {
    const float* image;
    long top;  // row of the image at the kernel's first place
    long begin, end, from, to;
};

// Calls each(line, out) for the lines that hold rows [r0, r1).
template <class F>
AF_INLINE void each_line(const Windows& w, const float* x, float* out, long columns, long r0, long r1, F&& each) {
    if (r0 >= r1) return;
    const long high = w.count(0, w.height), wide = w.count(1, w.width);
    long from = r0 % wide, oh = r0 / wide % high, n = r0 / wide / high;
    for (long r = r0; r < r1;) {
        Line line{x + n * w.stride[0], oh * w.step[0] - w.padding[0], 0, 0, from, from + r1 - r};
        if (line.to > wide) line.to = wide;
        w.inside(0, line.top, w.height, line.begin, line.end);
        each(line, out + r * columns);
        r += line.to - from;
        from = 0;
        if (++oh == high) {
            oh = 0;
            ++n;
        }
    }
}

// ---- taps side by side
AF_INLINE void clear(float* p, long n) {
    long i = 0;
    AF_ROLLED for (; i + 16 <= n; i += 16) store(p + i, zero());
    if (i < n) store(p + i, zero(), int(n - i));
}

// Fewer than 16; outside of AVX-512 without masks, whose stores take long on some processors.
AF_INLINE void copy_few(float* p, const float* x, long n) {
#if defined(AF_AVX512)
    store(p, load(x, int(n)), int(n));
#else
    if (n >= 8) {
        float first[8], last[8];
        std::memcpy(first, x, 32);
        std::memcpy(last, x + n - 8, 32);
        std::memcpy(p, first, 32);
        std::memcpy(p + n - 8, last, 32);
    } else if (n >= 4) {
        float first[4], last[4];
        std::memcpy(first, x, 16);
        std::memcpy(last, x + n - 4, 16);
        std::memcpy(p, first, 16);
        std::memcpy(p + n - 4, last, 16);
    } else {
        AF_ROLLED for (long i = 0; i < n; ++i) p[i] = x[i];
    }
#endif
}

AF_INLINE void copy(float* p, const float* x, long n) {
    if (n < 16) return copy_few(p, x, n);
    long i = 0;
    AF_ROLLED for (; i + 64 <= n; i += 64) {
        const vf a = load(x + i), b = load(x + i + 16), c = load(x + i + 32), d = load(x + i + 48);
        store(p + i, a);
        store(p + i + 16, b);
        store(p + i + 32, c);
        store(p + i + 48, d);
    }
    AF_ROLLED for (; i + 16 <= n; i += 16) store(p + i, load(x + i));
    if (i < n) store(p + n - 16, load(x + n - 16));  // over what is there already
}

// One row of the kernel's places [begin, end), their columns of the image from `x` on.
AF_INLINE void taps_of(const Windows& w, const float* x, float* p, long begin, long end) {
    const long C = w.channels, apart = w.dilation[1] * w.stride[2];
    if (begin > 0) clear(p, begin * C);
    if (w.stride[3] == 1 && apart == C) {
        copy(p + begin * C, x + begin * C, (end - begin) * C);
    } else {
        for (long k = begin; k < end; ++k) copy(p + k * C, x + k * apart, C);
    }
    if (end < w.kernel[1]) clear(p + end * C, (w.kernel[1] - end) * C);
}

// `count` runs of `n` floats, `below` apart in the image: those of a window that lies inside it, channels side by side.
AF_INLINE void runs_of(float* p, const float* x, long n, long below, long count) {
    if (n > 32) {
        for (long k = 0; k < count; ++k, x += below, p += n) copy(p, x, n);
    } else if (n < 16) {
        for (long k = 0; k < count; ++k, x += below, p += n) copy_few(p, x, n);
    } else {
        for (long k = 0; k < count; ++k, x += below, p += n) {
            const vf first = load(x), last = load(x + n - 16);
            store(p, first);
            store(p + n - 16, last);
        }
    }
}

AF_INLINE void patches_of(const Windows& w, const Line& line, float* out) {
    const long run = w.kernel[1] * w.channels, below = w.dilation[0] * w.stride[1];
    const float* image = line.image + (line.top + line.begin * w.dilation[0]) * w.stride[1];
    const bool packed = w.dilation[1] * w.stride[2] == w.channels;
    for (long ow = line.from; ow < line.to; ++ow) {
        const long left = ow * w.step[1] - w.padding[1];
        long begin, end;
        w.inside(1, left, w.width, begin, end);
        if (line.begin > 0) clear(out, line.begin * run);
        const float* x = image + left * w.stride[2];
        float* p = out + line.begin * run;
        if (packed && end - begin == w.kernel[1]) runs_of(p, x, run, below, line.end - line.begin);
        else
            for (long k = line.begin; k < line.end; ++k, x += below, p += run) taps_of(w, x, p, begin, end);
        if (line.end < w.kernel[0]) clear(out + line.end * run, (w.kernel[0] - line.end) * run);
        out += w.kernel[0] * run;
    }
}

// p[i * apart] = x[i * next]: element by element, which is faster than GCC's scattered vectors; not inline: registers.
AF_NOINLINE inline void scatter(float* p, long apart, const float* x, long next, long n) {
    const auto one = [&] {
        uint32_t bits = bits_of(*x);
        asm("" : "+r"(bits));
        *p = float_of(bits);
        p += apart;
        x += next;
    };
    for (; n >= 4; n -= 4) {
        one();
        one();
        one();
        one();
    }
    for (; n > 0; --n) one();
}

// The same for images whose channels lie apart: element by element, for 16 windows at a time, whose rows stay in the
// first-level cache.
inline void spread_patches_of(const Windows& w, const Line& line, float* out) {
    const long C = w.channels, taps = w.kernel[0] * w.kernel[1], K = taps * C, next = w.step[1] * w.stride[2];
    for (long from = line.from, to; from < line.to; from = to, out += 16 * K) {
        to = from + 16 < line.to ? from + 16 : line.to;
        const long left = from * w.step[1] - w.padding[1], right = (to - 1) * w.step[1] - w.padding[1];
        const bool inside = left >= 0 && right + (w.kernel[1] - 1) * w.dilation[1] < w.width;
        if (!inside || line.end - line.begin < w.kernel[0]) clear(out, (to - from) * K);
        for (long j = 0; j < w.kernel[1]; ++j) {
            const long first = left + j * w.dilation[1];  // column of the first window's place
            const long lo = first < 0 ? (w.step[1] - 1 - first) / w.step[1] : 0;
            const long room = w.width > first ? (w.width - first + w.step[1] - 1) / w.step[1] : 0;
            const long hi = room < to - from ? room : to - from;
            for (long k = line.begin; k < line.end; ++k)
                for (long c = 0; c < C; ++c) {
                    const long row = (line.top + k * w.dilation[0]) * w.stride[1];
                    const float* x = line.image + row + (first + lo * w.step[1]) * w.stride[2] + c * w.stride[3];
                    float* p = out + lo * K + (k * w.kernel[1] + j) * C + c;
                    scatter(p, K, x, next, hi - lo);
                }
        }
    }
}

// ---- sums and maxima
#if defined(AF_AVX512)
constexpr int WINDOW_VECTORS = 2, WINDOWS_TOGETHER = 4, STRIP_OF = 8;
#elif defined(AF_AVX2)
constexpr int WINDOW_VECTORS = 1, WINDOWS_TOGETHER = 4, STRIP_OF = 4;
#else
constexpr int WINDOW_VECTORS = 1, WINDOWS_TOGETHER = 1, STRIP_OF = 2;
#endif

struct Sum {
    const float* weight;  // of the taps, from the channel on; nullptr: all 1
    float share;          // that the sum is multiplied by
    AF_INLINE vf start() const { return zero(); }
    AF_INLINE vf factor(long at, int n) const { return weight ? load(weight + at, n) : set1(1.0f); }
    AF_INLINE vf join(vf sum, vf x, vf factor) const { return fma(x, factor, sum); }
    AF_INLINE vf finish(vf sum) const { return share == 1.0f ? sum : sum * share; }
};
struct Maximum {
    AF_INLINE vf start() const { return set1(-__builtin_inff()); }
    AF_INLINE vf factor(long, int) const { return zero(); }
    AF_INLINE vf join(vf most, vf x, vf) const { return max(most, x); }
    AF_INLINE vf finish(vf most) const { return most; }
};

// Channels [c, c + 16 V) (V = 1: `n` of them) of `W` neighbouring windows. `x`: the channel at the first window's
// first place; `begin`, `end`: the kernel's columns that lie inside for all of them.
template <int W, int V, class Op>
AF_INLINE void tile(const Windows& w, const Line& line, Op op, const float* x, float* out, long c, int n, long begin,
                    long end) {
    const long C = w.channels, next = w.step[1] * w.stride[2], apart = w.dilation[1] * w.stride[2];
    vf made[W][V];
    AF_UNROLL for (int i = 0; i < W; ++i) AF_UNROLL for (int v = 0; v < V; ++v) made[i][v] = op.start();
    for (long k = line.begin; k < line.end; ++k) {
        const float* row = x + (line.top + k * w.dilation[0]) * w.stride[1] + begin * apart;
        long at = (k * w.kernel[1] + begin) * C + c;
        AF_ROLLED for (long j = begin; j < end; ++j, row += apart, at += C) {
            vf factor[V];
            AF_UNROLL for (int v = 0; v < V; ++v) factor[v] = op.factor(at + 16 * v, V == 1 ? n : 16);
            AF_UNROLL for (int i = 0; i < W; ++i) AF_UNROLL for (int v = 0; v < V; ++v) {
                const float* p = row + i * next + 16 * v;
                made[i][v] = op.join(made[i][v], V == 1 ? load(p, n) : load(p), factor[v]);
            }
        }
    }
    AF_UNROLL for (int i = 0; i < W; ++i) AF_UNROLL for (int v = 0; v < V; ++v)
        store(out + i * C + 16 * v, op.finish(made[i][v]), V == 1 ? n : 16);
}

// All channels of `W` neighbouring windows whose first one begins at column `left` of the image.
template <int W, class Op>
AF_NOINLINE void channels(const Windows& w, const Line& line, Op op, long left, float* out, long begin, long end) {
    constexpr int V = WINDOW_VECTORS;
    const float* x = line.image + left * w.stride[2];
    long c = 0;
    if constexpr (V > 1)
        for (; c + 16 * V <= w.channels; c += 16 * V) tile<W, V>(w, line, op, x + c, out + c, c, 16, begin, end);
    for (; c < w.channels; c += 16) {
        const int n = w.channels - c < 16 ? int(w.channels - c) : 16;
        tile<W, 1>(w, line, op, x + c, out + c, c, n, begin, end);
    }
}

// The same for images whose channels lie apart: channel by channel.
template <class Op>
AF_NOINLINE void spread_channels(const Windows& w, const Line& line, Op op, long left, float* out, long begin,
                                 long end) {
    for (long c = 0; c < w.channels; ++c)
        tile<1, 1>(w, line, op, line.image + left * w.stride[2] + c * w.stride[3], out + c, c, 1, begin, end);
}

// Weighted sums of `STRIP` neighbouring windows at most, all channels (16 at least), for the kernels of `KW` columns and
// steps of `S` that models use: a column of the image is loaded once for all windows that see it.
// EDGE: there are `count` windows, or columns lie outside of the image.
template <int KW, int S, int STRIP, bool EDGE>
AF_NOINLINE void strip(const Windows& w, const Line& line, Sum op, long left, int count, float* out) {
    constexpr int COLUMNS = (STRIP - 1) * S + KW;
    const long C = w.channels, right = w.width - left;
    for (long c = 0; c < C; c += 16) {
        if (c + 16 > C) c = C - 16;  // over what is there already
        vf made[STRIP];
        AF_UNROLL for (int i = 0; i < STRIP; ++i) made[i] = zero();
        for (long k = line.begin; k < line.end; ++k) {
            const float* x = line.image + (line.top + k * w.dilation[0]) * w.stride[1] + left * w.stride[2] + c;
            vf factor[KW];
            AF_UNROLL for (int j = 0; j < KW; ++j) factor[j] = load(op.weight + (k * KW + j) * C + c);
            AF_UNROLL for (int i = 0; i < COLUMNS; ++i) {
                if (EDGE && (left + i < 0 || i >= right)) continue;
                const vf column = once(load(x + i * w.stride[2]));
                AF_UNROLL for (int o = 0; o < STRIP; ++o)
                    if (i >= o * S && i < o * S + KW) made[o] = fma(column, factor[i - o * S], made[o]);
            }
        }
        AF_UNROLL for (int o = 0; o < STRIP; ++o)
            if (!EDGE || o < count) store(out + o * C + c, op.finish(made[o]));
    }
}

template <int KW, int S>
AF_INLINE void strips(const Windows& w, const Line& line, Sum op, float* out) {
    constexpr int STRIP = S == 1 ? STRIP_OF : 4;
    for (long ow = line.from; ow < line.to; ow += STRIP, out += STRIP * w.channels) {
        const long left = ow * S - w.padding[1];
        const bool whole = ow + STRIP <= line.to && left >= 0 && left + (STRIP - 1) * S + KW <= w.width;
        if (whole) strip<KW, S, STRIP, false>(w, line, op, left, STRIP, out);
        else strip<KW, S, STRIP, true>(w, line, op, left, line.to - ow < STRIP ? int(line.to - ow) : STRIP, out);
    }
}

// Is there a strip for these windows? Then they are done.
AF_INLINE bool in_strips(const Windows&, const Line&, Maximum, float*) { return false; }
inline bool in_strips(const Windows& w, const Line& line, Sum op, float* out) {
    if (!op.weight || w.dilation[1] != 1 || w.step[1] > 2 || w.channels < 16 || w.stride[3] != 1) return false;
    switch (w.kernel[1] * 10 + w.step[1]) {
        case 31: strips<3, 1>(w, line, op, out); return true;
        case 32: strips<3, 2>(w, line, op, out); return true;
        case 51: strips<5, 1>(w, line, op, out); return true;
        case 52: strips<5, 2>(w, line, op, out); return true;
        case 71: strips<7, 1>(w, line, op, out); return true;
        default: return false;
    }
}

template <class Op>
AF_INLINE void line_of(const Windows& w, const Line& line, Op op, float* out) {
    constexpr int W = WINDOWS_TOGETHER;
    if (in_strips(w, line, op, out)) return;
    for (long ow = line.from; ow < line.to;) {
        const long left = ow * w.step[1] - w.padding[1];
        long begin, end, begin_last, end_last;
        w.inside(1, left, w.width, begin, end);
        w.inside(1, left + (W - 1) * w.step[1], w.width, begin_last, end_last);
        const bool together = W > 1 && ow + W <= line.to && begin == 0 && end_last == w.kernel[1];
        float* const p = out + (ow - line.from) * w.channels;
        if (w.stride[3] != 1) spread_channels(w, line, op, left, p, begin, end);
        else if (together) channels<W>(w, line, op, left, p, begin, end);
        else channels<1>(w, line, op, left, p, begin, end);
        ow += together && w.stride[3] == 1 ? W : 1;
    }
}

// Compiled once for all units of a machine, see AF_TILES_WINDOWS. `share`: what sums are multiplied by.
template <int ONE>
struct WindowTiles {
    AF_NOINLINE static void patches(const Windows& w, const float* x, const float*, float, float* out, long r0, long r1) {
        each_line(w, x, out, w.kernel[0] * w.kernel[1] * w.channels, r0, r1,
                  [&](const Line& line, float* p) {
                      if (w.stride[3] == 1 || w.channels == 1) patches_of(w, line, p);
                      else spread_patches_of(w, line, p);
                  });
    }
    AF_NOINLINE static void sums(const Windows& w, const float* x, const float* weight, float share, float* out, long r0,
                                 long r1) {
        each_line(w, x, out, w.channels, r0, r1, [&](const Line& line, float* p) {
            line_of(w, line, Sum{weight, share}, p);
        });
    }
    AF_NOINLINE static void maxima(const Windows& w, const float* x, const float*, float, float* out, long r0, long r1) {
        each_line(w, x, out, w.channels, r0, r1,
                  [&](const Line& line, float* p) { line_of(w, line, Maximum{}, p); });
    }
};

}  // namespace af

#define AF_TILES_WINDOWS(KIND) KIND struct af::WindowTiles<0>;
