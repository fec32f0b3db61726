#pragma once

namespace c10::cuda {

struct CUDAStream {};
inline CUDAStream getCurrentCUDAStream() { return {}; }

}  // namespace c10::cuda
