// What both kernels start from: their arguments, where a lane stands, and its point. A (query, head) pair is
// worked on by a group of 4 to 32 lanes of a warp, each of which holds 4 to 16 bytes of channels: with PIIP's
// 6 to 40 channels a head, 2 to 8 pairs share a warp. The lanes of a group first prepare one point each -
// position and attention weight - and then visit all points together, passing the preparation around by
// shuffles; nothing of it is written to memory.
#pragma once

#include <cstdint>
#include <type_traits>

namespace piip_ops {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxLevels = 16;
constexpr int kMaxCrossPoints = kWarp;

struct Level {
  int32_t height, width;
  int64_t start;
};

// Tensors without their types; strides in elements, rows contiguous.
struct KernelArguments {
  int64_t pairs;  // batch * queries * heads
  int64_t queries;
  int heads, channels, levels, points, lanes;  // lanes: of a group
  int query_height, query_width;
  bool wide_points;  // points and mixing in float32 beside a half-precision value
  Level level[kMaxLevels];
  const void* value;
  int64_t value_batch_stride, value_row_stride;
  const void* points_xy;
  int64_t points_batch_stride, points_row_stride;
  const void* mixing;
  int64_t mixing_batch_stride, mixing_row_stride;
  void* out;
  // Backward: contiguous but for grad_out; grad_value in the accumulator's type.
  const void* grad_out;
  int64_t grad_out_batch_stride, grad_out_row_stride;
  void *grad_value, *grad_points, *grad_mixing;
};

template <typename S>
using Accumulator = std::conditional_t<std::is_same_v<S, double>, double, float>;

template <typename S, int width>
struct alignas(sizeof(S) * width) Pack {
  S item[width];
};

// Element i of points, mixing weights or their gradients, whose type is S or the accumulator's.
template <typename S>
__device__ __forceinline__ Accumulator<S> read_point(const void* p, bool wide, int64_t i) {
  using Acc = Accumulator<S>;
  return wide ? static_cast<const Acc*>(p)[i] : static_cast<Acc>(static_cast<const S*>(p)[i]);
}
template <typename S>
__device__ __forceinline__ void write_point(void* p, bool wide, int64_t i, Accumulator<S> x) {
  if (wide) {
    static_cast<Accumulator<S>*>(p)[i] = x;
  } else {
    static_cast<S*>(p)[i] = static_cast<S>(x);
  }
}

template <typename Acc>
__device__ __forceinline__ Acc group_sum(Acc x, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2)
    x += __shfl_xor_sync(kAllLanes, x, distance, lanes);
  return x;
}
template <typename Acc>
__device__ __forceinline__ Acc group_max(Acc x, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    const Acc other = __shfl_xor_sync(kAllLanes, x, distance, lanes);
    x = x > other ? x : other;
  }
  return x;
}

// Where a lane stands: which pair its group works on, and that pair's places in the tensors.
struct Place {
  int lane;
  bool active;  // the last round may have more groups than pairs: those compute on pair 0 and store nothing
  int64_t pair, batch, query;
  int head;

  __device__ __forceinline__ Place(const KernelArguments& a, int64_t first_pair) {
    lane = static_cast<int>(threadIdx.x) % a.lanes;
    pair = first_pair + static_cast<int>(threadIdx.x) / a.lanes;
    active = pair < a.pairs;
    if (!active) pair = 0;
    head = static_cast<int>(pair % a.heads);
    query = pair / a.heads % a.queries;
    batch = pair / a.heads / a.queries;
  }
};

// The channels of the place's head in position 0 of its image.
template <typename S>
__device__ __forceinline__ const S* value_of(const KernelArguments& a, const Place& place) {
  return static_cast<const S*>(a.value) + place.batch * a.value_batch_stride +
         static_cast<int64_t>(place.head) * a.channels;
}

// A position in pixels of the map and an attention weight.
template <typename Acc>
struct Sample {
  Acc x, y, attention;

  // What the group's lane `i` holds.
  __device__ __forceinline__ Sample of_lane(int i, int lanes) const {
    return {__shfl_sync(kAllLanes, x, i, lanes), __shfl_sync(kAllLanes, y, i, lanes),
            __shfl_sync(kAllLanes, attention, i, lanes)};
  }
};

// The points of a place's query and head, one of which this lane prepares.
template <typename S, bool cross>
struct Points {
  using Acc = Accumulator<S>;
  const KernelArguments& a;
  const Place& place;
  int64_t first_point, first_mixing;
  Acc centre_x = -0.5, centre_y = -0.5, largest = 0, sum = 1;

  __device__ __forceinline__ Points(const KernelArguments& arguments, const Place& where)
      : a(arguments), place(where) {
    const int64_t of_head = static_cast<int64_t>(place.head) * a.levels * a.points;
    first_point = place.batch * a.points_batch_stride + place.query * a.points_row_stride + 2 * of_head;
    first_mixing = place.batch * a.mixing_batch_stride + place.query * a.mixing_row_stride + of_head;
    if constexpr (cross) {
      const auto row = place.query / a.query_width, column = place.query % a.query_width;
      centre_x += (static_cast<Acc>(column) + Acc(0.5)) * a.level[0].width / a.query_width;
      centre_y += (static_cast<Acc>(row) + Acc(0.5)) * a.level[0].height / a.query_height;
      // kMaxCrossPoints: every point has a lane.
      const bool mine = place.lane < a.points;
      const Acc logit = read_point<S>(a.mixing, a.wide_points, first_mixing + (mine ? place.lane : 0));
      largest = group_max(logit, a.lanes);
      sum = group_sum(mine ? ::exp(logit - largest) : Acc(0), a.lanes);
    }
  }

  __device__ __forceinline__ Sample<Acc> prepare(const Level& level, int i) const {
    Acc x = read_point<S>(a.points_xy, a.wide_points, first_point + 2 * i);
    Acc y = read_point<S>(a.points_xy, a.wide_points, first_point + 2 * i + 1);
    Acc attention = read_point<S>(a.mixing, a.wide_points, first_mixing + i);
    if constexpr (cross) {
      attention = ::exp(attention - largest) / sum;
    } else {
      x *= level.width;
      y *= level.height;
    }
    return {near(x + centre_x, level.width), near(y + centre_y, level.height), attention};
  }

 private:
  // Far enough outside to weigh nothing, near enough for an integer; the comparisons send NaN there as well.
  static __device__ __forceinline__ Acc near(Acc position, int size) {
    position = position > Acc(-2) ? position : Acc(-2);
    return position < size + Acc(1) ? position : size + Acc(1);
  }
};

// The four corners around a position: 00, 01, 10, 11 as (y, x).
template <typename Acc>
struct Corners {
  Acc fraction_x, fraction_y;
  bool inside[4];
  int64_t row[4];

  __device__ __forceinline__ Corners(const Level& level, const Sample<Acc>& sample) {
    const Acc floor_x = ::floor(sample.x), floor_y = ::floor(sample.y);
    fraction_x = sample.x - floor_x;
    fraction_y = sample.y - floor_y;
    const int x0 = static_cast<int>(floor_x), y0 = static_cast<int>(floor_y);
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
      const int cx = x0 + corner % 2, cy = y0 + corner / 2;
      inside[corner] = cx >= 0 && cx < level.width && cy >= 0 && cy < level.height;
      row[corner] = level.start + static_cast<int64_t>(cy) * level.width + cx;
    }
  }
  __device__ __forceinline__ Acc weight(int corner) const {
    return (corner % 2 ? fraction_x : 1 - fraction_x) * (corner / 2 ? fraction_y : 1 - fraction_y);
  }
};

// Calls body(place, points) for every pair, in strides of the grid; all lanes of a warp go round together.
template <typename S, bool cross, typename Body>
__device__ __forceinline__ void for_each_pair(const KernelArguments& a, const Body& body) {
  const int64_t pairs_in_block = kThreads / a.lanes;
  for (int64_t first = blockIdx.x * pairs_in_block; first < a.pairs; first += gridDim.x * pairs_in_block) {
    const Place place(a, first);
    body(place, Points<S, cross>(a, place));
  }
}

}  // namespace
}  // namespace piip_ops
