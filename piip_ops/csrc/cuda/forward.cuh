// The forward kernel.
#pragma once

#include "points.cuh"

namespace piip_ops {
namespace {

template <typename S, int width, bool cross>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ KernelArguments a) {
  using Acc = Accumulator<S>;
  for_each_pair<S, cross>(a, [&](const Place& place, const Points<S, cross>& points) {
    const S* value = value_of<S>(a, place);
    S* out = static_cast<S*>(a.out) + place.pair * a.channels;
    for (int chunk = 0; chunk < a.channels; chunk += a.lanes * width) {
      const int channel = chunk + place.lane * width;
      const bool mine = channel < a.channels;
      Acc sum[width] = {};
      for (int l = 0; l < a.levels; ++l) {
        const Level level = a.level[l];
        for (int tile = 0; tile < a.points; tile += a.lanes) {
          const auto prepared = points.prepare(level, l * a.points + min(tile + place.lane, a.points - 1));
          const int count = min(a.lanes, a.points - tile);
          for (int i = 0; i < count; ++i) {
            const auto sample = prepared.of_lane(i, a.lanes);
            const Corners<Acc> corners(level, sample);
            Acc sampled[width] = {};
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) {
              if (!mine || !corners.inside[corner]) continue;
              const auto pack = *reinterpret_cast<const Pack<S, width>*>(
                  value + corners.row[corner] * a.value_row_stride + channel);
              const Acc weight = corners.weight(corner);
#pragma unroll
              for (int c = 0; c < width; ++c) sampled[c] += weight * static_cast<Acc>(pack.item[c]);
            }
            // A weight that is not finite spoils samples of zeros too, as in the definition.
#pragma unroll
            for (int c = 0; c < width; ++c) sum[c] += sample.attention * sampled[c];
          }
        }
      }
      if (mine && place.active) {
        Pack<S, width> pack;
#pragma unroll
        for (int c = 0; c < width; ++c) pack.item[c] = static_cast<S>(sum[c]);
        *reinterpret_cast<Pack<S, width>*>(out + channel) = pack;
      }
    }
  });
}

}  // namespace
}  // namespace piip_ops
