// Timers for benchmarks/kernel_rows.py: each product over a list of operands. All return the time of the fastest of
// `rounds` bursts.
#include "ceilings.h"
#include "gemm.h"

namespace {

struct Store {  // what a model's linear does at least: bias, then bf16
    af::bf16* y;
    long ldy;
    const float* bias;
    __attribute__((always_inline)) void operator()(long row, long n, af::vf value, int count) const {
        af::store(y + row * ldy + n, value + af::load(bias + n), count);
    }
};

}  // namespace

struct Args {
    const char* a;
    long lda, rows;
    const void* b;
    const void *sw, *sums, *zeros;  // sums: csw where there is one scale per column
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
#define FLOATS(part) (const float*)s.part

TIMER(f32, af::gemm_f32(s.a, s.lda, s.rows, s.b, SHAPE))
TIMER(bf16, af::gemm_bf16(s.a, s.lda, s.rows, s.b, SHAPE))
TIMER(w8a8, af::gemm_w8a8(s.a, s.lda, s.rows, (const int8_t*)s.b, FLOATS(sw), FLOATS(sums), SHAPE))
TIMER(w8, af::gemm_w8(s.a, s.lda, s.rows, (const int8_t*)s.b, FLOATS(sw), SHAPE))

#define GROUPS(G)                                                                                              \
    TIMER(w8a8_g##G, af::gemm_w8a8_grouped<G>(s.a, s.lda, s.rows, (const int8_t*)s.b, s.sw, s.sums, SHAPE))       \
    TIMER(w4a8_g##G, af::gemm_w4a8<G, false>(s.a, s.lda, s.rows, s.b, s.sw, s.sums, SHAPE))                        \
    TIMER(w4a8_asym_g##G, af::gemm_w4a8<G, true>(s.a, s.lda, s.rows, s.b, s.sw, s.sums, SHAPE))                    \
    TIMER(w4_g##G, af::gemm_w4<G, false>(s.a, s.lda, s.rows, s.b, s.sw, nullptr, SHAPE))                           \
    TIMER(w4_asym_g##G, af::gemm_w4<G, true>(s.a, s.lda, s.rows, s.b, s.sw, s.zeros, SHAPE))
GROUPS(32)
GROUPS(64)
GROUPS(128)
