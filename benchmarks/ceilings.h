// Clock, ceilings of one core and the timing of a burst, for kernel_rows.cpp and region_rows.cpp.
// In: a number of rounds. Out: the fastest of them: instruction peaks in GOP/s, bandwidths in GB/s, bursts in ns.
#pragma once
#include <ctime>

#include "vec.h"

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

// GB/s of copying `bytes` bytes again and again, read and written bytes counted; `past`: stores pass by the caches.
extern "C" double copy_speed(const char* p, char* q, long bytes, int past, int rounds) {
    return 2 * double(bytes) / fastest(rounds, [&] {
        for (long i = 0; i + 64 <= bytes; i += 64) {
            af::vf line = af::load((const float*)(p + i));
#if defined(AF_AVX512)
            if (past) {
                _mm512_stream_ps((float*)(q + i), line.v);
                continue;
            }
#endif
            af::store((float*)(q + i), line);
        }
        asm volatile("" ::: "memory");
    });
}
