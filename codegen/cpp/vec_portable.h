// In: vec.h's scalar types. Out: af::vf and af::vm as 16-lane vectors of the compiler, for any processor.
#pragma once

namespace af {

typedef float lanes_f __attribute__((vector_size(64)));
typedef int32_t lanes_i __attribute__((vector_size(64)));
typedef uint32_t lanes_u __attribute__((vector_size(64)));
typedef uint16_t lanes_u16 __attribute__((vector_size(32)));
typedef uint8_t lanes_u8 __attribute__((vector_size(16)));
typedef int8_t lanes_i8 __attribute__((vector_size(16)));

struct vf {
    lanes_f v;
};
struct vm {
    lanes_i m;  // -1 or 0
};

template <class T>
AF_INLINE void gather_tail(const T* p, int n, T (&buffer)[16]);

template <class To, class From>
AF_INLINE To as(From x) {
    static_assert(sizeof(To) == sizeof(From), "as() keeps the bits");
    To y;
    std::memcpy(&y, &x, sizeof(y));
    return y;
}
template <class V>
AF_INLINE V load_lanes(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof(v));
    return v;
}

AF_INLINE lanes_i iota_i() { return lanes_i{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }
AF_INLINE vm lanes(int n) { return {iota_i() < n}; }
AF_INLINE vf set1(float x) { return {x - lanes_f{}}; }
AF_INLINE vf zero() { return {lanes_f{}}; }
AF_INLINE vf iota() { return {__builtin_convertvector(iota_i(), lanes_f)}; }
AF_INLINE vf select(vm m, vf a, vf b) { return {as<lanes_f>((as<lanes_i>(a.v) & m.m) | (as<lanes_i>(b.v) & ~m.m))}; }

// ---- loads
AF_INLINE vf load(const float* p) { return {load_lanes<lanes_f>(p)}; }
AF_INLINE vf load(const bf16* p) {
    return {as<lanes_f>(__builtin_convertvector(load_lanes<lanes_u16>(p), lanes_u) << 16)};
}
AF_INLINE vf load(const int8_t* p) { return {__builtin_convertvector(load_lanes<lanes_i8>(p), lanes_f)}; }
AF_INLINE vf load(const uint8_t* p) { return {__builtin_convertvector(load_lanes<lanes_u8>(p), lanes_f)}; }
AF_INLINE vf load(const bool* p) { return load((const uint8_t*)p); }
AF_INLINE vf load(const int32_t* p) { return {__builtin_convertvector(load_lanes<lanes_i>(p), lanes_f)}; }
AF_INLINE vf load(const fp16* p) {
    vf x;
    for (int i = 0; i < 16; i++) x.v[i] = to_float(p[i]);
    return x;
}
AF_INLINE vf load(const int64_t* p) {
    vf x;
    for (int i = 0; i < 16; i++) x.v[i] = float(p[i]);
    return x;
}
template <class T>
AF_INLINE vf load(const T* p, int n) {
    if (__builtin_constant_p(n) && n == 16) return load(p);
    T buffer[16];
    gather_tail(p, n, buffer);
    return load(buffer);
}

// ---- stores
AF_INLINE void store(float* p, vf x) { std::memcpy(p, &x.v, 64); }
AF_INLINE void store(bf16* p, vf x) {
    lanes_u u = as<lanes_u>(x.v), even = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 0x40u;
    lanes_u nan = as<lanes_u>(x.v != x.v);
    lanes_u16 words = __builtin_convertvector((quiet & nan) | (even & ~nan), lanes_u16);
    std::memcpy((void*)p, &words, 32);
}
AF_INLINE void store(fp16* p, vf x) {
    for (int i = 0; i < 16; i++) p[i] = to_fp16(x.v[i]);
}
AF_INLINE void store(int32_t* p, vf x) {
    lanes_i i = __builtin_convertvector(x.v, lanes_i);
    std::memcpy(p, &i, 64);
}
AF_INLINE void store(uint8_t* p, vf x) {
    lanes_u8 bytes = __builtin_convertvector(__builtin_convertvector(x.v, lanes_i), lanes_u8);
    std::memcpy(p, &bytes, 16);
}
AF_INLINE void store(int8_t* p, vf x) { store((uint8_t*)p, x); }
AF_INLINE void store(bool* p, vf x) {
    lanes_u8 bytes = __builtin_convertvector((x.v != 0.0f) & 1, lanes_u8);
    std::memcpy(p, &bytes, 16);
}
AF_INLINE void store(int64_t* p, vf x) {
    for (int i = 0; i < 16; i++) p[i] = int64_t(x.v[i]);
}
template <class T>
AF_INLINE void store(T* p, vf x, int n) {
    if (__builtin_constant_p(n) && n == 16) return store(p, x);
    T buffer[16];
    store(buffer, x);
    std::memcpy((void*)p, buffer, size_t(n) * sizeof(T));
}

// ---- arithmetic
AF_INLINE vf operator+(vf a, vf b) { return {a.v + b.v}; }
AF_INLINE vf operator-(vf a, vf b) { return {a.v - b.v}; }
AF_INLINE vf operator*(vf a, vf b) { return {a.v * b.v}; }
AF_INLINE vf operator/(vf a, vf b) { return {a.v / b.v}; }
AF_INLINE vf operator-(vf a) { return {-a.v}; }
AF_INLINE vf fma(vf a, vf b, vf c) { return {a.v * b.v + c.v}; }   // two roundings where the processor has no FMA
AF_INLINE vf fnma(vf a, vf b, vf c) { return {c.v - a.v * b.v}; }  // c - a*b
AF_INLINE vf fast_min(vf a, vf b) { return select({a.v < b.v}, a, b); }
AF_INLINE vf fast_max(vf a, vf b) { return select({a.v > b.v}, a, b); }
AF_INLINE vf abs(vf a) { return {as<lanes_f>(as<lanes_u>(a.v) & 0x7fffffffu)}; }
AF_INLINE vf copysign(vf magnitude, vf sign) {
    return {as<lanes_f>((as<lanes_u>(magnitude.v) & 0x7fffffffu) | (as<lanes_u>(sign.v) & 0x80000000u))};
}
AF_INLINE vf sqrt(vf a) {
    for (int i = 0; i < 16; i++) a.v[i] = __builtin_sqrtf(a.v[i]);
    return a;
}

// ---- masks
AF_INLINE vm lt(vf a, vf b) { return {a.v < b.v}; }
AF_INLINE vm le(vf a, vf b) { return {a.v <= b.v}; }
AF_INLINE vm gt(vf a, vf b) { return {a.v > b.v}; }
AF_INLINE vm ge(vf a, vf b) { return {a.v >= b.v}; }
AF_INLINE vm eq(vf a, vf b) { return {a.v == b.v}; }
AF_INLINE vm ne(vf a, vf b) { return {a.v != b.v}; }
AF_INLINE vm unordered(vf a, vf b) { return {(a.v != a.v) | (b.v != b.v)}; }
AF_INLINE vm and_(vm a, vm b) { return {a.m & b.m}; }
AF_INLINE vm or_(vm a, vm b) { return {a.m | b.m}; }
AF_INLINE vm not_(vm a) { return {~a.m}; }
AF_INLINE uint32_t mask_bits(vm a) {
    uint32_t bits = 0;
    for (int i = 0; i < 16; i++) bits |= uint32_t(a.m[i] & 1) << i;
    return bits;
}
AF_INLINE bool any(vm a) { return mask_bits(a) != 0; }
AF_INLINE bool all(vm a) { return mask_bits(a) == 0xffff; }

// ---- rounding: floats of 2^23 and above are integral already, and a nan compares false
AF_INLINE vf whole_or(vf a, vf whole) { return copysign(select(lt(abs(a), set1(8388608.0f)), whole, a), a); }
AF_INLINE vf small_trunc(vf a) {
    vf safe = select(lt(abs(a), set1(8388608.0f)), a, zero());
    return {__builtin_convertvector(__builtin_convertvector(safe.v, lanes_i), lanes_f)};
}
AF_INLINE vf trunc(vf a) { return whole_or(a, small_trunc(a)); }
AF_INLINE vf floor(vf a) {
    vf t = small_trunc(a);
    return whole_or(a, select(gt(t, a), t - set1(1.0f), t));
}
AF_INLINE vf ceil(vf a) {
    vf t = small_trunc(a);
    return whole_or(a, select(lt(t, a), t + set1(1.0f), t));
}
AF_INLINE vf round(vf a) {
    vf magic = set1(8388608.0f);  // adding 2^23 leaves no room for a fraction
    return whole_or(a, (abs(a) + magic) - magic);
}

// Codes of a quantiser: rounded to nearest even, then cut to 0..255.
AF_INLINE void store_codes(uint8_t* p, vf x) {
    store(p, fast_min(set1(255.0f), fast_max(set1(0.0f), round(x))));
}

// The same for 64 codes.
AF_INLINE void store_codes(uint8_t* p, vf a, vf b, vf c, vf d) {
    store_codes(p, a);
    store_codes(p + 16, b);
    store_codes(p + 32, c);
    store_codes(p + 48, d);
}

// ---- reductions over the lanes
template <class Op>
AF_INLINE float reduce(vf a, Op op) {
    for (int step = 8; step > 0; step /= 2)
        for (int i = 0; i < step; i++) a.v[i] = op(a.v[i], a.v[i + step]);
    return a.v[0];
}
AF_INLINE float lane0(vf a) { return a.v[0]; }
AF_INLINE float hsum(vf a) {
    return reduce(a, [](float x, float y) { return x + y; });
}
AF_INLINE float fast_hmax(vf a) {
    return reduce(a, [](float x, float y) { return x > y ? x : y; });
}
AF_INLINE float fast_hmin(vf a) {
    return reduce(a, [](float x, float y) { return x < y ? x : y; });
}

AF_INLINE void extremes(vf low, vf high, float& least, float& most) {
    least = fast_hmin(low);
    most = fast_hmax(high);
}
// Lanes i and i ^ S change places.
template <int S>
AF_INLINE vf swap(vf x) {
#if defined(__clang__)
    vf y;
    for (int i = 0; i < 16; i++) y.v[i] = x.v[i ^ S];
    return y;
#else
    return {__builtin_shuffle(x.v, iota_i() ^ S)};
#endif
}

// ---- parts of a float, for math.h
AF_INLINE lanes_f power2(lanes_i n) { return as<lanes_f>((n + 127) << 23); }
// x * 2^n, n integral within +-252, in two exact steps so that the result underflows gradually.
AF_INLINE vf scale2(vf x, vf n) {
    lanes_i whole = __builtin_convertvector(n.v, lanes_i), half = whole >> 1;
    return {x.v * power2(half) * power2(whole - half)};
}
// x = m * 2^e with m in [0.75, 1.5); x positive and finite, subnormals included.
AF_INLINE vf split2(vf x, vf& e) {
    vm tiny = lt(x, set1(1.17549435e-38f));
    x = select(tiny, x * set1(8388608.0f), x);
    lanes_i u = as<lanes_i>(x.v), shift = (u - 0x3f400000) >> 23;
    e = vf{__builtin_convertvector(shift, lanes_f)} - select(tiny, set1(23.0f), zero());
    return {as<lanes_f>(u - (shift << 23))};
}
// table[i] for the integral lanes i in 0..15.
AF_INLINE vf lookup(const float* table, vf i) {
    vf x;
    for (int k = 0; k < 16; k++) x.v[k] = table[int(i.v[k])];
    return x;
}

}  // namespace af
