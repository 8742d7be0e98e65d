// Out: the Ops (multiply-adds) of the instruction set of this build; what an Op is: gemm_ops_avx512.h.
#pragma once

#include "vec.h"

// Nothing of this namespace is shared between libraries: an exported template or static table of one instruction set's
// library would stand in for that of another's in the same process.
#define AF_HIDDEN __attribute__((visibility("hidden")))

#if defined(AF_AVX512)
#include "gemm_ops_avx512.h"
#elif defined(AF_AVX2)
#include "gemm_ops_avx2.h"
#else
#include "gemm_ops_portable.h"
#endif
