// The backward kernel.
#pragma once

#include "points.cuh"

namespace piip_ops {
namespace {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kVectorAtomics = true;
#else
constexpr bool kVectorAtomics = false;
#endif

// Adds `width` numbers in memory, several in one instruction where the GPU has it.
template <int width, typename Acc>
__device__ __forceinline__ void add_to(Acc* to, const Acc (&x)[width]) {
  if constexpr (kVectorAtomics && std::is_same_v<Acc, float> && width % 4 == 0) {
#pragma unroll
    for (int c = 0; c < width; c += 4) {
      atomicAdd(reinterpret_cast<float4*>(to + c), make_float4(x[c], x[c + 1], x[c + 2], x[c + 3]));
    }
  } else if constexpr (kVectorAtomics && std::is_same_v<Acc, float> && width == 2) {
    atomicAdd(reinterpret_cast<float2*>(to), make_float2(x[0], x[1]));
  } else {
#pragma unroll
    for (int c = 0; c < width; ++c) atomicAdd(to + c, x[c]);
  }
}

// The lane that prepared a point collects its gradients over all channels and writes them.
template <typename S, int width, bool cross>
__global__ void __launch_bounds__(kThreads) backward_kernel(const __grid_constant__ KernelArguments a) {
  using Acc = Accumulator<S>;
  for_each_pair<S, cross>(a, [&](const Place& place, const Points<S, cross>& points) {
    const S* value = value_of<S>(a, place);
    const S* grad_out = static_cast<const S*>(a.grad_out) + place.batch * a.grad_out_batch_stride +
                        place.query * a.grad_out_row_stride + static_cast<int64_t>(place.head) * a.channels;
    const Level last = a.level[a.levels - 1];
    const int64_t length = last.start + static_cast<int64_t>(last.height) * last.width;
    const int64_t grad_row_stride = static_cast<int64_t>(a.heads) * a.channels;
    Acc* grad_value = static_cast<Acc*>(a.grad_value) + place.batch * length * grad_row_stride +
                      static_cast<int64_t>(place.head) * a.channels;
    for (int l = 0; l < a.levels; ++l) {
      const Level level = a.level[l];
      for (int tile = 0; tile < a.points; tile += a.lanes) {
        const int my_point = min(tile + place.lane, a.points - 1);
        const auto prepared = points.prepare(level, l * a.points + my_point);
        Acc my_grad_x = 0, my_grad_y = 0, my_grad_attention = 0;
        const int count = min(a.lanes, a.points - tile);
        for (int i = 0; i < count; ++i) {
          const auto sample = prepared.of_lane(i, a.lanes);
          const Corners<Acc> corners(level, sample);
          Acc dot[4] = {};  // grad_out . value at the corners
          for (int channel = place.lane * width; channel < a.channels; channel += a.lanes * width) {
            if (!place.active) continue;
            const auto grad = *reinterpret_cast<const Pack<S, width>*>(grad_out + channel);
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) {
              Pack<S, width> pack{};  // outside lie zeros, which a gradient of NaN spoils
              if (corners.inside[corner]) {
                pack = *reinterpret_cast<const Pack<S, width>*>(
                    value + corners.row[corner] * a.value_row_stride + channel);
              }
              const Acc weight = sample.attention * corners.weight(corner);
              Acc share[width];
#pragma unroll
              for (int c = 0; c < width; ++c) {
                dot[corner] += static_cast<Acc>(grad.item[c]) * static_cast<Acc>(pack.item[c]);
                share[c] = weight * static_cast<Acc>(grad.item[c]);
              }
              if (!corners.inside[corner]) continue;
              add_to<width>(grad_value + corners.row[corner] * grad_row_stride + channel, share);
            }
          }
          const Acc fx = corners.fraction_x, fy = corners.fraction_y;
          const Acc left = (1 - fy) * dot[0] + fy * dot[2], right = (1 - fy) * dot[1] + fy * dot[3];
          const Acc top = (1 - fx) * dot[0] + fx * dot[1], bottom = (1 - fx) * dot[2] + fx * dot[3];
          // A position that touches no cell has no gradient, whatever it would be multiplied by.
          const bool touches =
              corners.inside[0] || corners.inside[1] || corners.inside[2] || corners.inside[3];
          const Acc grad_x = group_sum(touches ? sample.attention * (right - left) : Acc(0), a.lanes);
          const Acc grad_y = group_sum(touches ? sample.attention * (bottom - top) : Acc(0), a.lanes);
          const Acc grad_attention = group_sum((1 - fx) * left + fx * right, a.lanes);
          if (i == place.lane) {
            my_grad_x = grad_x;
            my_grad_y = grad_y;
            my_grad_attention = grad_attention;
          }
        }
        const bool mine = place.lane < count;
        if constexpr (cross) {  // through the softmax; all points are in this one tile
          const Acc mean = group_sum(mine ? prepared.attention * my_grad_attention : Acc(0), a.lanes);
          my_grad_attention = prepared.attention * (my_grad_attention - mean);
        } else {
          my_grad_x *= level.width;
          my_grad_y *= level.height;
        }
        if (mine && place.active) {
          const int64_t at = (place.pair * a.levels + l) * a.points + my_point;
          write_point<S>(a.grad_points, a.wide_points, 2 * at, my_grad_x);
          write_point<S>(a.grad_points, a.wide_points, 2 * at + 1, my_grad_y);
          write_point<S>(a.grad_mixing, a.wide_points, at, my_grad_attention);
        }
      }
    }
  });
}

}  // namespace
}  // namespace piip_ops
