// The kernels for CPUs with AVX2; called only where the CPU has it.
#if defined(__x86_64__)

#include "kernels.h"

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define PIIP_OPS_AVX2 1
#include "simd.h"
#include "kernels_impl.h"

namespace piip_ops {
const Kernels kAvx2Kernels = {"AVX2", scratch_bytes, forward, backward};
}

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
