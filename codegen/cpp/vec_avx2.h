// In: vec.h's scalar types. Out: af::vf as two ymm registers and af::vm as two ymm registers of sign bits.
#pragma once

#include <immintrin.h>

namespace af {

struct vf {
    __m256 lo, hi;
};
struct vm {
    __m256 lo, hi;
};

template <class T>
AF_INLINE void gather_tail(const T* p, int n, T (&buffer)[16]);

AF_INLINE __m256i iota8() { return _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); }
AF_INLINE __m256i lanes_low(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), iota8()); }
AF_INLINE vm lanes(int n) { return {_mm256_castsi256_ps(lanes_low(n)), _mm256_castsi256_ps(lanes_low(n - 8))}; }
AF_INLINE vf set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
AF_INLINE vf zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
AF_INLINE vf iota() {
    __m256 low = _mm256_cvtepi32_ps(iota8());
    return {low, _mm256_add_ps(low, _mm256_set1_ps(8.0f))};
}

// ---- loads
AF_INLINE __m128i load8(const void* p) { return _mm_loadl_epi64((const __m128i*)p); }
AF_INLINE __m128i load16(const void* p) { return _mm_loadu_si128((const __m128i*)p); }
AF_INLINE __m256i load32(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }
AF_INLINE __m256 widen(__m128i x, bf16) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }

AF_INLINE vf load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
AF_INLINE vf load(const bf16* p) { return {widen(load16(p), bf16{}), widen(load16(p + 8), bf16{})}; }
AF_INLINE vf load(const fp16* p) { return {_mm256_cvtph_ps(load16(p)), _mm256_cvtph_ps(load16(p + 8))}; }
AF_INLINE vf load(const int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load8(p))), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load8(p + 8)))};
}
AF_INLINE vf load(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load8(p))), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load8(p + 8)))};
}
AF_INLINE vf load(const bool* p) { return load((const uint8_t*)p); }
AF_INLINE vf load(const int32_t* p) {
    return {_mm256_cvtepi32_ps(load32(p)), _mm256_cvtepi32_ps(load32(p + 8))};
}
AF_INLINE vf load(const int64_t* p) {
    float buffer[16];
    for (int i = 0; i < 16; i++) buffer[i] = float(p[i]);
    return load(buffer);
}

AF_INLINE vf load_tail(const float* p, int n) {
    return {_mm256_maskload_ps(p, lanes_low(n)),
            n > 8 ? _mm256_maskload_ps(p + 8, lanes_low(n - 8)) : _mm256_setzero_ps()};
}
template <class T>
AF_INLINE vf load_tail(const T* p, int n) {
    T buffer[16];
    gather_tail(p, n, buffer);
    return load(buffer);
}
template <class T>
AF_INLINE vf load(const T* p, int n) {
    if (__builtin_constant_p(n) && n == 16) return load(p);
    return load_tail(p, n);
}

// ---- stores
AF_INLINE __m128i narrow(__m256 x, bf16) {
    __m256i u = _mm256_castps_si256(x), odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i even = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    __m256i both = _mm256_blendv_epi8(even, quiet, nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
}
AF_INLINE __m128i narrow(__m256 x, fp16) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT); }
// The low bytes of 16 int32.
AF_INLINE __m128i low_bytes(__m256i a, __m256i b) {
    __m256i mask = _mm256_set1_epi32(255);
    __m256i words = _mm256_packus_epi32(_mm256_and_si256(a, mask), _mm256_and_si256(b, mask));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    return _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
}

AF_INLINE void store(float* p, vf x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
}
template <class Half>
AF_INLINE void store_half(Half* p, vf x) {
    _mm_storeu_si128((__m128i*)p, narrow(x.lo, Half{}));
    _mm_storeu_si128((__m128i*)(p + 8), narrow(x.hi, Half{}));
}
AF_INLINE void store(bf16* p, vf x) { store_half(p, x); }
AF_INLINE void store(fp16* p, vf x) { store_half(p, x); }
AF_INLINE void store(int8_t* p, vf x) {
    _mm_storeu_si128((__m128i*)p, low_bytes(_mm256_cvttps_epi32(x.lo), _mm256_cvttps_epi32(x.hi)));
}
AF_INLINE void store(uint8_t* p, vf x) { store((int8_t*)p, x); }
AF_INLINE void store(bool* p, vf x) {
    __m256i one = _mm256_set1_epi32(1);
    __m256i a = _mm256_castps_si256(_mm256_cmp_ps(x.lo, _mm256_setzero_ps(), _CMP_NEQ_UQ));
    __m256i b = _mm256_castps_si256(_mm256_cmp_ps(x.hi, _mm256_setzero_ps(), _CMP_NEQ_UQ));
    _mm_storeu_si128((__m128i*)p, low_bytes(_mm256_and_si256(a, one), _mm256_and_si256(b, one)));
}
AF_INLINE void store(int32_t* p, vf x) {
    _mm256_storeu_si256((__m256i*)p, _mm256_cvttps_epi32(x.lo));
    _mm256_storeu_si256((__m256i*)(p + 8), _mm256_cvttps_epi32(x.hi));
}
AF_INLINE void store(int64_t* p, vf x) {
    float buffer[16];
    store(buffer, x);
    for (int i = 0; i < 16; i++) p[i] = int64_t(buffer[i]);
}

AF_INLINE void store_tail(float* p, vf x, int n) {
    _mm256_maskstore_ps(p, lanes_low(n), x.lo);
    if (n > 8) _mm256_maskstore_ps(p + 8, lanes_low(n - 8), x.hi);
}
template <class T>
AF_INLINE void store_tail(T* p, vf x, int n) {
    T buffer[16];
    store(buffer, x);
    std::memcpy((void*)p, buffer, size_t(n) * sizeof(T));
}
template <class T>
AF_INLINE void store(T* p, vf x, int n) {
    if (__builtin_constant_p(n) && n == 16) return store(p, x);
    store_tail(p, x, n);
}

// Codes of a quantiser: rounded to nearest even, then cut to 0..255.
AF_INLINE void store_codes(uint8_t* p, vf x) {
    __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi));
    words = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128((__m128i*)p, _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}

// The same for 64 codes.
AF_INLINE void store_codes(uint8_t* p, vf a, vf b, vf c, vf d) {
    store_codes(p, a);
    store_codes(p + 16, b);
    store_codes(p + 32, c);
    store_codes(p + 48, d);
}

// ---- arithmetic
AF_INLINE vf operator+(vf a, vf b) { return {a.lo + b.lo, a.hi + b.hi}; }
AF_INLINE vf operator-(vf a, vf b) { return {a.lo - b.lo, a.hi - b.hi}; }
AF_INLINE vf operator*(vf a, vf b) { return {a.lo * b.lo, a.hi * b.hi}; }
AF_INLINE vf operator/(vf a, vf b) { return {a.lo / b.lo, a.hi / b.hi}; }
AF_INLINE vf operator-(vf a) {
    __m256 s = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(a.lo, s), _mm256_xor_ps(a.hi, s)};
}
AF_INLINE vf fma(vf a, vf b, vf c) { return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)}; }
AF_INLINE vf fnma(vf a, vf b, vf c) { return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)}; }
AF_INLINE vf fast_min(vf a, vf b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
AF_INLINE vf fast_max(vf a, vf b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
AF_INLINE vf abs(vf a) {
    __m256 s = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(s, a.lo), _mm256_andnot_ps(s, a.hi)};
}
AF_INLINE vf sqrt(vf a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
AF_INLINE vf floor(vf a) { return {_mm256_floor_ps(a.lo), _mm256_floor_ps(a.hi)}; }
AF_INLINE vf ceil(vf a) { return {_mm256_ceil_ps(a.lo), _mm256_ceil_ps(a.hi)}; }
template <int mode>
AF_INLINE vf rounded(vf a) {
    return {_mm256_round_ps(a.lo, mode | _MM_FROUND_NO_EXC), _mm256_round_ps(a.hi, mode | _MM_FROUND_NO_EXC)};
}
AF_INLINE vf trunc(vf a) { return rounded<_MM_FROUND_TO_ZERO>(a); }
AF_INLINE vf round(vf a) { return rounded<_MM_FROUND_TO_NEAREST_INT>(a); }
AF_INLINE vf copysign(vf magnitude, vf sign) {
    __m256 s = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(_mm256_andnot_ps(s, magnitude.lo), _mm256_and_ps(s, sign.lo)),
            _mm256_or_ps(_mm256_andnot_ps(s, magnitude.hi), _mm256_and_ps(s, sign.hi))};
}

// ---- masks
template <int predicate>
AF_INLINE vm compare(vf a, vf b) {
    return {_mm256_cmp_ps(a.lo, b.lo, predicate), _mm256_cmp_ps(a.hi, b.hi, predicate)};
}
AF_INLINE vm lt(vf a, vf b) { return compare<_CMP_LT_OQ>(a, b); }
AF_INLINE vm le(vf a, vf b) { return compare<_CMP_LE_OQ>(a, b); }
AF_INLINE vm gt(vf a, vf b) { return compare<_CMP_GT_OQ>(a, b); }
AF_INLINE vm ge(vf a, vf b) { return compare<_CMP_GE_OQ>(a, b); }
AF_INLINE vm eq(vf a, vf b) { return compare<_CMP_EQ_OQ>(a, b); }
AF_INLINE vm ne(vf a, vf b) { return compare<_CMP_NEQ_UQ>(a, b); }
AF_INLINE vm unordered(vf a, vf b) { return compare<_CMP_UNORD_Q>(a, b); }
AF_INLINE vm and_(vm a, vm b) { return {_mm256_and_ps(a.lo, b.lo), _mm256_and_ps(a.hi, b.hi)}; }
AF_INLINE vm or_(vm a, vm b) { return {_mm256_or_ps(a.lo, b.lo), _mm256_or_ps(a.hi, b.hi)}; }
AF_INLINE vm not_(vm a) {
    __m256 ones = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    return {_mm256_xor_ps(a.lo, ones), _mm256_xor_ps(a.hi, ones)};
}
AF_INLINE uint32_t mask_bits(vm a) { return uint32_t(_mm256_movemask_ps(a.lo) | (_mm256_movemask_ps(a.hi) << 8)); }
AF_INLINE bool any(vm a) { return mask_bits(a) != 0; }
AF_INLINE bool all(vm a) { return mask_bits(a) == 0xffff; }
AF_INLINE vf select(vm m, vf a, vf b) {
    return {_mm256_blendv_ps(b.lo, a.lo, m.lo), _mm256_blendv_ps(b.hi, a.hi, m.hi)};
}

// ---- reductions over the lanes
template <class Op>
AF_INLINE float reduce(__m256 x, Op op) {
    __m128 four = op(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    __m128 two = op(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(op(two, _mm_shuffle_ps(two, two, 1)));
}
AF_INLINE float lane0(vf a) { return _mm256_cvtss_f32(a.lo); }
AF_INLINE float hsum(vf a) {
    return reduce(a.lo + a.hi, [](__m128 x, __m128 y) { return x + y; });
}
AF_INLINE float fast_hmax(vf a) {
    return reduce(_mm256_max_ps(a.lo, a.hi), [](__m128 x, __m128 y) { return _mm_max_ps(x, y); });
}
AF_INLINE float fast_hmin(vf a) {
    return reduce(_mm256_min_ps(a.lo, a.hi), [](__m128 x, __m128 y) { return _mm_min_ps(x, y); });
}

AF_INLINE void extremes(vf low, vf high, float& least, float& most) {
    least = fast_hmin(low);
    most = fast_hmax(high);
}
AF_INLINE __m256 swap4(__m256 x) { return _mm256_permute2f128_ps(x, x, 1); }
// Lanes i and i ^ S change places.
template <int S>
AF_INLINE vf swap(vf x) {
    if constexpr (S == 8) return {x.hi, x.lo};
    if constexpr (S == 4) return {swap4(x.lo), swap4(x.hi)};
    if constexpr (S == 2) return {_mm256_permute_ps(x.lo, 0x4e), _mm256_permute_ps(x.hi, 0x4e)};
    if constexpr (S == 1) return {_mm256_permute_ps(x.lo, 0xb1), _mm256_permute_ps(x.hi, 0xb1)};
}

// ---- parts of a float, for math.h
AF_INLINE __m256 power2(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
// x * 2^n in two exact steps, so that the result underflows gradually.
AF_INLINE __m256 scale2(__m256 x, __m256 n) {
    __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
    whole = _mm256_sub_epi32(whole, half);
    return x * power2(half) * power2(whole);
}
// x * 2^n, n integral within +-252.
AF_INLINE vf scale2(vf x, vf n) { return {scale2(x.lo, n.lo), scale2(x.hi, n.hi)}; }
AF_INLINE __m256 split2(__m256 x, __m256& e) {
    __m256 tiny = _mm256_cmp_ps(x, _mm256_set1_ps(1.17549435e-38f), _CMP_LT_OQ);
    x = _mm256_blendv_ps(x, x * _mm256_set1_ps(8388608.0f), tiny);
    __m256i u = _mm256_castps_si256(x);
    __m256i shift = _mm256_srai_epi32(_mm256_sub_epi32(u, _mm256_set1_epi32(0x3f400000)), 23);
    e = _mm256_cvtepi32_ps(shift) - _mm256_and_ps(tiny, _mm256_set1_ps(23.0f));
    return _mm256_castsi256_ps(_mm256_sub_epi32(u, _mm256_slli_epi32(shift, 23)));
}
// x = m * 2^e with m in [0.75, 1.5); x positive and finite, subnormals included.
AF_INLINE vf split2(vf x, vf& e) {
    vf m;
    m.lo = split2(x.lo, e.lo);
    m.hi = split2(x.hi, e.hi);
    return m;
}
AF_INLINE __m256 lookup(__m256 low, __m256 high, __m256 i) {
    __m256i at = _mm256_cvttps_epi32(i);
    __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(at, 28));  // bit 3 becomes the sign
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, at), _mm256_permutevar8x32_ps(high, at), upper);
}
// table[i] for the integral lanes i in 0..15.
AF_INLINE vf lookup(const float* table, vf i) {
    __m256 low = _mm256_loadu_ps(table), high = _mm256_loadu_ps(table + 8);
    return {lookup(low, high, i.lo), lookup(low, high, i.hi)};
}

}  // namespace af
