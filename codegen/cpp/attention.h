// In: queries, keys and values of one head, rows with a stride and contiguous columns; a mask. Out: rows of
// softmax(q kᵀ scale + mask) v.
//
// Keys and values are packed once per (group, kv head) with pack_kv, then any thread computes query rows from them with
// attend_rows. 8 rows at a time: scores in tiles of 8 x 32 into L1, maximum, 2^x and sum per row, probabilities not yet
// divided by their sum (in bf16 arithmetic: rounded to bf16) times the values, the division last. More keys than fit L1
// are taken in parts, the earlier sums rescaled. A row whose keys are all masked by -inf is 0, as in torch.
//
// Error against exact arithmetic, bf16: products of rounded operands, probabilities with relative error 2^-9; float:
// rounding of the sums only, no larger than eager torch's.
#pragma once

#include "attention_pack.h"
#include "math.h"

namespace af {

struct Attention {
    long queries, keys;
    int width;     // D, of keys and of values
    float scale;
    bool causal;   // query i sees keys 0..i
};

// ---- masks: what a score becomes; `row` and `column` are strides in elements (0: the same for all)
struct NoMask {
    static constexpr bool NONE = true;
    AF_INLINE vf operator()(vf x, vf scale, long, long, int) const { return x * scale; }
};

template <class T>
struct Mask {
    static constexpr bool NONE = false;
    const T* p;
    long row, column;
    AF_INLINE vf at(long q, long t, int n) const {
        if (__builtin_expect(column == 1, 1)) return load(p + q * row + t, n);
        float buffer[16] = {};
        for (int i = 0; i < n; i++) buffer[i] = hsum(load(p + q * row + (t + i) * column, 1));
        return load(buffer);
    }
    AF_INLINE vf operator()(vf x, vf scale, long q, long t, int n) const {
        if constexpr (sizeof(T) == 1) {  // bool: true takes part
            return select(ne(at(q, t, n), zero()), x * scale, set1(-__builtin_inff()));
        } else {
            return fma(x, scale, at(q, t, n));
        }
    }
};

inline NoMask no_mask() { return {}; }
template <class T>
Mask<T> mask_of(const T* p, long row, long column) {
    return {p, row, column};
}

namespace attention {

constexpr long MOST_ROWS = 8;
constexpr float LOG2E = 1.44269504f;

// Scratch of one thread: everything between packed keys and output rows.
template <bool Bf16>
struct Scratch {
    using Item = typename Kind<Bf16>::Item;
    long q_pitch, p_pitch, scores, probabilities, sums, totals, bytes;  // in bytes
    Scratch(long keys, long width) {
        const long part = round_up(keys < Kind<Bf16>::AT_ONCE ? keys : Kind<Bf16>::AT_ONCE, PANEL);
        q_pitch = round_up(width, 32) * long(sizeof(Item));
        p_pitch = part * long(sizeof(Item)) + 64;  // 64 more: rows of equal address modulo 4096 would share cache sets
        scores = MOST_ROWS * q_pitch;
        probabilities = scores + MOST_ROWS * part * 4;
        sums = probabilities + MOST_ROWS * p_pitch;
        totals = sums + MOST_ROWS * PANEL * 4;
        bytes = totals + MOST_ROWS * round_up(width, PANEL) * 4;
    }
};

// Where the softmax of up to 8 rows stands after some of the keys.
struct State {
    alignas(64) float most[16], sum[16], rescale[16];
    AF_INLINE State() {
        store(most, set1(-__builtin_inff()));
        store(sum, zero());
        store(rescale, zero());
    }
};

AF_INLINE vf power(vf x, bf16) { return exp2_short(x); }
AF_INLINE vf power(vf x, float) { return exp2(x); }
AF_INLINE float finite_or_zero(float most) { return most == -__builtin_inff() ? 0.0f : most; }

AF_INLINE void store_pair(float* p, vf a, vf b) {
    store(p, a);
    store(p + 16, b);
}
AF_INLINE void store_pair(bf16* p, vf a, vf b) {
#if defined(AF_AVX512)
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v));
#else
    store(p, a);
    store(p + 16, b);
#endif
}

// One row of scores: block b of 32 keys lies at s + 256 b. Of the part's keys the first `valid` count for this row.
struct Row {
    float* s;
    long blocks, valid, q, t0;  // q: the query; t0: the part's first key
    AF_INLINE float* at(long t) const { return s + t / PANEL * MOST_ROWS * PANEL + t % PANEL; }
    AF_INLINE long whole() const { return valid / PANEL * PANEL; }
};

// The largest masked score. Masked scores are written back, but those of whole blocks without a mask stay as they are.
template <class M>
AF_INLINE float masked_maximum(const Row& row, const M& mask, float scale) {
    const vf factor = set1(scale), none = set1(-__builtin_inff());
    vf most = none, other = none;
    long t = 0;
    for (; t < row.whole(); t += PANEL) {
        float* at = row.at(t);
        vf x = mask(load(at), factor, row.q, row.t0 + t, 16);
        vf y = mask(load(at + 16), factor, row.q, row.t0 + t + 16, 16);
        if constexpr (!M::NONE) store_pair(at, x, y);
        most = fast_max(most, x);
        other = fast_max(other, y);
    }
    for (; t < row.blocks * PANEL; t += 16) {
        const int n = int(row.valid - t < 16 ? row.valid - t : 16);
        vf x = n > 0 ? first(mask(load(row.at(t)), factor, row.q, row.t0 + t, n), n, -__builtin_inff()) : none;
        store(row.at(t), x);
        most = fast_max(most, x);
    }
    return fast_hmax(fast_max(most, other));
}

// Probabilities relative to `most`, as items; their sum is returned.
template <class M, class Item>
AF_INLINE float soften(const Row& row, float scale, float most, Item* p) {
    const vf top = set1(most), factor = set1(scale * LOG2E), offset = set1(-most * LOG2E), unit = set1(LOG2E);
    vf sum = zero(), other = zero();
    long t = 0;
    for (; t < row.whole(); t += PANEL) {
        vf x = load(row.at(t)), y = load(row.at(t) + 16);
        if constexpr (M::NONE) {
            x = power(fma(x, factor, offset), Item{});
            y = power(fma(y, factor, offset), Item{});
        } else {
            x = power((x - top) * unit, Item{});
            y = power((y - top) * unit, Item{});
        }
        store_pair(p + t, x, y);
        sum += x;
        other += y;
    }
    for (; t < row.blocks * PANEL; t += 16) {
        vf x = power((load(row.at(t)) - top) * unit, Item{});
        store(p + t, x);
        sum += x;
    }
    return hsum(sum + other);
}

// The caller's parts of one block of rows.
template <bool Bf16>
struct Block {
    using Item = typename Kind<Bf16>::Item;
    char* scratch;
    const Scratch<Bf16>& at;
    long first;
    int rows;
    AF_INLINE Item* q(long r) const { return (Item*)(scratch + r * at.q_pitch); }
    AF_INLINE float* scores(long r) const { return (float*)(scratch + at.scores) + r * PANEL; }
    AF_INLINE Item* p(long r) const { return (Item*)(scratch + at.probabilities + r * at.p_pitch); }
    AF_INLINE float* sums(long r) const { return (float*)(scratch + at.sums) + r * PANEL; }
    AF_INLINE float* totals(long r, long width) const {
        return (float*)(scratch + at.totals) + r * round_up(width, PANEL);
    }
};

// Scores of keys [t0, t0 + keys) into the scratch.
template <bool Bf16>
AF_NOINLINE void score(const Block<Bf16>& b, const Attention& a, const Layout<Bf16>& in, const char* packed, long t0,
                       long keys) {
    const Tile tile = Tiles<typename Kind<Bf16>::Op>::calls[b.rows - 1];
    const char* panel = packed + t0 / PANEL * in.key_panel;
    float* out = b.scores(0);
    for (long t = 0; t < keys; t += PANEL, panel += in.key_panel, out += MOST_ROWS * PANEL)
        tile((const char*)b.q(0), b.at.q_pitch, panel, words<Bf16>(a.width), out);
}

// The softmax of the rows over keys [t0, t0 + keys), in two sweeps so that no row waits for its own reduction.
template <bool Bf16, class M>
AF_NOINLINE void soften_rows(const Block<Bf16>& b, const Attention& a, const M& mask, long t0, long keys,
                             State& state) {
    Row row[MOST_ROWS];
    State before = state;
    for (int r = 0; r < b.rows; r++) {
        const long q = b.first + r, seen = a.causal ? q + 1 - t0 : keys;
        row[r] = {b.scores(r), (keys + PANEL - 1) / PANEL, seen < 0 ? 0 : seen < keys ? seen : keys, q, t0};
        state.most[r] = masked_maximum(row[r], mask, a.scale);
    }
    if (t0 > 0) store(state.most, fast_max(load(state.most), load(before.most)));
    for (int r = 0; r < b.rows; r++) state.sum[r] = soften<M>(row[r], a.scale, finite_or_zero(state.most[r]), b.p(r));
    if (t0 == 0) return;
    const vf top = load(state.most), lowest = set1(-__builtin_inff());
    const vf fade = select(eq(top, lowest), set1(1.0f), exp2((load(before.most) - top) * set1(LOG2E)));
    store(state.rescale, fade);
    store(state.sum, fma(load(before.sum), fade, load(state.sum)));
}

// Adds probabilities times values; the last part divides and writes the output rows.
template <bool Bf16, class Out>
AF_NOINLINE void weigh(const Block<Bf16>& b, const Attention& a, const Layout<Bf16>& in, const char* packed, long t0,
                       long keys, bool last, const State& state, Out* out, long out_row) {
    const Tile tile = Tiles<typename Kind<Bf16>::Op>::calls[b.rows - 1];
    const char* panel = packed + in.values + t0 / Kind<Bf16>::PER_WORD * BLOCK;
    for (long d = 0; d < a.width; d += PANEL, panel += in.value_panel) {
        tile((const char*)b.p(0), b.at.p_pitch, panel, words<Bf16>(keys), b.sums(0));
        for (int r = 0; r < b.rows; r++) {
            const vf share = set1(state.sum[r] == 0.0f ? 0.0f : 1.0f / state.sum[r]), fade = set1(state.rescale[r]);
            for (long c = 0; c < PANEL && d + c < a.width; c += 16) {
                float* total = b.totals(r, a.width) + d + c;
                vf x = load(b.sums(r) + c);
                if (t0 > 0) x = fma(load(total), fade, x);
                if (!last) {
                    store(total, x);
                } else {
                    const long n = a.width - d - c;
                    Out* to = out + r * out_row + d + c;
                    n < 16 ? store(to, x * share, int(n)) : store(to, x * share);
                }
            }
        }
    }
}

}  // namespace attention

// Bytes of the packed keys and values of one head, and of a thread's scratch beside them.
inline long attention_kv_bytes(long keys, long width, bool bf16) {
    return bf16 ? attention::Layout<true>(keys, width).bytes : attention::Layout<false>(keys, width).bytes;
}
inline long attention_row_bytes(long keys, long width, bool bf16) {
    return bf16 ? attention::Scratch<true>(keys, width).bytes : attention::Scratch<false>(keys, width).bytes;
}
// Both, for a thread that packs for itself: rows first, packed keys at attention_row_bytes.
inline long attention_scratch_bytes(long keys, long width, bool bf16) {
    return attention_row_bytes(keys, width, bf16) + attention_kv_bytes(keys, width, bf16);
}

// Packs keys [t0, t1) of one head into `packed`, 64-byte aligned; t0 a multiple of 32, t1 too or `keys`. Strides in
// elements. Disjoint ranges may be packed by different threads.
template <bool Bf16, class K, class V>
void pack_kv(const K* k, long k_row, const V* v, long v_row, long keys, long width, char* packed, long t0, long t1) {
    const attention::Layout<Bf16> at(keys, width);
    for (long t = t0; t < t1; t += attention::PANEL) {
        const long count = keys - t < attention::PANEL ? keys - t : attention::PANEL;
        char* panel = packed + t / attention::PANEL * at.key_panel;
        attention::pack_key_panel<Bf16>(k + t * k_row, k_row, count, width, panel);
    }
    attention::pack_values<Bf16>(v, v_row, t0, t1, keys, width, at, packed);
}

// Output rows [r0, r1) of one head; q and out point at its row 0. `scratch`: attention_row_bytes, 64-byte aligned.
template <bool Bf16, class Q, class M, class Out>
void attend_rows(const Attention& a, const Q* q, long q_row, const M& mask, const char* packed, Out* out, long out_row,
                 long r0, long r1, char* scratch) {
    using namespace attention;
    const Layout<Bf16> in(a.keys, a.width);
    const Scratch<Bf16> at(a.keys, a.width);
    for (long r = r0; r < r1; r += Kind<Bf16>::Op::ROWS) {
        const Block<Bf16> b{scratch, at, r, int(r1 - r < Kind<Bf16>::Op::ROWS ? r1 - r : Kind<Bf16>::Op::ROWS)};
        for (int i = 0; i < b.rows; i++) copy_row(q + (r + i) * q_row, a.width, round_up(a.width, 16), b.q(i));
        const long reach = a.causal && r + b.rows < a.keys ? r + b.rows : a.keys;
        for (int i = 0; i < b.rows && reach == 0; i++)  // no keys at all: zeros
            for (long d = 0; d < a.width; d++) store(out + (r + i) * out_row + d, zero(), 1);
        State state;
        for (long t0 = 0; t0 < reach; t0 += Kind<Bf16>::AT_ONCE) {
            const long keys = reach - t0 < Kind<Bf16>::AT_ONCE ? reach - t0 : Kind<Bf16>::AT_ONCE;
            score(b, a, in, packed, t0, keys);
            soften_rows(b, a, mask, t0, keys, state);
            weigh(b, a, in, packed, t0, keys, t0 + keys == reach, state, out + r * out_row, out_row);
        }
    }
}

}  // namespace af

// What does not depend on a caller's types beyond the usual ones; see Tiles of the products.
#define AF_TILES_ATTENTION(KIND, BF16)                                                                               \
    namespace af {                                                                                                   \
    namespace attention {                                                                                            \
    KIND struct Tiles<Kind<BF16>::Op>;                                                                               \
    KIND void score<BF16>(const Block<BF16>&, const Attention&, const Layout<BF16>&, const char*, long, long);       \
    KIND void soften_rows<BF16, NoMask>(const Block<BF16>&, const Attention&, const NoMask&, long, long, State&);    \
    AF_TILES_ATTENTION_OF(KIND, BF16, float)                                                                         \
    AF_TILES_ATTENTION_OF(KIND, BF16, bf16)                                                                          \
    }                                                                                                                \
    }
#define AF_TILES_ATTENTION_OF(KIND, BF16, T)                                                                         \
    KIND void pack_key_panel<BF16, T>(const T*, long, long, long, char*);                                            \
    KIND void pack_values<BF16, T>(const T*, long, long, long, long, long, const Layout<BF16>&, char*);              \
    KIND void weigh<BF16, T>(const Block<BF16>&, const Attention&, const Layout<BF16>&, const char*, long, long,     \
                             bool, const State&, T*, long);
