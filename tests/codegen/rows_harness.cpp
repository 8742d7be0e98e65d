// Row functions by name, and their times.
#include "rows.h"
#include "team.h"

using namespace af;

#define U8T(h) \
    extern "C" void u8t_##h(const float* x, long K, char* out) { quantise_row_u8t<h>(x, K, out); } \
    extern "C" void bf16_##h(const float* x, long K, char* out) { bf16_row<h>(x, K, out); }
#define U8G(g, h) \
    extern "C" void u8g##g##_##h(const float* x, long K, char* out) { quantise_row_u8g<g, h>(x, K, out); }
U8T(0) U8T(64) U8T(128)
U8G(32, 0) U8G(64, 0) U8G(128, 0) U8G(32, 64) U8G(64, 64) U8G(128, 64) U8G(64, 128) U8G(128, 128)

extern "C" void norm(const float* x, const float* w, const float* b, float eps, long K, float* y) {
    layer_norm_row(x, w, b, eps, K, y);
}
extern "C" void norm_u8t(const float* x, long rows, const float* w, const float* b, float eps, long K, char* out,
                         long pitch) {
    alignas(64) static float scratch[65536];
    layer_norm_rows_u8t(x, K, rows, w, b, eps, K, scratch, out, pitch);
}
extern "C" void gather(int kind, const void* block, long width, long row, float* out, long pitch) {
    if (kind == 0) gather_f32(block, width, row, out);
    if (kind == 1) gather_bf16(block, width, row, out);
    if (kind == 2) gather_u8(block, width, row, out, pitch);
    if (kind == 3) gather_s8(block, width, row, out, pitch);
}

// ns per row of layer norm into scratch, then quantise, over `rows` rows, best of `tries` passes.
// Without a form: both in one.
typedef void (*Form)(const float*, long, char*);
extern "C" double norm_form_ns(Form form, const float* x, const float* w, const float* b, long K, long rows, char* out,
                               long pitch, long tries) {
    alignas(64) static float scratch[65536];
    double best = 1e30;
    for (long t = 0; t < tries; t++) {
        const int64_t start = now_ns();
        if (form == nullptr) layer_norm_rows_u8t(x, K, rows, w, b, 1e-5f, K, scratch, out, pitch);
        for (long r = 0; r < rows && form != nullptr; r++) {
            if (w != nullptr) layer_norm_row(x + r * K, w, b, 1e-5f, K, scratch);
            form(w != nullptr ? scratch : x + r * K, K, out + r * pitch);
        }
        const double ns = double(now_ns() - start) / double(rows);
        if (ns < best) best = ns;
    }
    return best;
}
