// Row functions by name.
#include "rows.h"

using namespace af;

#define U8T(h) \
    extern "C" void u8t_##h(const float* x, long K, char* out) { quantise_row_u8t<h>(x, K, out); } \
    extern "C" void bf16_##h(const float* x, long K, char* out) { bf16_row<h>(x, K, out); }
#define U8G(g, h) \
    extern "C" void u8g##g##_##h(const float* x, long K, char* out) { quantise_row_u8g<g, h>(x, K, out); }
U8T(0) U8T(64) U8T(128)
U8G(32, 0) U8G(64, 0) U8G(128, 0) U8G(32, 64) U8G(64, 64) U8G(128, 64) U8G(64, 128) U8G(128, 128)

extern "C" void gather(int kind, const void* block, long width, long row, float* out, long pitch) {
    if (kind == 0) gather_f32(block, width, row, out);
    if (kind == 1) gather_bf16(block, width, row, out);
    if (kind == 2) gather_u8(block, width, row, out, pitch);
    if (kind == 3) gather_s8(block, width, row, out, pitch);
}
