// Timers for benchmarks/kernel_rows.py: instruction peaks, read bandwidth, and each product over a list of operands.
// All return the time of the fastest of `rounds` bursts.
#include <ctime>

#include "gemm.h"

namespace {

double now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return double(t.tv_sec) * 1e9 + double(t.tv_nsec);
}

template <class Burst>
double fastest(int rounds, Burst burst) {
    double best = 1e30;
    for (int i = 0; i < rounds; ++i) {
        double start = now_ns();
        burst();
        double took = now_ns() - start;
        best = took < best ? took : best;
    }
    return best;
}

// Multiply-adds of one register kind in 12 independent chains; nanoseconds per instruction.
template <class Acc, class Dot>
double per_instruction(int rounds, Dot dot) {
    constexpr int CHAINS = 12, STEPS = 2000;
    return fastest(rounds, [&] {
               Acc c[CHAINS];
               AF_UNROLL for (int j = 0; j < CHAINS; ++j) c[j] = Acc{};
               for (int i = 0; i < STEPS; ++i) AF_UNROLL for (int j = 0; j < CHAINS; ++j) dot(c[j]);
               AF_UNROLL for (int j = 0; j < CHAINS; ++j) asm volatile("" ::"v"(c[j]));
           }) / (CHAINS * STEPS);
}

struct Store {  // what a model's linear does at least: bias, then bf16
    af::bf16* y;
    long ldy;
    const float* bias;
    __attribute__((always_inline)) void operator()(long row, long n, af::vf value, int count) const {
        af::store(y + row * ldy + n, value + af::load(bias + n), count);
    }
};

}  // namespace

#if defined(AF_AVX512)
extern "C" double peak_vnni(int rounds) {
    __m512i x = _mm512_set1_epi8(1);
    return 128 / per_instruction<__m512i>(rounds, [=](__m512i& c) AF_LAMBDA { asm("vpdpbusd %1,%1,%0" : "+v"(c) : "v"(x)); });
}
extern "C" double peak_bf16(int rounds) {
    __m512i x = _mm512_setzero_si512();
    return 64 / per_instruction<__m512>(rounds, [=](__m512& c) AF_LAMBDA { asm("vdpbf16ps %1,%1,%0" : "+v"(c) : "v"(x)); });
}
extern "C" double peak_f32(int rounds) {
    __m512 x = _mm512_setzero_ps();
    return 32 / per_instruction<__m512>(rounds, [=](__m512& c) AF_LAMBDA { asm("vfmadd231ps %1,%1,%0" : "+v"(c) : "v"(x)); });
}
#elif defined(AF_AVX2)
extern "C" double peak_vnni(int rounds) {  // widened products: vpmaddwd, 16 multiply-adds
    __m256i x = _mm256_set1_epi8(1);
    return 32 / per_instruction<__m256i>(rounds, [=](__m256i& c) AF_LAMBDA { asm("vpmaddwd %1,%0,%0" : "+v"(c) : "v"(x)); });
}
extern "C" double peak_f32(int rounds) {
    __m256 x = _mm256_setzero_ps();
    return 16 / per_instruction<__m256>(rounds, [=](__m256& c) AF_LAMBDA { asm("vfmadd231ps %1,%1,%0" : "+v"(c) : "v"(x)); });
}
extern "C" double peak_bf16(int rounds) { return peak_f32(rounds); }
#endif

// GB/s of reading `bytes` bytes again and again.
extern "C" double read_speed(const char* p, long bytes, int rounds) {
    return double(bytes) / fastest(rounds, [&] {
        af::vf sum[4] = {af::set1(0), af::set1(0), af::set1(0), af::set1(0)};
        for (long i = 0; i + 256 <= bytes; i += 256)
            AF_UNROLL for (int j = 0; j < 4; ++j) sum[j] += af::load((const float*)(p + i + j * 64));
        AF_UNROLL for (int j = 0; j < 4; ++j) asm volatile("" ::"m"(sum[j]));
    });
}

struct Args {
    const char* a;
    long lda, rows;
    const void* b;
    const float *sw, *csw, *wz;
    long K, N;
    void* y;
    const float* bias;
};
#define SHAPE s.K, s.N, 0, s.N, (Store{(af::bf16*)s.y, s.N, s.bias})

// Nanoseconds of one product, averaged over the list. Long products (some 20 us and more) are timed one by one and the
// fastest of `rounds` kept for each, so that a burst stays shorter than a slice of the scheduler; short ones by the walk.
template <class Call>
double time_list(const Args* list, int count, int rounds, bool each, Call call) {
    if (!each) return fastest(rounds, [&] { for (int i = 0; i < count; ++i) call(list[i]); }) / count;
    double best[64], sum = 0;
    for (int i = 0; i < count; ++i) best[i] = 1e30;
    for (int round = 0; round < rounds; ++round)
        for (int i = 0; i < count; ++i) {
            double took = fastest(1, [&] { call(list[i]); });
            best[i] = took < best[i] ? took : best[i];
        }
    for (int i = 0; i < count; ++i) sum += best[i];
    return sum / count;
}

#define TIMER(name, ...)                                                                                  \
    extern "C" double name(const Args* list, int count, int rounds) {                                    \
        return time_list(list, count, rounds, count <= 64 && list->rows >= 32, [](const Args& s) {         \
            __VA_ARGS__;                                                                                   \
        });                                                                                                \
    }
#define INT8 (const int8_t*)s.b, s.sw, s.csw

TIMER(f32, af::gemm_f32(s.a, s.lda, s.rows, s.b, SHAPE))
TIMER(bf16, af::gemm_bf16(s.a, s.lda, s.rows, s.b, SHAPE))
TIMER(w8a8, af::gemm_w8a8(s.a, s.lda, s.rows, INT8, SHAPE))
TIMER(w8, af::gemm_w8(s.a, s.lda, s.rows, (const int8_t*)s.b, s.sw, SHAPE))

#define GROUPS(G)                                                                                              \
    TIMER(w8a8_g##G, af::gemm_w8a8_grouped<G>(s.a, s.lda, s.rows, INT8, SHAPE))                                 \
    TIMER(w4a8_g##G, af::gemm_w4a8<G, false>(s.a, s.lda, s.rows, s.b, s.sw, s.csw, nullptr, SHAPE))              \
    TIMER(w4a8_asym_g##G, af::gemm_w4a8<G, true>(s.a, s.lda, s.rows, s.b, s.sw, s.csw, s.wz, SHAPE))              \
    TIMER(w4_g##G, af::gemm_w4<G, false>(s.a, s.lda, s.rows, s.b, s.sw, nullptr, SHAPE))                         \
    TIMER(w4_asym_g##G, af::gemm_w4<G, true>(s.a, s.lda, s.rows, s.b, s.sw, s.wz, SHAPE))
GROUPS(32)
GROUPS(64)
GROUPS(128)
