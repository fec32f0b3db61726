// The operators on CUDA tensors. A (query, head) pair is worked on by a group of 4 to 32 lanes of a warp,
// each of which holds 4 to 16 bytes of channels: with PIIP's 6 to 40 channels a head, 2 to 8 pairs share a
// warp. The lanes of a group first prepare one point each - position and attention weight - and then visit
// all points together, passing the preparation around by shuffles; nothing of it is written to memory.
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "../checks.h"

namespace piip_ops {
namespace {

using at::Tensor;
using Gradients = std::tuple<Tensor, Tensor, Tensor>;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kMaxLevels = 16;
constexpr int kMaxCrossPoints = kWarp;
constexpr int64_t kMaxBlocks = 1 << 20;  // the kernels go round in strides of the grid

struct Level {
  int32_t height, width;
  int64_t start;
};

// Tensors without their types; strides in elements, rows contiguous.
struct Arguments {
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

  __device__ __forceinline__ Place(const Arguments& a, int64_t first_pair) {
    lane = static_cast<int>(threadIdx.x) % a.lanes;
    pair = first_pair + static_cast<int>(threadIdx.x) / a.lanes;
    active = pair < a.pairs;
    if (!active) pair = 0;
    head = static_cast<int>(pair % a.heads);
    query = pair / a.heads % a.queries;
    batch = pair / a.heads / a.queries;
  }
};

// The point that this lane prepares.
template <typename S, bool cross>
struct Points {
  using Acc = Accumulator<S>;
  const Arguments& a;
  const Place& place;
  int64_t first_point, first_mixing;
  Acc centre_x = -0.5, centre_y = -0.5, largest = 0, sum = 1;

  __device__ __forceinline__ Points(const Arguments& arguments, const Place& where)
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

  __device__ __forceinline__ void prepare(const Level& level, int i, Acc& x, Acc& y, Acc& attention) const {
    x = read_point<S>(a.points_xy, a.wide_points, first_point + 2 * i);
    y = read_point<S>(a.points_xy, a.wide_points, first_point + 2 * i + 1);
    attention = read_point<S>(a.mixing, a.wide_points, first_mixing + i);
    if constexpr (cross) {
      attention = ::exp(attention - largest) / sum;
    } else {
      x *= level.width;
      y *= level.height;
    }
    x += centre_x;
    y += centre_y;
    // Far enough outside to weigh nothing, near enough for an integer; the comparisons send NaN there as
    // well.
    x = x > Acc(-2) ? x : Acc(-2);
    x = x < level.width + Acc(1) ? x : level.width + Acc(1);
    y = y > Acc(-2) ? y : Acc(-2);
    y = y < level.height + Acc(1) ? y : level.height + Acc(1);
  }
};

// The four corners around a position: 00, 01, 10, 11 as (y, x).
template <typename Acc>
struct Corners {
  Acc fraction_x, fraction_y;
  bool inside[4];
  int64_t row[4];

  __device__ __forceinline__ Corners(const Level& level, Acc x, Acc y) {
    const Acc floor_x = ::floor(x), floor_y = ::floor(y);
    fraction_x = x - floor_x;
    fraction_y = y - floor_y;
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

template <typename S, int width, bool cross>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ Arguments a) {
  using Acc = Accumulator<S>;
  const int64_t pairs_in_block = kThreads / a.lanes;
  for (int64_t first = blockIdx.x * pairs_in_block; first < a.pairs; first += gridDim.x * pairs_in_block) {
    const Place place(a, first);
    const Points<S, cross> points(a, place);
    const S* value = static_cast<const S*>(a.value) + place.batch * a.value_batch_stride +
                     static_cast<int64_t>(place.head) * a.channels;
    S* out = static_cast<S*>(a.out) + place.pair * a.channels;
    for (int chunk = 0; chunk < a.channels; chunk += a.lanes * width) {
      const int channel = chunk + place.lane * width;
      const bool mine = channel < a.channels;
      Acc sum[width] = {};
      for (int l = 0; l < a.levels; ++l) {
        const Level level = a.level[l];
        for (int tile = 0; tile < a.points; tile += a.lanes) {
          Acc my_x, my_y, my_attention;
          const int my_point = min(tile + place.lane, a.points - 1);
          points.prepare(level, l * a.points + my_point, my_x, my_y, my_attention);
          const int count = min(a.lanes, a.points - tile);
          for (int i = 0; i < count; ++i) {
            const Acc x = __shfl_sync(kAllLanes, my_x, i, a.lanes),
                      y = __shfl_sync(kAllLanes, my_y, i, a.lanes);
            const Acc attention = __shfl_sync(kAllLanes, my_attention, i, a.lanes);
            const Corners<Acc> corners(level, x, y);
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) {
              if (!mine || !corners.inside[corner]) continue;
              const auto pack = *reinterpret_cast<const Pack<S, width>*>(
                  value + corners.row[corner] * a.value_row_stride + channel);
              const Acc weight = attention * corners.weight(corner);
#pragma unroll
              for (int c = 0; c < width; ++c) sum[c] += weight * static_cast<Acc>(pack.item[c]);
            }
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
  }
}

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
__global__ void __launch_bounds__(kThreads) backward_kernel(const __grid_constant__ Arguments a) {
  using Acc = Accumulator<S>;
  const int64_t pairs_in_block = kThreads / a.lanes;
  for (int64_t first = blockIdx.x * pairs_in_block; first < a.pairs; first += gridDim.x * pairs_in_block) {
    const Place place(a, first);
    const Points<S, cross> points(a, place);
    const S* value = static_cast<const S*>(a.value) + place.batch * a.value_batch_stride +
                     static_cast<int64_t>(place.head) * a.channels;
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
        Acc my_x, my_y, my_attention, my_grad_x = 0, my_grad_y = 0, my_grad_attention = 0;
        const int my_point = min(tile + place.lane, a.points - 1);
        points.prepare(level, l * a.points + my_point, my_x, my_y, my_attention);
        const int count = min(a.lanes, a.points - tile);
        for (int i = 0; i < count; ++i) {
          const Acc x = __shfl_sync(kAllLanes, my_x, i, a.lanes),
                    y = __shfl_sync(kAllLanes, my_y, i, a.lanes);
          const Acc attention = __shfl_sync(kAllLanes, my_attention, i, a.lanes);
          const Corners<Acc> corners(level, x, y);
          Acc dot[4] = {};  // grad_out . value at the corners
          for (int channel = place.lane * width; channel < a.channels; channel += a.lanes * width) {
            if (!place.active) continue;
            const auto grad = *reinterpret_cast<const Pack<S, width>*>(grad_out + channel);
#pragma unroll
            for (int corner = 0; corner < 4; ++corner) {
              if (!corners.inside[corner]) continue;
              const auto pack = *reinterpret_cast<const Pack<S, width>*>(
                  value + corners.row[corner] * a.value_row_stride + channel);
              const Acc weight = attention * corners.weight(corner);
              Acc share[width];
#pragma unroll
              for (int c = 0; c < width; ++c) {
                dot[corner] += static_cast<Acc>(grad.item[c]) * static_cast<Acc>(pack.item[c]);
                share[c] = weight * static_cast<Acc>(grad.item[c]);
              }
              add_to<width>(grad_value + corners.row[corner] * grad_row_stride + channel, share);
            }
          }
          const Acc fx = corners.fraction_x, fy = corners.fraction_y;
          const Acc left = (1 - fy) * dot[0] + fy * dot[2], right = (1 - fy) * dot[1] + fy * dot[3];
          const Acc top = (1 - fx) * dot[0] + fx * dot[1], bottom = (1 - fx) * dot[2] + fx * dot[3];
          const Acc grad_x = group_sum(attention * (right - left), a.lanes);
          const Acc grad_y = group_sum(attention * (bottom - top), a.lanes);
          const Acc grad_attention = group_sum((1 - fx) * left + fx * right, a.lanes);
          if (i == place.lane) {
            my_grad_x = grad_x;
            my_grad_y = grad_y;
            my_grad_attention = grad_attention;
          }
        }
        const bool mine = place.lane < count;
        if constexpr (cross) {  // through the softmax; all points are in this one tile
          const Acc mean = group_sum(mine ? my_attention * my_grad_attention : Acc(0), a.lanes);
          my_grad_attention = my_attention * (my_grad_attention - mean);
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
  }
}

// --- host side ---

Tensor with_contiguous_rows(const Tensor& tensor) {
  int64_t expected = 1;
  for (int64_t dim = tensor.dim() - 1; dim >= 2; --dim) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != expected) return tensor.contiguous();
    expected *= tensor.size(dim);
  }
  return tensor;
}

bool aligned(const void* p, std::initializer_list<int64_t> strides, int64_t elements, int64_t item_size) {
  return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(elements * item_size) == 0 &&
         std::all_of(strides.begin(), strides.end(), [&](int64_t stride) { return stride % elements == 0; });
}

struct Call {
  Tensor value, points, mixing;
  Arguments a{};
  Sizes n;
  bool cross;

  Call(const Sizes& sizes, const Tensor& value_, const Tensor& points_, const Tensor& mixing_,
       at::IntArrayRef shapes, bool cross_)
      : value(with_contiguous_rows(value_)),
        points(with_contiguous_rows(points_)),
        mixing(with_contiguous_rows(mixing_)),
        n(sizes),
        cross(cross_) {
    TORCH_CHECK_VALUE(n.levels <= kMaxLevels, "spatial_shapes: the CUDA kernel takes up to ", kMaxLevels,
                      " levels, got ", n.levels);
    TORCH_CHECK_VALUE(!cross || n.points <= kMaxCrossPoints, "offsets: the CUDA kernel takes up to ",
                      kMaxCrossPoints, " points, got ", n.points);
    a.pairs = n.batch * n.queries * n.heads;
    a.queries = n.queries;
    a.heads = static_cast<int>(n.heads);
    a.channels = static_cast<int>(n.channels);
    a.levels = static_cast<int>(n.levels);
    a.points = static_cast<int>(n.points);
    a.wide_points = is_half(value.scalar_type()) && points.scalar_type() == at::kFloat;
    int64_t start = 0;
    for (int64_t l = 0; l < n.levels; ++l) {
      a.level[l] = {static_cast<int32_t>(shapes[2 * l]), static_cast<int32_t>(shapes[2 * l + 1]), start};
      start += shapes[2 * l] * shapes[2 * l + 1];
    }
    a.value = value.const_data_ptr();
    a.value_batch_stride = value.stride(0);
    a.value_row_stride = value.stride(1);
    a.points_xy = points.const_data_ptr();
    a.points_batch_stride = points.stride(0);
    a.points_row_stride = points.stride(1);
    a.mixing = mixing.const_data_ptr();
    a.mixing_batch_stride = mixing.stride(0);
    a.mixing_row_stride = mixing.stride(1);
  }

  bool empty() const { return a.pairs == 0 || a.channels == 0 || a.points == 0; }

  // Channels a lane loads at once, and with them the lanes of a group.
  int choose_width(std::initializer_list<std::pair<const void*, std::initializer_list<int64_t>>> tensors) {
    const int64_t item_size = value.element_size();
    int width = static_cast<int>(16 / item_size);
    const auto fits = [&](const auto& tensor) {
      return aligned(tensor.first, tensor.second, width, item_size);
    };
    while (width > 1 && (n.channels % width != 0 || !std::all_of(tensors.begin(), tensors.end(), fits)))
      width /= 2;
    const int64_t wanted = std::max<int64_t>((n.channels + width - 1) / width, cross ? n.points : 1);
    a.lanes = 4;
    while (a.lanes < kWarp && a.lanes < wanted) a.lanes *= 2;
    return width;
  }

  template <typename S, int width, bool is_cross>
  void launch_as(bool backward) const {
    const int64_t pairs_in_block = kThreads / a.lanes;
    const auto blocks =
        static_cast<unsigned>(std::min((a.pairs + pairs_in_block - 1) / pairs_in_block, kMaxBlocks));
    const auto stream = c10::cuda::getCurrentCUDAStream();
    if (backward) {
      backward_kernel<S, width, is_cross><<<blocks, kThreads, 0, stream>>>(a);
    } else {
      forward_kernel<S, width, is_cross><<<blocks, kThreads, 0, stream>>>(a);
    }
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  template <typename S, int width>
  void launch_width(int wanted, bool backward) const {
    if constexpr (width > 1) {
      if (wanted < width) return launch_width<S, width / 2>(wanted, backward);
    }
    cross ? launch_as<S, width, true>(backward) : launch_as<S, width, false>(backward);
  }
  void launch(int width, bool backward) const {
    switch (value.scalar_type()) {
      case at::kDouble:
        return launch_width<double, 2>(width, backward);
      case at::kFloat:
        return launch_width<float, 4>(width, backward);
      case at::kBFloat16:
        return launch_width<at::BFloat16, 8>(width, backward);
      default:
        return launch_width<at::Half, 8>(width, backward);
    }
  }

  Tensor forward() {
    const c10::cuda::CUDAGuard guard(value.device());
    const auto sizes = {n.batch, n.queries, n.heads * n.channels};
    if (empty()) return at::zeros(sizes, value.options());
    const Tensor out = at::empty(sizes, value.options());
    a.out = out.mutable_data_ptr();
    const int width = choose_width({{a.value, {a.value_batch_stride, a.value_row_stride}}, {a.out, {}}});
    launch(width, false);
    return out;
  }

  Gradients backward(const Tensor& grad, const char* name) {
    const c10::cuda::CUDAGuard guard(value.device());
    at::globalContext().alertNotDeterministic(name);
    const auto sum_type = value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const Tensor grad_value = at::zeros(value.sizes(), value.options().dtype(sum_type));
    const auto make = [&](const Tensor& like) {
      return empty() ? at::zeros(like.sizes(), like.options()) : at::empty(like.sizes(), like.options());
    };
    const Tensor grad_points = make(points), grad_mixing = make(mixing);
    if (!empty()) {
      const Tensor grad_rows = with_contiguous_rows(grad);
      a.grad_out = grad_rows.const_data_ptr();
      a.grad_out_batch_stride = grad_rows.stride(0);
      a.grad_out_row_stride = grad_rows.stride(1);
      a.grad_value = grad_value.mutable_data_ptr();
      a.grad_points = grad_points.mutable_data_ptr();
      a.grad_mixing = grad_mixing.mutable_data_ptr();
      const int width = choose_width({{a.value, {a.value_batch_stride, a.value_row_stride}},
                                      {a.grad_out, {a.grad_out_batch_stride, a.grad_out_row_stride}}});
      launch(width, true);
    }
    return {grad_value.to(value.scalar_type()), grad_points, grad_mixing};
  }
};

Call ms_call(const Tensor& value, at::IntArrayRef spatial_shapes, const Tensor& locations,
             const Tensor& weights) {
  const Sizes n = check_ms_deform_attn(value, spatial_shapes, locations, weights);
  return Call(n, value, locations, weights, spatial_shapes, false);
}

Call cross_call(const Tensor& value, const Tensor& offsets, const Tensor& logits, at::IntArrayRef query_shape,
                at::IntArrayRef value_shape) {
  const Sizes n = check_deform_cross_attn(value, offsets, logits, query_shape, value_shape);
  Call call(n, value, offsets, logits, value_shape, true);
  call.a.query_height = static_cast<int>(query_shape[0]);
  call.a.query_width = static_cast<int>(query_shape[1]);
  return call;
}

Tensor ms_deform_attn(const Tensor& value, at::IntArrayRef spatial_shapes, const Tensor& sampling_locations,
                      const Tensor& attention_weights) {
  return ms_call(value, spatial_shapes, sampling_locations, attention_weights).forward();
}

Gradients ms_deform_attn_backward(const Tensor& grad, const Tensor& value, at::IntArrayRef spatial_shapes,
                                  const Tensor& sampling_locations, const Tensor& attention_weights) {
  check_grad(grad, value, check_ms_deform_attn(value, spatial_shapes, sampling_locations, attention_weights));
  return ms_call(value, spatial_shapes, sampling_locations, attention_weights)
      .backward(grad, "ms_deform_attn_backward_cuda");
}

Tensor deform_cross_attn(const Tensor& value, const Tensor& offsets, const Tensor& logits,
                         at::IntArrayRef query_shape, at::IntArrayRef value_shape) {
  return cross_call(value, offsets, logits, query_shape, value_shape).forward();
}

Gradients deform_cross_attn_backward(const Tensor& grad, const Tensor& value, const Tensor& offsets,
                                     const Tensor& logits, at::IntArrayRef query_shape,
                                     at::IntArrayRef value_shape) {
  check_grad(grad, value, check_deform_cross_attn(value, offsets, logits, query_shape, value_shape));
  return cross_call(value, offsets, logits, query_shape, value_shape)
      .backward(grad, "deform_cross_attn_backward_cuda");
}

}  // namespace

TORCH_LIBRARY_IMPL(piip_ops, CUDA, m) {
  m.impl("ms_deform_attn", ms_deform_attn);
  m.impl("ms_deform_attn_backward", ms_deform_attn_backward);
  m.impl("deform_cross_attn", deform_cross_attn);
  m.impl("deform_cross_attn_backward", deform_cross_attn_backward);
}

}  // namespace piip_ops
