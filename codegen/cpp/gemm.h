// All matrix products. Which weights and activations each takes stands at the head of its file.
#pragma once

#include "gemm_float.h"
#include "gemm_w4a8.h"
#include "gemm_w8a8.h"
#include "gemm_weight_only.h"
