// Attention over several heads by the threads of a team, in all arithmetic, input and mask kinds.
#include "attention.h"
#include "team.h"

#include <cstdlib>

using namespace af;

struct Problem {
    const void *q, *k, *v, *mask;
    void* out;
    long batch, heads, kv_heads, queries, keys, width, mask_row, mask_column, mask_head, mask_batch;
    float scale;
    int causal, bf16_products, bf16_rows, mask_kind;  // mask: 0 none, 1 float, 2 bool
};

// Rows as a fused projection leaves them: [batch][row][heads][width].
template <bool Bf16, class T, class M>
static void head(const Problem& p, long b, long h, const M& mask, char* scratch) {
    const long kv = h / (p.heads / p.kv_heads), q_row = p.heads * p.width, k_row = p.kv_heads * p.width;
    const T* q = (const T*)p.q + b * p.queries * q_row + h * p.width;
    const T* k = (const T*)p.k + b * p.keys * k_row + kv * p.width;
    const T* v = (const T*)p.v + b * p.keys * k_row + kv * p.width;
    T* out = (T*)p.out + b * p.queries * q_row + h * p.width;
    char* packed = scratch + attention_row_bytes(p.keys, p.width, Bf16);
    const Attention a{p.queries, p.keys, int(p.width), p.scale, p.causal != 0};
    const long half = p.keys / 64 * 32;  // in two ranges, as two threads would
    pack_kv<Bf16>(k, k_row, v, k_row, p.keys, p.width, packed, half, p.keys);
    pack_kv<Bf16>(k, k_row, v, k_row, p.keys, p.width, packed, 0, half);
    const long cut = p.queries / 16 * 8;
    attend_rows<Bf16>(a, q, q_row, mask, packed, out, q_row, 0, cut, scratch);
    attend_rows<Bf16>(a, q, q_row, mask, packed, out, q_row, cut, p.queries, scratch);
}

template <bool Bf16, class T>
static void masked(const Problem& p, long b, long h, char* scratch) {
    const long at = b * p.mask_batch + h * p.mask_head;
    if (p.mask_kind == 0) head<Bf16, T>(p, b, h, no_mask(), scratch);
    const float* floats = (const float*)p.mask + at;
    if (p.mask_kind == 1) head<Bf16, T>(p, b, h, mask_of(floats, p.mask_row, p.mask_column), scratch);
    if (p.mask_kind == 2) head<Bf16, T>(p, b, h, mask_of((const bool*)p.mask + at, p.mask_row, p.mask_column), scratch);
}

static void any(const Problem& p, long b, long h, char* scratch) {
    if (p.bf16_products && p.bf16_rows) masked<true, bf16>(p, b, h, scratch);
    if (p.bf16_products && !p.bf16_rows) masked<true, float>(p, b, h, scratch);
    if (!p.bf16_products && !p.bf16_rows) masked<false, float>(p, b, h, scratch);
}

struct Job {
    const Problem* p;
    WorkCounter counter;
    std::atomic<long> spoilt{0};
};

static void work(void* argument, int) {
    Job& job = *(Job*)argument;
    const Problem& p = *job.p;
    const long bytes = attention_scratch_bytes(p.keys, p.width, p.bf16_products != 0);
    char* scratch = (char*)aligned_alloc(64, size_t(bytes + 128) / 64 * 64);
    std::memset(scratch, 0xff, size_t(bytes));  // nan, wherever it is read before it is written
    std::memset(scratch + bytes, 0x5a, 32);
    for (long i = job.counter.take(); i < p.batch * p.heads; i = job.counter.take())
        any(p, i / p.heads, i % p.heads, scratch);
    for (int i = 0; i < 32; i++) job.spoilt += scratch[bytes + i] != 0x5a;
    free(scratch);
}

// ns of the call; negative where scratch beyond the promised bytes was written.
extern "C" double attend(const Problem* p, long threads) {
    static Team one(1), two(2);
    Job job;
    job.p = p;
    const int64_t start = now_ns();
    (threads == 2 ? two : one).run(work, &job);
    const int64_t end = now_ns();
    return job.spoilt ? -1.0 : double(end - start);
}
