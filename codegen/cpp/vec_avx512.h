// In: vec.h's scalar types. Out: af::vf as one zmm register and af::vm as a mask register.
#pragma once

#include <immintrin.h>

namespace af {

struct vf {
    __m512 v;
};
struct vm {
    __mmask16 m;
};

AF_INLINE __mmask16 first_lanes(int n) { return __mmask16(_bzhi_u32(0xffffu, unsigned(n))); }
AF_INLINE vm lanes(int n) { return {first_lanes(n)}; }
AF_INLINE vf set1(float x) { return {_mm512_set1_ps(x)}; }
AF_INLINE vf zero() { return {_mm512_setzero_ps()}; }
AF_INLINE vf iota() { return {_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }

// ---- loads
AF_INLINE vf widen(__m128i x, int8_t) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(x))}; }
AF_INLINE vf widen(__m128i x, uint8_t) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x))}; }
AF_INLINE vf widen(__m256i x, bf16) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}
AF_INLINE vf widen(__m256i x, fp16) { return {_mm512_cvtph_ps(x)}; }
AF_INLINE vf widen(__m512i x, int32_t) { return {_mm512_cvtepi32_ps(x)}; }
AF_INLINE vf join(__m256 low, __m256 high) { return {_mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1)}; }

AF_INLINE vf load(const float* p) { return {_mm512_loadu_ps(p)}; }
AF_INLINE vf load(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p), bf16{}); }
AF_INLINE vf load(const fp16* p) { return widen(_mm256_loadu_si256((const __m256i*)p), fp16{}); }
AF_INLINE vf load(const int8_t* p) { return widen(_mm_loadu_si128((const __m128i*)p), int8_t{}); }
AF_INLINE vf load(const uint8_t* p) { return widen(_mm_loadu_si128((const __m128i*)p), uint8_t{}); }
AF_INLINE vf load(const bool* p) { return load((const uint8_t*)p); }
AF_INLINE vf load(const int32_t* p) { return widen(_mm512_loadu_si512(p), int32_t{}); }
AF_INLINE vf load(const int64_t* p) {
    return join(_mm512_cvtepi64_ps(_mm512_loadu_si512(p)), _mm512_cvtepi64_ps(_mm512_loadu_si512(p + 8)));
}

AF_INLINE vf load_tail(const float* p, __mmask16 m) { return {_mm512_maskz_loadu_ps(m, p)}; }
AF_INLINE vf load_tail(const bf16* p, __mmask16 m) { return widen(_mm256_maskz_loadu_epi16(m, p), bf16{}); }
AF_INLINE vf load_tail(const fp16* p, __mmask16 m) { return widen(_mm256_maskz_loadu_epi16(m, p), fp16{}); }
AF_INLINE vf load_tail(const int8_t* p, __mmask16 m) { return widen(_mm_maskz_loadu_epi8(m, p), int8_t{}); }
AF_INLINE vf load_tail(const uint8_t* p, __mmask16 m) { return widen(_mm_maskz_loadu_epi8(m, p), uint8_t{}); }
AF_INLINE vf load_tail(const bool* p, __mmask16 m) { return load_tail((const uint8_t*)p, m); }
AF_INLINE vf load_tail(const int32_t* p, __mmask16 m) { return widen(_mm512_maskz_loadu_epi32(m, p), int32_t{}); }
AF_INLINE vf load_tail(const int64_t* p, __mmask16 m) {
    return join(_mm512_cvtepi64_ps(_mm512_maskz_loadu_epi64(__mmask8(m), p)),
                _mm512_cvtepi64_ps(_mm512_maskz_loadu_epi64(__mmask8(m >> 8), p + 8)));
}
template <class T>
AF_INLINE vf load(const T* p, int n) {
    if (__builtin_constant_p(n) && n == 16) return load(p);
    return load_tail(p, first_lanes(n));
}

// ---- stores
AF_INLINE __m256i narrow(vf x, bf16) { return (__m256i)_mm512_cvtneps_pbh(x.v); }
AF_INLINE __m256i narrow(vf x, fp16) { return _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT); }
AF_INLINE __m512i narrow(vf x, int32_t) { return _mm512_cvttps_epi32(x.v); }
AF_INLINE __m128i narrow(vf x, int8_t) { return _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(x.v)); }
AF_INLINE __m128i narrow(vf x, uint8_t) { return narrow(x, int8_t{}); }
AF_INLINE __m128i narrow(vf x, bool) {
    return _mm_maskz_set1_epi8(_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_NEQ_UQ), 1);
}

AF_INLINE void store(float* p, vf x) { _mm512_storeu_ps(p, x.v); }
AF_INLINE void store(bf16* p, vf x) { _mm256_storeu_si256((__m256i*)p, narrow(x, bf16{})); }
AF_INLINE void store(fp16* p, vf x) { _mm256_storeu_si256((__m256i*)p, narrow(x, fp16{})); }
AF_INLINE void store(int8_t* p, vf x) { _mm_storeu_si128((__m128i*)p, narrow(x, int8_t{})); }
AF_INLINE void store(uint8_t* p, vf x) { _mm_storeu_si128((__m128i*)p, narrow(x, uint8_t{})); }
AF_INLINE void store(bool* p, vf x) { _mm_storeu_si128((__m128i*)p, narrow(x, bool{})); }
AF_INLINE void store(int32_t* p, vf x) { _mm512_storeu_si512(p, narrow(x, int32_t{})); }

AF_INLINE void store_tail(float* p, vf x, __mmask16 m) { _mm512_mask_storeu_ps(p, m, x.v); }
AF_INLINE void store_tail(bf16* p, vf x, __mmask16 m) { _mm256_mask_storeu_epi16(p, m, narrow(x, bf16{})); }
AF_INLINE void store_tail(fp16* p, vf x, __mmask16 m) { _mm256_mask_storeu_epi16(p, m, narrow(x, fp16{})); }
AF_INLINE void store_tail(int8_t* p, vf x, __mmask16 m) { _mm_mask_storeu_epi8(p, m, narrow(x, int8_t{})); }
AF_INLINE void store_tail(uint8_t* p, vf x, __mmask16 m) { _mm_mask_storeu_epi8(p, m, narrow(x, uint8_t{})); }
AF_INLINE void store_tail(bool* p, vf x, __mmask16 m) { _mm_mask_storeu_epi8(p, m, narrow(x, bool{})); }
AF_INLINE void store_tail(int32_t* p, vf x, __mmask16 m) { _mm512_mask_storeu_epi32(p, m, narrow(x, int32_t{})); }
AF_INLINE void store_tail(int64_t* p, vf x, __mmask16 m) {
    __m512i low = _mm512_cvttps_epi64(_mm512_castps512_ps256(x.v));
    __m512i high = _mm512_cvttps_epi64(_mm512_extractf32x8_ps(x.v, 1));
    _mm512_mask_storeu_epi64(p, __mmask8(m), low);
    _mm512_mask_storeu_epi64(p + 8, __mmask8(m >> 8), high);
}
AF_INLINE void store(int64_t* p, vf x) { store_tail(p, x, 0xffff); }
template <class T>
AF_INLINE void store(T* p, vf x, int n) {
    if (__builtin_constant_p(n) && n == 16) return store(p, x);
    store_tail(p, x, first_lanes(n));
}

// Codes of a quantiser: rounded to nearest even, then cut to 0..255.
AF_INLINE void store_codes(uint8_t* p, vf x) {
    __m512i codes = _mm512_max_epi32(_mm512_cvtps_epi32(x.v), _mm512_setzero_si512());
    _mm_storeu_si128((__m128i*)p, _mm512_cvtusepi32_epi8(codes));
}

// The same for 64 codes.
AF_INLINE void store_codes(uint8_t* p, vf a, vf b, vf c, vf d) {
    __m512i ab = _mm512_packs_epi32(_mm512_cvtps_epi32(a.v), _mm512_cvtps_epi32(b.v));
    __m512i cd = _mm512_packs_epi32(_mm512_cvtps_epi32(c.v), _mm512_cvtps_epi32(d.v));
    __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);  // packs work in quarters
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(ab, cd)));
}

// ---- arithmetic
AF_INLINE vf operator+(vf a, vf b) { return {a.v + b.v}; }
AF_INLINE vf operator-(vf a, vf b) { return {a.v - b.v}; }
AF_INLINE vf operator*(vf a, vf b) { return {a.v * b.v}; }
AF_INLINE vf operator/(vf a, vf b) { return {a.v / b.v}; }
AF_INLINE vf operator-(vf a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
AF_INLINE vf fma(vf a, vf b, vf c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
AF_INLINE vf fnma(vf a, vf b, vf c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a*b
AF_INLINE vf fast_min(vf a, vf b) { return {_mm512_min_ps(a.v, b.v)}; }
AF_INLINE vf fast_max(vf a, vf b) { return {_mm512_max_ps(a.v, b.v)}; }
AF_INLINE vf abs(vf a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
AF_INLINE vf sqrt(vf a) { return {_mm512_sqrt_ps(a.v)}; }
AF_INLINE vf floor(vf a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC)}; }
AF_INLINE vf ceil(vf a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC)}; }
AF_INLINE vf trunc(vf a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC)}; }
AF_INLINE vf round(vf a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
AF_INLINE vf copysign(vf magnitude, vf sign) {
    __m512i bit = _mm512_set1_epi32(int(0x80000000u));  // ternary logic 0xca: bit ? sign : magnitude
    return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(bit, _mm512_castps_si512(sign.v),
                                                          _mm512_castps_si512(magnitude.v), 0xca))};
}

// In a register: GCC would rather load a value again for each of its uses.
AF_INLINE vf once(vf a) {
    asm("" : "+v"(a.v));
    return a;
}

// ---- masks
AF_INLINE vm lt(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
AF_INLINE vm le(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
AF_INLINE vm gt(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
AF_INLINE vm ge(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
AF_INLINE vm eq(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
AF_INLINE vm ne(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ)}; }
AF_INLINE vm unordered(vf a, vf b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_UNORD_Q)}; }
AF_INLINE vm and_(vm a, vm b) { return {__mmask16(a.m & b.m)}; }
AF_INLINE vm or_(vm a, vm b) { return {__mmask16(a.m | b.m)}; }
AF_INLINE vm not_(vm a) { return {__mmask16(~a.m)}; }
AF_INLINE bool any(vm a) { return a.m != 0; }
AF_INLINE bool all(vm a) { return a.m == 0xffff; }
AF_INLINE uint32_t mask_bits(vm a) { return a.m; }
AF_INLINE vf select(vm m, vf a, vf b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }

// ---- reductions over the lanes
AF_INLINE float lane0(vf a) { return _mm512_cvtss_f32(a.v); }
AF_INLINE float hsum(vf a) { return _mm512_reduce_add_ps(a.v); }
AF_INLINE float fast_hmax(vf a) { return _mm512_reduce_max_ps(a.v); }
AF_INLINE float fast_hmin(vf a) { return _mm512_reduce_min_ps(a.v); }

// Four vectors at once: lane i of the result is what `op` makes of the lanes of vector i; lanes 4 and above are zero.
template <class Op>
AF_INLINE vf reduce4(vf a, vf b, vf c, vf d, Op op) {
    __m512 ab = op(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));  // a, b, a, b in every quarter
    __m512 cd = op(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
    __m512 all = op(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    all = op(all, _mm512_shuffle_f32x4(all, all, 0x4e));
    all = op(all, _mm512_shuffle_f32x4(all, all, 0xb1));
    return {_mm512_zextps128_ps512(_mm512_castps512_ps128(all))};
}
AF_INLINE vf hsum4(vf a, vf b, vf c, vf d) {
    return reduce4(a, b, c, d, [](__m512 x, __m512 y) { return _mm512_add_ps(x, y); });
}
AF_INLINE vf fast_hmax4(vf a, vf b, vf c, vf d) {
    return reduce4(a, b, c, d, [](__m512 x, __m512 y) { return _mm512_max_ps(x, y); });
}
AF_INLINE vf fast_hmin4(vf a, vf b, vf c, vf d) {
    return reduce4(a, b, c, d, [](__m512 x, __m512 y) { return _mm512_min_ps(x, y); });
}
AF_INLINE void store4(float* p, vf a) { _mm_storeu_ps(p, _mm512_castps512_ps128(a.v)); }
// Of eight times four floats the first and the second two.
AF_INLINE void deal(const float* p, vf& first, vf& second) {
    __m512 a = _mm512_loadu_ps(p), b = _mm512_loadu_ps(p + 16);
    __m512i order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29);
    first = {_mm512_permutex2var_ps(a, order, b)};
    second = {_mm512_permutex2var_ps(a, _mm512_add_epi32(order, _mm512_set1_epi32(2)), b)};
}
// Lanes 0..3 of each, side by side.
AF_INLINE vf quarters(vf a, vf b, vf c, vf d) {
    __m512 low = _mm512_insertf32x4(a.v, _mm512_castps512_ps128(b.v), 1);
    __m512 high = _mm512_insertf32x4(c.v, _mm512_castps512_ps128(d.v), 1);
    return {_mm512_shuffle_f32x4(low, high, 0x44)};
}

AF_INLINE __m512 swap_halves(__m512 x) { return _mm512_shuffle_f32x4(x, x, 0x4e); }
// Smallest lane of `low` and largest of `high` in one go: the other sign of `low` shares a register with `high`.
AF_INLINE void extremes(vf low, vf high, float& least, float& most) {
    __m512 negated = (-low).v;
    __m512 x = _mm512_mask_blend_ps(0xff00, _mm512_max_ps(high.v, swap_halves(high.v)),
                                    _mm512_max_ps(negated, swap_halves(negated)));
    x = _mm512_max_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
    x = _mm512_max_ps(x, _mm512_permute_ps(x, 0x4e));
    x = _mm512_max_ps(x, _mm512_permute_ps(x, 0xb1));
    most = _mm512_cvtss_f32(x);
    least = -_mm256_cvtss_f32(_mm512_extractf32x8_ps(x, 1));
}
// Lanes i and i ^ S change places.
template <int S>
AF_INLINE vf swap(vf x) {
    if constexpr (S == 8) return {swap_halves(x.v)};
    if constexpr (S == 4) return {_mm512_shuffle_f32x4(x.v, x.v, 0xb1)};
    if constexpr (S == 2) return {_mm512_permute_ps(x.v, 0x4e)};
    if constexpr (S == 1) return {_mm512_permute_ps(x.v, 0xb1)};
}

// ---- parts of a float, for math.h
// x * 2^n, n integral within +-400; gradual underflow.
AF_INLINE vf scale2(vf x, vf n) { return {_mm512_scalef_ps(x.v, n.v)}; }
// x = m * 2^e with m in [0.75, 1.5); x positive and finite, subnormals included.
AF_INLINE vf split2(vf x, vf& e) {
    vf m{_mm512_getmant_ps(x.v, _MM_MANT_NORM_p75_1p5, _MM_MANT_SIGN_zero)};
    __mmask16 halved = _mm512_cmp_ps_mask(m.v, _mm512_set1_ps(1.0f), _CMP_LT_OQ);
    __m512 whole = _mm512_getexp_ps(x.v);
    e = {_mm512_mask_add_ps(whole, halved, whole, _mm512_set1_ps(1.0f))};
    return m;
}
// table[i] for the integral lanes i in 0..15.
AF_INLINE vf lookup(const float* table, vf i) {
    return {_mm512_permutexvar_ps(_mm512_cvttps_epi32(i.v), _mm512_loadu_ps(table))};
}

}  // namespace af
