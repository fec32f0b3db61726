// The kernels for any CPU: vectors of 16 bytes, which the compiler maps to what the target always has.
#include "kernels.h"
#include "simd.h"
#include "kernels_impl.h"

namespace piip_ops {
const Kernels kBaselineKernels = {"baseline", scratch_bytes, forward, backward};
}
