// Out: the Ops (multiply-adds) of the instruction set of this build; what an Op is: gemm_ops_avx512.h.
#pragma once

#include "vec.h"

#if defined(AF_AVX512)
#include "gemm_ops_avx512.h"
#elif defined(AF_AVX2)
#include "gemm_ops_avx2.h"
#else
#include "gemm_ops_portable.h"
#endif
