// The kernels, compiled once for every instruction set (see kernels.h). A block of queries is prepared first
// - where its points lie and what each of their four corners weighs - and then gathered; the backward pass
// prepares again.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace piip_ops {
namespace {

constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

class Arena {
 public:
  explicit Arena(void* memory) : next_(static_cast<char*>(memory)) {}
  template <typename T>
  T* take(int64_t n) {
    T* p = reinterpret_cast<T*>(next_);
    used_ += round_up(n * static_cast<int64_t>(sizeof(T)), 64);
    next_ += round_up(n * static_cast<int64_t>(sizeof(T)), 64);
    return p;
  }
  int64_t used() const { return used_; }

 private:
  char* next_;
  int64_t used_ = 0;
};

// Runs body(S{}) for the element type; an Acc of double goes with float64 only.
template <typename Acc, typename Body>
PIIP_OPS_INLINE void with_type(ScalarType type, const Body& body) {
  if constexpr (sizeof(Acc) == 8) {
    body(double{});
  } else if (type == ScalarType::kFloat32) {
    body(float{});
  } else if (type == ScalarType::kBFloat16) {
    body(BFloat16{});
  } else {
    body(Float16{});
  }
}

// Rows of a head group: `n` elements from `first` on in row `row`.
template <typename Acc>
inline void read(const Rows& rows, ScalarType type, int64_t batch, int64_t row, int64_t first, int64_t n,
                 Acc* to) {
  with_type<Acc>(type, [&](auto s) {
    const auto* base = static_cast<const decltype(s)*>(rows.data);
    read_row(base + batch * rows.batch_stride + row * rows.row_stride + first, n, to);
  });
}
template <typename Acc>
inline void write(const Rows& rows, ScalarType type, int64_t batch, int64_t row, int64_t first, int64_t n,
                  const Acc* from) {
  with_type<Acc>(type, [&](auto s) {
    auto* base = static_cast<decltype(s)*>(rows.data);
    write_row(from, n, base + batch * rows.batch_stride + row * rows.row_stride + first);
  });
}

// The points of a head group's query, `count` of them (heads * levels * points) in flattened order, in arrays
// padded to whole vectors. A corner's arrays lie `padded` apart: 00, 01, 10, 11 as (y, x).
template <typename Acc>
struct Points {
  int32_t* offset;  // (4, padded): where the corner's row starts, in elements
  Acc* weight;      // (4, padded): attention * bilinear weight, 0 outside the map
  Acc* attention;   // (padded)
  // Backward only, (2, padded) each for the lower and the upper corner: bilinear weight and 1 if inside, else
  // 0.
  Acc *wx, *wy, *inside_x, *inside_y;
};

// What depends on the shapes alone.
template <typename Acc>
struct Plan {
  int64_t per_head;  // levels * points
  int64_t padded;
  // (padded) each
  Acc *width, *height;
  int32_t *last_x, *last_y;   // width - 1, height - 1
  int32_t *row_step, *start;  // of a map row and of the level, in elements
  int32_t* head;              // of the point, within the group
  int32_t column_step;        // of one position, in elements
  Acc* raw_xy;                // (2 * padded)

  Plan(const Problem& problem, int64_t step, Arena& arena) {
    const int64_t lanes = kLanes<Acc>;
    per_head = problem.levels * problem.points;
    padded = round_up(kHeadGroup * per_head, 16 > lanes ? 16 : lanes);
    width = arena.take<Acc>(padded);
    height = arena.take<Acc>(padded);
    last_x = arena.take<int32_t>(padded);
    last_y = arena.take<int32_t>(padded);
    row_step = arena.take<int32_t>(padded);
    start = arena.take<int32_t>(padded);
    head = arena.take<int32_t>(padded);
    raw_xy = arena.take<Acc>(2 * padded);
    column_step = static_cast<int32_t>(step);
  }

  void fill(const Problem& problem) {
    int64_t n = 0;
    for (int64_t h = 0; h < kHeadGroup; ++h) {
      int64_t level_start = 0;
      for (int64_t level = 0; level < problem.levels; ++level) {
        const int32_t rows = problem.level_shape[2 * level], columns = problem.level_shape[2 * level + 1];
        for (int64_t point = 0; point < problem.points; ++point, ++n) {
          width[n] = static_cast<Acc>(columns);
          height[n] = static_cast<Acc>(rows);
          last_x[n] = columns - 1;
          last_y[n] = rows - 1;
          row_step[n] = columns * column_step;
          start[n] = static_cast<int32_t>(level_start) * column_step;
          head[n] = static_cast<int32_t>(h);
        }
        level_start += static_cast<int64_t>(rows) * columns;
      }
    }
    for (; n < padded; ++n) {
      width[n] = height[n] = 1;
      last_x[n] = last_y[n] = row_step[n] = start[n] = head[n] = 0;
    }
    for (int64_t i = 0; i < 2 * padded; ++i) raw_xy[i] = 0;
  }
};

template <typename Acc>
Points<Acc> take_points(Arena& arena, int64_t padded, bool backward) {
  Points<Acc> points{};
  points.offset = arena.take<int32_t>(4 * padded);
  points.weight = arena.take<Acc>(4 * padded);
  points.attention = arena.take<Acc>(padded);
  if (backward) {
    points.wx = arena.take<Acc>(2 * padded);
    points.wy = arena.take<Acc>(2 * padded);
    points.inside_x = arena.take<Acc>(2 * padded);
    points.inside_y = arena.take<Acc>(2 * padded);
  }
  return points;
}

// Softmax over each head's points, in place.
template <typename Acc>
PIIP_OPS_INLINE void softmax(Acc* x, int64_t heads, int64_t points, int64_t padded) {
  constexpr int lanes = kLanes<Acc>;
  using V = Vector<Acc, lanes>;
  if (points == 4 && lanes >= 4) {
    for (int64_t i = 0; i < padded; i += lanes) {
      if constexpr (lanes >= 4) {
        const V v = load<V>(x + i);
        V other = shuffle<Acc, lanes, Exchange<1>>(v, v);
        V largest = v > other ? v : other;
        other = shuffle<Acc, lanes, Exchange<2>>(largest, largest);
        largest = largest > other ? largest : other;
        const V e = exp_of_negative<lanes>(v - largest);
        V sum = e + shuffle<Acc, lanes, Exchange<1>>(e, e);
        sum += shuffle<Acc, lanes, Exchange<2>>(sum, sum);
        store(x + i, e / sum);
      }
    }
    return;
  }
  for (int64_t h = 0; h < heads; ++h) {
    Acc* p = x + h * points;
    Acc largest = p[0];
    for (int64_t i = 1; i < points; ++i) largest = p[i] > largest ? p[i] : largest;
    for (int64_t i = 0; i < points; ++i) p[i] -= largest;
  }
  for (int64_t i = 0; i < padded; i += lanes) store(x + i, exp_of_negative<lanes>(load<V>(x + i)));
  for (int64_t h = 0; h < heads; ++h) {
    Acc* p = x + h * points;
    Acc sum = 0;
    for (int64_t i = 0; i < points; ++i) sum += p[i];
    for (int64_t i = 0; i < points; ++i) p[i] /= sum;
  }
}

// One axis of a vector of positions, in pixels: the two neighbours, clamped into the map, and their weights,
// 0 outside.
template <typename Acc>
struct Axis {
  static constexpr int lanes = kLanes<Acc>;
  using V = Vector<Acc, lanes>;
  using I = Vector<int32_t, lanes>;
  using Mask = decltype(V{} < V{});
  I lower, upper;
  V lower_weight, upper_weight, lower_inside, upper_inside;

  PIIP_OPS_INLINE Axis(V position, V size, I last) {
    // Far enough outside to weigh nothing, near enough for an integer; the comparisons send NaN there as
    // well.
    position = position > Acc(-2) ? position : V{} - 2;
    position = position < size + 1 ? position : size + 1;
    I cell = __builtin_convertvector(position, I);
    V floor = __builtin_convertvector(cell, V);
    const Mask above = floor > position;
    cell += __builtin_convertvector(above, I);
    floor = __builtin_convertvector(cell, V);
    const V fraction = position - floor;
    const Mask in_lower = __builtin_convertvector((cell >= 0) & (cell <= last), Mask);
    const Mask in_upper = __builtin_convertvector((cell >= -1) & (cell < last), Mask);
    const V one = V{} + 1;
    lower_inside = in_lower ? one : V{};
    upper_inside = in_upper ? one : V{};
    lower_weight = in_lower ? one - fraction : V{};
    upper_weight = in_upper ? fraction : V{};
    lower = cell < 0 ? I{} : cell;
    lower = lower > last ? last : lower;
    upper = cell < -1 ? I{} : cell + 1;
    upper = upper > last ? last : upper;
  }
};

template <typename Acc, bool backward>
PIIP_OPS_INLINE void prepare(const Problem& problem, const Plan<Acc>& plan, int64_t batch, int64_t query,
                             int64_t group, const Points<Acc>& out) {
  constexpr int lanes = kLanes<Acc>;
  using V = Vector<Acc, lanes>;
  using I = Vector<int32_t, lanes>;
  const int64_t heads = smaller(kHeadGroup, problem.heads - group * kHeadGroup);
  const int64_t count = heads * plan.per_head, first = group * kHeadGroup * plan.per_head;
  read(problem.points_xy, problem.point_type, batch, query, 2 * first, 2 * count, plan.raw_xy);
  read(problem.mixing, problem.point_type, batch, query, first, count, out.attention);
  for (int64_t i = count; i < plan.padded; ++i) out.attention[i] = 0;
  Acc base_x = Acc(-0.5), base_y = Acc(-0.5);
  if (problem.cross) {
    softmax(out.attention, heads, problem.points, plan.padded);
    const int64_t row = query / problem.query_width, column = query % problem.query_width;
    base_x += (Acc(column) + Acc(0.5)) * plan.width[0] / Acc(problem.query_width);
    base_y += (Acc(row) + Acc(0.5)) * plan.height[0] / Acc(problem.query_height);
  }
  for (int64_t i = 0; i < plan.padded; i += lanes) {
    const V pair0 = load<V>(plan.raw_xy + 2 * i), pair1 = load<V>(plan.raw_xy + 2 * i + lanes);
    V x = shuffle<Acc, lanes, EveryOther<0>>(pair0, pair1),
      y = shuffle<Acc, lanes, EveryOther<1>>(pair0, pair1);
    const V width = load<V>(plan.width + i), height = load<V>(plan.height + i);
    if (!problem.cross) {
      x *= width;
      y *= height;
    }
    const Axis<Acc> ax(x + base_x, width, load<I>(plan.last_x + i));
    const Axis<Acc> ay(y + base_y, height, load<I>(plan.last_y + i));
    const I row_step = load<I>(plan.row_step + i), start = load<I>(plan.start + i);
    const I upper_row = start + ay.lower * row_step, lower_row = start + ay.upper * row_step;
    const I left = ax.lower * plan.column_step, right = ax.upper * plan.column_step;
    store(out.offset + i, upper_row + left);
    store(out.offset + plan.padded + i, upper_row + right);
    store(out.offset + 2 * plan.padded + i, lower_row + left);
    store(out.offset + 3 * plan.padded + i, lower_row + right);
    const V attention = load<V>(out.attention + i);
    const V top = attention * ay.lower_weight, bottom = attention * ay.upper_weight;
    store(out.weight + i, top * ax.lower_weight);
    store(out.weight + plan.padded + i, top * ax.upper_weight);
    store(out.weight + 2 * plan.padded + i, bottom * ax.lower_weight);
    store(out.weight + 3 * plan.padded + i, bottom * ax.upper_weight);
    if constexpr (backward) {
      store(out.wx + i, ax.lower_weight);
      store(out.wx + plan.padded + i, ax.upper_weight);
      store(out.wy + i, ay.lower_weight);
      store(out.wy + plan.padded + i, ay.upper_weight);
      store(out.inside_x + i, ax.lower_inside);
      store(out.inside_x + plan.padded + i, ax.upper_inside);
      store(out.inside_y + i, ay.lower_inside);
      store(out.inside_y + plan.padded + i, ay.upper_inside);
    }
  }
}

}  // namespace
}  // namespace piip_ops

#include "forward_impl.h"
#include "backward_impl.h"
