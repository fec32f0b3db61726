// The part of CUDA's language that piip_ops' kernels use, for a C++ compiler: a warp is 32 coroutines in one
// thread, which wait for each other at every shuffle. Lanes that do not all come to the same shuffle, which
// on a GPU is undefined, are an error here. Included before everything else.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>
#include <math.h>
#include <ucontext.h>

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

// Only now: PyTorch's headers ask for it too. 9.0 has everything that the kernels can use.
#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(threads)

namespace emulated_cuda {

struct Index {
  unsigned x;
};

class Warp {
 public:
  static constexpr int kLanes = 32;

  static Warp& instance() {
    static thread_local Warp warp;
    return warp;
  }

  template <typename Body>
  void run(unsigned first_thread, const Body& body) {
    first_thread_ = first_thread;
    call_ = [](const void* p) { (*static_cast<const Body*>(p))(); };
    body_ = &body;
    round_ = 0;
    for (Lane& lane : lanes_) start(lane);
    while (true) {
      for (current_ = 0; current_ < kLanes; ++current_) resume();
      if (lanes_[0].finished) break;
      ++round_;
    }
  }

  // What lane `source` of the lane's group of `width` brings to this shuffle.
  template <typename T>
  T shuffle(unsigned mask, T x, int source, int width) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
    Lane& lane = lanes_[current_];
    const int from = current_ / width * width + source;
    lane.arrived_at = {mask, width, static_cast<int>(sizeof(T))};
    // Two slots: a lane may come to its next shuffle before another has read from this one.
    std::memcpy(lane.slot[round_ % 2], &x, sizeof(T));
    const int round = round_, me = current_;
    if (swapcontext(&lane.context, &scheduler_) != 0) std::abort();
    TORCH_INTERNAL_ASSERT(current_ == me && round_ == round + 1);
    T result;
    std::memcpy(&result, lanes_[from].slot[round % 2], sizeof(T));
    return result;
  }

  int lane() const { return current_; }
  unsigned thread() const { return first_thread_ + static_cast<unsigned>(current_); }

 private:
  struct Shuffle {
    unsigned mask;
    int width, bytes;
    bool operator==(const Shuffle&) const = default;
  };
  struct Lane {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(64 << 10);
    bool finished;
    Shuffle arrived_at;
    char slot[2][8];
  };

  static void enter() {
    Warp& warp = instance();
    warp.call_(warp.body_);
    warp.lanes_[warp.current_].finished = true;
  }

  void start(Lane& lane) {
    lane.finished = false;
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = lane.stack.data();
    lane.context.uc_stack.ss_size = lane.stack.size();
    lane.context.uc_link = &scheduler_;
    makecontext(&lane.context, enter, 0);
  }

  void resume() {
    Lane& lane = lanes_[current_];
    if (swapcontext(&scheduler_, &lane.context) != 0) std::abort();
    const Lane& first = lanes_[0];
    TORCH_CHECK(lane.finished == first.finished && (lane.finished || lane.arrived_at == first.arrived_at),
                "lanes 0 and ", current_, " of a warp parted before a shuffle");
    TORCH_CHECK(lane.finished || lane.arrived_at.mask == 0xffffffffu,
                "a shuffle of some lanes only: not emulated");
  }

  ucontext_t scheduler_;
  Lane lanes_[kLanes];
  void (*call_)(const void*);
  const void* body_;
  unsigned first_thread_;
  int current_, round_;
};

inline thread_local Index block_index, grid_size;

struct ThreadIndex {
  struct {
    operator unsigned() const { return Warp::instance().thread(); }
  } x;
};

// kernel<<<blocks, threads>>>(arguments). Two blocks at most, so that the kernels' strides of the grid are
// walked as well.
template <typename Arguments>
void launch(void (*kernel)(Arguments), unsigned blocks, unsigned threads, const Arguments& arguments) {
  grid_size.x = std::min(blocks, 2u);
  for (block_index.x = 0; block_index.x < grid_size.x; ++block_index.x) {
    for (unsigned first = 0; first < threads; first += Warp::kLanes) {
      Warp::instance().run(first, [&] { kernel(arguments); });
    }
  }
}

}  // namespace emulated_cuda

inline const emulated_cuda::ThreadIndex threadIdx;
#define blockIdx ::emulated_cuda::block_index
#define gridDim ::emulated_cuda::grid_size

template <typename T>
T __shfl_sync(unsigned mask, T x, int source, int width) {
  return emulated_cuda::Warp::instance().shuffle(mask, x, source % width, width);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int bits, int width) {
  auto& warp = emulated_cuda::Warp::instance();
  return warp.shuffle(mask, x, (warp.lane() % width) ^ bits, width);
}

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

template <typename T>
void atomicAdd(T* to, T x) {
  *to += x;
}
inline void atomicAdd(float2* to, float2 x) { *to = {to->x + x.x, to->y + x.y}; }
inline void atomicAdd(float4* to, float4 x) { *to = {to->x + x.x, to->y + x.y, to->z + x.z, to->w + x.w}; }

using std::min;
