// Where the points of a query lie and what their corners weigh (part of kernels_impl.h).
#pragma once

namespace piip_ops {
namespace {

// The points of a head group's query, `count` of them (heads * levels * points) in flattened order, in arrays
// padded to whole vectors. The arrays of the four corners lie `padded` apart: 00, 01, 10, 11 as (y, x).
template <typename Acc>
struct Points {
  int32_t* position;  // (padded): of corner 00 in value
  Acc* weight;        // (4, padded): attention * bilinear weight, 0 outside the map
  // Backward only.
  Acc* attention;                                // (padded)
  Acc *weight_x, *weight_y, *slope_x, *slope_y;  // (2, padded) each: of the two neighbours on an axis
};

// From one position of a map to its right and lower neighbours; 0 where the map is one position wide or high.
struct Step {
  int64_t right, below;
};

// What depends on the shapes alone.
template <typename Acc>
struct Plan {
  int64_t levels, points, per_head;  // per_head = levels * points
  int64_t padded;
  Step* step;  // (levels)
  // (padded) each
  Acc *width, *height;
  Acc *last_x, *last_y;      // the last positions that have a neighbour to the right, or below
  Acc *pair_x, *pair_y;      // 1, or 0 where the map is one position wide or high
  int32_t *columns, *start;  // of a map row and before the level, in positions
  Acc *raw_xy, *raw_mixing;  // (2 * padded), (padded)

  Plan(const Problem& problem, Arena& arena)
      : levels(problem.levels), points(problem.points), per_head(problem.levels * problem.points) {
    const int64_t lanes = kLanes<Acc>;
    padded = round_up(kHeadGroup * per_head, 16 > lanes ? 16 : lanes);
    step = arena.take<Step>(levels);
    Acc** const arrays[] = {&width, &height, &last_x, &last_y, &pair_x, &pair_y, &raw_mixing};
    for (Acc** array : arrays) *array = arena.take<Acc>(padded);
    columns = arena.take<int32_t>(padded);
    start = arena.take<int32_t>(padded);
    raw_xy = arena.take<Acc>(2 * padded);
  }

  void fill(const Problem& problem) {
    for (int64_t i = 0; i < padded; ++i) {
      width[i] = height[i] = 1;
      last_x[i] = last_y[i] = pair_x[i] = pair_y[i] = raw_mixing[i] = 0;
      columns[i] = start[i] = 0;
      raw_xy[2 * i] = raw_xy[2 * i + 1] = 0;
    }
    int64_t level_start = 0;
    for (int64_t level = 0; level < levels; ++level) {
      const int32_t rows = problem.level_shape[2 * level], row_length = problem.level_shape[2 * level + 1];
      step[level] = {row_length > 1 ? 1 : 0, rows > 1 ? row_length : 0};
      for (int64_t head = 0; head < kHeadGroup; ++head) {
        for (int64_t point = 0; point < points; ++point) {
          const int64_t n = head * per_head + level * points + point;
          width[n] = static_cast<Acc>(row_length);
          height[n] = static_cast<Acc>(rows);
          last_x[n] = static_cast<Acc>(row_length > 1 ? row_length - 2 : 0);
          last_y[n] = static_cast<Acc>(rows > 1 ? rows - 2 : 0);
          pair_x[n] = row_length > 1 ? 1 : 0;
          pair_y[n] = rows > 1 ? 1 : 0;
          columns[n] = row_length;
          start[n] = static_cast<int32_t>(level_start);
        }
      }
      level_start += static_cast<int64_t>(rows) * row_length;
    }
  }
};

// One level and four points, PIIP's case, is worth kernels of its own; float64 is for tests.
template <typename Acc>
bool has_one_run(const Plan<Acc>& plan) {
  return sizeof(Acc) == 4 && plan.levels == 1 && plan.points == 4;
}
// The `padded` of such a plan, on every instruction set.
constexpr int64_t kOneRunPadded = kHeadGroup * 4;

template <typename Acc>
Points<Acc> take_points(Arena& arena, int64_t padded, bool backward) {
  Points<Acc> points{};
  points.position = arena.take<int32_t>(padded);
  points.weight = arena.take<Acc>(4 * padded);
  if (backward) {
    points.attention = arena.take<Acc>(padded);
    Acc** const arrays[] = {&points.weight_x, &points.weight_y, &points.slope_x, &points.slope_y};
    for (Acc** array : arrays) *array = arena.take<Acc>(2 * padded);
  }
  return points;
}

// Runs of four lanes: their sum, and the softmax over each.
template <typename Acc>
PIIP_OPS_INLINE Vector<Acc, kLanes<Acc>> sum_of_four(Vector<Acc, kLanes<Acc>> v) {
  v += shuffle<Acc, kLanes<Acc>, Exchange<1>>(v, v);
  return v + shuffle<Acc, kLanes<Acc>, Exchange<2>>(v, v);
}
template <typename Acc>
PIIP_OPS_INLINE Vector<Acc, kLanes<Acc>> softmax_of_four(Vector<Acc, kLanes<Acc>> v) {
  constexpr int lanes = kLanes<Acc>;
  using V = Vector<Acc, lanes>;
  V other = shuffle<Acc, lanes, Exchange<1>>(v, v);
  V largest = v > other ? v : other;
  other = shuffle<Acc, lanes, Exchange<2>>(largest, largest);
  largest = largest > other ? largest : other;
  const V e = exp_of_negative<lanes>(v - largest);
  return e / sum_of_four<Acc>(e);
}
// Whether a head's logits fill runs of four lanes.
template <typename Acc>
bool softmax_in_lanes(const Problem& problem) {
  return problem.cross && problem.points == 4 && kLanes<Acc> >= 4;
}
// Runs of any length, in arrays padded to whole vectors.
template <typename Acc>
void softmax(const Acc* from, int64_t runs, int64_t length, int64_t padded, Acc* to) {
  using V = Vector<Acc, kLanes<Acc>>;
  for (int64_t first = 0; first < runs * length; first += length) {
    Acc largest = from[first];
    for (int64_t i = 1; i < length; ++i) largest = from[first + i] > largest ? from[first + i] : largest;
    for (int64_t i = 0; i < length; ++i) to[first + i] = from[first + i] - largest;
  }
  for (int64_t i = 0; i < padded; i += kLanes<Acc>)
    store(to + i, exp_of_negative<kLanes<Acc>>(load<V>(to + i)));
  for (int64_t first = 0; first < runs * length; first += length) {
    Acc sum = 0;
    for (int64_t i = 0; i < length; ++i) sum += to[first + i];
    for (int64_t i = 0; i < length; ++i) to[first + i] /= sum;
  }
}

// One axis of a vector of positions, in pixels. The two neighbours lie inside the map, and each weighs
// max(0, 1 - distance): that is bilinear interpolation with zeros outside, without asking what is outside.
// Comparisons that NaN fails make it weigh nothing.
template <typename Acc, bool backward>
struct Axis {
  static constexpr int lanes = kLanes<Acc>;
  using V = Vector<Acc, lanes>;
  using I = Vector<int32_t, lanes>;
  I lower;  // of two neighbours; the upper one is the next
  V lower_weight, upper_weight;
  V lower_slope, upper_slope;  // the weights' derivatives; at a neighbour itself, those to its right

  PIIP_OPS_INLINE Axis(V position, V last, V pair) {
    const V zero{}, one = broadcast<V>(Acc(1)), two = broadcast<V>(Acc(2));
    V clamped = position > 0 ? position : zero;
    clamped = clamped < last ? clamped : last;
    lower = __builtin_convertvector(clamped, I);
    const V distance = position - __builtin_convertvector(lower, V);
    const V to_lower = one + distance < one - distance ? one + distance : one - distance;
    const V to_upper = distance < two - distance ? distance : two - distance;
    lower_weight = to_lower > 0 ? to_lower : zero;
    upper_weight = (to_upper > 0 ? to_upper : zero) * pair;
    if constexpr (backward) {
      const auto before = (distance >= -1) & (distance < 0), between = (distance >= 0) & (distance < 1),
                 behind = (distance >= 1) & (distance < 2);
      lower_slope = before ? one : between ? -one : zero;
      upper_slope = (between ? one : behind ? -one : zero) * pair;
    }
  }
};

// Whether a corner of point i lies inside the map, even if with a weight of zero: around such a position an
// axis has a slope. The other corners are neighbours that the kernels multiply by zero instead of leaving
// them out, and that is no zero for infinity and NaN: where these are, the kernels begin again
// (exact_impl.h).
template <typename Acc>
PIIP_OPS_INLINE bool is_inside(const Points<Acc>& points, int64_t padded, int64_t i, int corner) {
  return points.slope_y[corner / 2 * padded + i] != 0 && points.slope_x[corner % 2 * padded + i] != 0;
}

template <typename Acc, bool backward>
PIIP_OPS_INLINE void prepare(const Problem& problem, const Plan<Acc>& plan, int64_t batch, int64_t query,
                             int64_t group, const Points<Acc>& out) {
  constexpr int lanes = kLanes<Acc>;
  using V = Vector<Acc, lanes>;
  using I = Vector<int32_t, lanes>;
  const int64_t heads = smaller(kHeadGroup, problem.heads - group * kHeadGroup);
  const int64_t count = heads * plan.per_head, first = group * kHeadGroup * plan.per_head;
  const int64_t padded = plan.padded;
  const bool whole = count == padded;
  const Acc* xy =
      read(problem.points_xy, problem.point_type, batch, query, 2 * first, 2 * count, whole, plan.raw_xy);
  const Acc* mixing =
      read(problem.mixing, problem.point_type, batch, query, first, count, whole, plan.raw_mixing);
  Acc base_x = Acc(-0.5), base_y = Acc(-0.5);
  const bool four = softmax_in_lanes<Acc>(problem);
  if (problem.cross) {
    if (!four) {
      softmax(mixing, heads, plan.points, padded, plan.raw_mixing);
      mixing = plan.raw_mixing;
    }
    const int64_t row = query / problem.query_width, column = query - row * problem.query_width;
    base_x += (Acc(column) + Acc(0.5)) * plan.width[0] / Acc(problem.query_width);
    base_y += (Acc(row) + Acc(0.5)) * plan.height[0] / Acc(problem.query_height);
  }
  for (int64_t i = 0; i < padded; i += lanes) {
    const V pair0 = load<V>(xy + 2 * i), pair1 = load<V>(xy + 2 * i + lanes);
    V x = shuffle<Acc, lanes, EveryOther<0>>(pair0, pair1),
      y = shuffle<Acc, lanes, EveryOther<1>>(pair0, pair1);
    V attention = load<V>(mixing + i);
    if constexpr (lanes >= 4) {
      if (four) attention = softmax_of_four<Acc>(attention);
    }
    if (!problem.cross) {
      x *= load<V>(plan.width + i);
      y *= load<V>(plan.height + i);
    }
    const Axis<Acc, backward> ax(x + base_x, load<V>(plan.last_x + i), load<V>(plan.pair_x + i));
    const Axis<Acc, backward> ay(y + base_y, load<V>(plan.last_y + i), load<V>(plan.pair_y + i));
    store(out.position + i, load<I>(plan.start + i) + ay.lower * load<I>(plan.columns + i) + ax.lower);
    const V top = attention * ay.lower_weight, bottom = attention * ay.upper_weight;
    store(out.weight + i, top * ax.lower_weight);
    store(out.weight + padded + i, top * ax.upper_weight);
    store(out.weight + 2 * padded + i, bottom * ax.lower_weight);
    store(out.weight + 3 * padded + i, bottom * ax.upper_weight);
    if constexpr (backward) {
      store(out.attention + i, attention);
      store(out.weight_x + i, ax.lower_weight);
      store(out.weight_x + padded + i, ax.upper_weight);
      store(out.weight_y + i, ay.lower_weight);
      store(out.weight_y + padded + i, ay.upper_weight);
      store(out.slope_x + i, ax.lower_slope);
      store(out.slope_x + padded + i, ax.upper_slope);
      store(out.slope_y + i, ay.lower_slope);
      store(out.slope_y + padded + i, ay.upper_slope);
    }
  }
}

// Queries and the map they look at are both walked row by row, so what `queries` of them from `first` on are
// the first to look at lies some rows ahead of them, as far as offsets commonly reach: fetched in order it
// arrives sooner than by chance. `map` holds rows of `width` elements, `stride` apart.
template <typename T>
PIIP_OPS_INLINE void prefetch_ahead(const Problem& problem, const T* map, int64_t stride, int64_t width,
                                    int64_t first, int64_t queries) {
  if (!problem.cross) return;
  constexpr int64_t kRowsAhead = 7;
  const int64_t ahead = kRowsAhead * problem.level_shape[1];
  const int64_t end = smaller((first + queries) * problem.length / problem.queries + ahead, problem.length);
  for (int64_t s = first * problem.length / problem.queries + ahead; s < end; ++s) {
    const char* row = reinterpret_cast<const char*>(map + s * stride);
    for (int64_t byte = 0; byte < width * static_cast<int64_t>(sizeof(T)); byte += 64) {
      __builtin_prefetch(row + byte, 0, 2);
    }
  }
}

}  // namespace
}  // namespace piip_ops
