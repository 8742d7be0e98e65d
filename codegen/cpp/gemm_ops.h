// Out: the Ops (multiply-adds) of the instruction set of this build; what an Op is: gemm_ops_avx512.h.
#pragma once

#include "vec.h"

// Nothing of this namespace is shared between libraries: an exported template or static table of one instruction set's
// library would stand in for that of another's in the same process.
#define AF_HIDDEN __attribute__((visibility("hidden")))

// A table of a tile function for 1 to 8 rows, or as many as the Op has registers for; its arguments but the last.
#define AF_UP_TO(N) (Op::ROWS < N ? Op::ROWS : N)
#define AF_BY_ROWS(TILE, ...)                                                                              \
    {                                                                                                      \
        TILE<__VA_ARGS__, 1>, TILE<__VA_ARGS__, 2>, TILE<__VA_ARGS__, 3>, TILE<__VA_ARGS__, 4>,            \
        TILE<__VA_ARGS__, AF_UP_TO(5)>, TILE<__VA_ARGS__, AF_UP_TO(6)>, TILE<__VA_ARGS__, AF_UP_TO(7)>,    \
        TILE<__VA_ARGS__, AF_UP_TO(8)>                                                                     \
    }

#if defined(AF_AVX512)
#include "gemm_ops_avx512.h"
#elif defined(AF_AVX2)
#include "gemm_ops_avx2.h"
#else
#include "gemm_ops_portable.h"
#endif
