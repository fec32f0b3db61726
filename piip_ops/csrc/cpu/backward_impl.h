// The backward kernel (part of kernels_impl.h).
#pragma once

namespace piip_ops {
namespace {

// One task works on a copy of its slice of value and on its share of grad_value side by side, in whole
// vectors: a position's row holds, for every head of the group, `width` channels of value and then of the
// gradient.
template <typename Acc>
struct BackwardScratch {
  static constexpr int64_t lanes = kLanes<Acc>;
  int64_t width;  // channels rounded up to whole vectors
  Plan<Acc> plan;
  Points<Acc> points;
  Acc* raw_out;      // (kHeadGroup * channels)
  Acc* grad_out;     // (kHeadGroup, width), zeros behind the channels
  Acc* dots;         // (4, padded): grad_out . value at a point's corners
  Acc* grad_xy;      // (2 * padded)
  Acc* grad_mixing;  // (padded)
  Acc* rows;         // (length, row_width)

  static int64_t row_width(const Problem& problem) {
    return 2 * kHeadGroup * round_up(problem.channels, lanes);
  }
  BackwardScratch(const Problem& problem, Arena& arena)
      : width(round_up(problem.channels, lanes)), plan(problem, row_width(problem), arena) {
    points = take_points<Acc>(arena, plan.padded, true);
    raw_out = arena.take<Acc>(kHeadGroup * problem.channels);
    grad_out = arena.take<Acc>(kHeadGroup * width);
    dots = arena.take<Acc>(4 * plan.padded);
    grad_xy = arena.take<Acc>(2 * plan.padded);
    grad_mixing = arena.take<Acc>(plan.padded);
    rows = arena.take<Acc>(problem.length * row_width(problem));
  }
};

template <typename Acc>
void load_rows(const Problem& problem, const BackwardScratch<Acc>& scratch, int64_t batch, int64_t first_head,
               int64_t heads) {
  with_type<Acc>(problem.value_type, [&](auto element) {
    const auto* base = static_cast<const decltype(element)*>(problem.value.data) +
                       batch * problem.value.batch_stride + first_head * problem.channels;
    const int64_t row_width = scratch.plan.column_step;
    for (int64_t s = 0; s < problem.length; ++s) {
      Acc* row = scratch.rows + s * row_width;
      for (int64_t h = 0; h < heads; ++h) {
        Acc* behind = row + h * 2 * scratch.width + problem.channels;  // padding, then the gradient
        __builtin_memset(behind, 0, static_cast<size_t>(2 * scratch.width - problem.channels) * sizeof(Acc));
        read_row(base + s * problem.value.row_stride + h * problem.channels, problem.channels,
                 row + h * 2 * scratch.width);
      }
    }
  });
}

template <typename Acc>
void store_rows(const Problem& problem, const BackwardScratch<Acc>& scratch, int64_t batch,
                int64_t first_head, int64_t heads) {
  const int64_t row_width = scratch.plan.column_step;
  for (int64_t s = 0; s < problem.length; ++s) {
    for (int64_t h = 0; h < heads; ++h) {
      write(problem.grad_value, problem.value_type, batch, s, (first_head + h) * problem.channels,
            problem.channels, scratch.rows + s * row_width + (2 * h + 1) * scratch.width);
    }
  }
}

// Dot products with grad_out and additions to grad_value for `vectors` vectors of channels, all points of a
// query.
template <typename Acc, int vectors, int known_per_head>
void scatter(const BackwardScratch<Acc>& scratch, int64_t count, int64_t channel) {
  constexpr int lanes = kLanes<Acc>;
  using V = Vector<Acc, lanes>;
  const int64_t padded = known_per_head ? kHeadGroup * known_per_head : scratch.plan.padded;
  const int64_t width = scratch.width;
  Acc* rows = scratch.rows + channel;
  const Acc* grad_out = scratch.grad_out + channel;
  for (int corner = 0; corner < 4; ++corner) {
    const int32_t* offset = scratch.points.offset + corner * padded;
    const Acc* weight = scratch.points.weight + corner * padded;
    Acc* dots = scratch.dots + corner * padded;
    for (int64_t block = 0; block < padded; block += lanes) {
      V products[lanes];
      const auto visit = [&](int lane) __attribute__((always_inline)) {
        const int64_t n = block + lane;
        V product{};
        if (known_per_head || n < count) {
          const int64_t head = known_per_head ? n / known_per_head : scratch.plan.head[n];
          const Acc* g = grad_out + head * width;
          Acc* value = rows + offset[n] + head * 2 * width;
          Acc* grad = value + width;
          const V w = V{} + weight[n];
          for (int v = 0; v < vectors; ++v) {
            const V gv = load<V>(g + v * lanes);
            product += gv * load<V>(value + v * lanes);
            store(grad + v * lanes, load<V>(grad + v * lanes) + w * gv);
          }
        }
        products[lane] = product;
      };
      if constexpr (known_per_head != 0 && lanes >= known_per_head) {
        // Heads by turns: the points of one head often share corners, and adding to the same place twice in a
        // row would wait for the first sum to arrive in memory.
        constexpr int heads_in_block = lanes / known_per_head;
#pragma GCC unroll 16
        for (int i = 0; i < lanes; ++i) visit(i % heads_in_block * known_per_head + i / heads_in_block);
      } else {
        for (int i = 0; i < lanes; ++i) visit(i);
      }
      const V sums = sum_each<Acc, lanes>(products);
      store(dots + block, channel == 0 ? sums : load<V>(dots + block) + sums);
    }
  }
}

template <typename Acc, int known_per_head>
void scatter_channels(const BackwardScratch<Acc>& scratch, int64_t count) {
  constexpr int64_t lanes = kLanes<Acc>;
  for (int64_t c = 0; c < scratch.width; c += 4 * lanes) {
    switch (smaller(scratch.width - c, 4 * lanes) / lanes) {
      case 1:
        scatter<Acc, 1, known_per_head>(scratch, count, c);
        break;
      case 2:
        scatter<Acc, 2, known_per_head>(scratch, count, c);
        break;
      case 3:
        scatter<Acc, 3, known_per_head>(scratch, count, c);
        break;
      default:
        scatter<Acc, 4, known_per_head>(scratch, count, c);
    }
  }
}

// From the dot products to the gradients of the points and of their weights or logits.
template <typename Acc>
void finish_points(const Problem& problem, const BackwardScratch<Acc>& scratch, int64_t heads) {
  constexpr int lanes = kLanes<Acc>;
  using V = Vector<Acc, lanes>;
  const Points<Acc>& points = scratch.points;
  const int64_t padded = scratch.plan.padded;
  for (int64_t i = 0; i < padded; i += lanes) {
    const auto at = [&](const Acc* p, int64_t k) { return load<V>(p + k * padded + i); };
    const V d00 = at(scratch.dots, 0), d01 = at(scratch.dots, 1), d10 = at(scratch.dots, 2),
            d11 = at(scratch.dots, 3);
    const V wx0 = at(points.wx, 0), wx1 = at(points.wx, 1), wy0 = at(points.wy, 0), wy1 = at(points.wy, 1);
    const V left = wy0 * d00 + wy1 * d10, right = wy0 * d01 + wy1 * d11;
    const V top = wx0 * d00 + wx1 * d01, bottom = wx0 * d10 + wx1 * d11;
    const V attention = at(points.attention, 0);
    V gx = attention * (at(points.inside_x, 1) * right - at(points.inside_x, 0) * left);
    V gy = attention * (at(points.inside_y, 1) * bottom - at(points.inside_y, 0) * top);
    if (!problem.cross) {
      gx *= at(scratch.plan.width, 0);
      gy *= at(scratch.plan.height, 0);
    }
    store(scratch.grad_mixing + i, wx0 * left + wx1 * right);
    for (int l = 0; l < lanes; ++l) {
      scratch.grad_xy[2 * (i + l)] = gx[l];
      scratch.grad_xy[2 * (i + l) + 1] = gy[l];
    }
  }
  if (!problem.cross) return;
  for (int64_t h = 0; h < heads; ++h) {  // through the softmax
    Acc* g = scratch.grad_mixing + h * problem.points;
    const Acc* attention = points.attention + h * problem.points;
    Acc mean = 0;
    for (int64_t p = 0; p < problem.points; ++p) mean += attention[p] * g[p];
    for (int64_t p = 0; p < problem.points; ++p) g[p] = attention[p] * (g[p] - mean);
  }
}

template <typename Acc>
void backward_as(const Problem& problem, int64_t begin, int64_t end, void* memory) {
  Arena arena(memory);
  BackwardScratch<Acc> scratch(problem, arena);
  scratch.plan.fill(problem);
  for (int64_t i = 0; i < kHeadGroup * scratch.width; ++i) scratch.grad_out[i] = 0;
  const int64_t channels = problem.channels, groups = problem.head_groups();
  const bool four = scratch.plan.per_head == 4 && scratch.plan.padded == kHeadGroup * 4;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t group = task % groups, batch = task / groups;
    const int64_t first_head = group * kHeadGroup, heads = smaller(kHeadGroup, problem.heads - first_head);
    const int64_t count = heads * scratch.plan.per_head, first = first_head * scratch.plan.per_head;
    load_rows(problem, scratch, batch, first_head, heads);
    for (int64_t q = 0; q < problem.queries; ++q) {
      prepare<Acc, true>(problem, scratch.plan, batch, q, group, scratch.points);
      read(problem.grad_out, problem.value_type, batch, q, first_head * channels, heads * channels,
           scratch.raw_out);
      for (int64_t h = 0; h < heads; ++h) {
        __builtin_memcpy(scratch.grad_out + h * scratch.width, scratch.raw_out + h * channels,
                         static_cast<size_t>(channels) * sizeof(Acc));
      }
      if (sizeof(Acc) == 4 && four && heads == kHeadGroup) {
        scatter_channels<Acc, sizeof(Acc) == 4 ? 4 : 0>(scratch, count);
      } else {
        scatter_channels<Acc, 0>(scratch, count);
      }
      finish_points(problem, scratch, heads);
      write(problem.grad_points, problem.point_type, batch, q, 2 * first, 2 * count, scratch.grad_xy);
      write(problem.grad_mixing, problem.point_type, batch, q, first, count, scratch.grad_mixing);
    }
    store_rows(problem, scratch, batch, first_head, heads);
  }
}

void backward(const Problem& problem, int64_t begin, int64_t end, void* scratch) {
  if (problem.value_type == ScalarType::kFloat64) {
    backward_as<double>(problem, begin, end, scratch);
  } else {
    backward_as<float>(problem, begin, end, scratch);
  }
}

template <typename Acc>
size_t scratch_bytes_as(const Problem& problem, bool backward) {
  Arena arena(nullptr);
  if (backward) {
    BackwardScratch<Acc> scratch(problem, arena);
  } else {
    ForwardScratch<Acc> scratch(problem, arena);
  }
  return static_cast<size_t>(arena.used());
}

size_t scratch_bytes(const Problem& problem, bool backward) {
  return problem.value_type == ScalarType::kFloat64 ? scratch_bytes_as<double>(problem, backward)
                                                    : scratch_bytes_as<float>(problem, backward);
}

}  // namespace
}  // namespace piip_ops
