// One extern "C" entry per matrix product, storing floats at y[row * ldy + n] through an epilogue.
#include "gemm.h"

namespace {
struct Store {
    float* y;
    long ldy;
    __attribute__((always_inline)) void operator()(long row, long n, af::vf value, int count) const {
        af::store(y + row * ldy + n, value, count);
    }
};
}  // namespace

struct Args {
    const char* a;
    long lda, rows;
    const void* b;
    const void *sw, *csw, *sums, *zeros;
    long K, N, n0, n1;
    float* y;
    long ldy;
};

#define ENTRY(name) extern "C" void name(const Args* s)
#define SHAPE s->K, s->N, s->n0, s->n1, (Store{s->y, s->ldy})

ENTRY(f32) { af::gemm_f32(s->a, s->lda, s->rows, s->b, SHAPE); }
ENTRY(bf16) { af::gemm_bf16(s->a, s->lda, s->rows, s->b, SHAPE); }
#define FLOATS(part) (const float*)s->part
ENTRY(w8a8) { af::gemm_w8a8(s->a, s->lda, s->rows, (const int8_t*)s->b, FLOATS(sw), FLOATS(csw), SHAPE); }
ENTRY(w8) { af::gemm_w8(s->a, s->lda, s->rows, (const int8_t*)s->b, FLOATS(sw), SHAPE); }

#define GROUPS(G)                                                                                                     \
    ENTRY(w8a8_g##G) { af::gemm_w8a8_grouped<G>(s->a, s->lda, s->rows, (const int8_t*)s->b, s->sw, s->sums, SHAPE); } \
    ENTRY(w4a8_g##G) { af::gemm_w4a8<G, false>(s->a, s->lda, s->rows, s->b, s->sw, s->sums, SHAPE); }                 \
    ENTRY(w4a8_asym_g##G) { af::gemm_w4a8<G, true>(s->a, s->lda, s->rows, s->b, s->sw, s->sums, SHAPE); }             \
    ENTRY(w4_g##G) { af::gemm_w4<G, false>(s->a, s->lda, s->rows, s->b, s->sw, nullptr, SHAPE); }                     \
    ENTRY(w4_asym_g##G) { af::gemm_w4<G, true>(s->a, s->lda, s->rows, s->b, s->sw, s->zeros, SHAPE); }
GROUPS(32)
GROUPS(64)
GROUPS(128)
