// The backward kernel (part of kernels_impl.h).
#pragma once

namespace piip_ops {
namespace {

template <typename Acc>
struct BackwardScratch {
  Plan<Acc> plan;
  Points<Acc> points[kQueryBlock];
  Acc* dots[kQueryBlock];  // (4, padded) each: grad_out . value at a point's corners
  Acc* grad_xy;            // (2 * padded)
  Acc* grad_mixing;        // (padded)
  // (channels, padded): what the gradient of value is added to where it is not wanted. The same code finds
  // the dot products with and without it, for another might round them otherwise.
  Acc* nowhere;
  uint8_t exact[kQueryBlock];  // a bit for every head that is left to exact_impl.h

  BackwardScratch(const Problem& problem, Arena& arena) : plan(problem, arena) {
    for (int64_t q = 0; q < kQueryBlock; ++q) {
      points[q] = take_points<Acc>(arena, plan.padded, true);
      dots[q] = arena.take<Acc>(4 * plan.padded);
    }
    grad_xy = arena.take<Acc>(2 * plan.padded);
    grad_mixing = arena.take<Acc>(plan.padded);
    nowhere = arena.take<Acc>(round_up(problem.channels, kLanes<Acc>));
  }
};

// Dot products with grad_out, if `with_dots`, and additions to grad_value for up to four vectors of channels,
// the last of them a part if there is a tail, of one head for all queries of a block. `first`: no other
// channels came before.
template <typename Acc, typename S, int vectors, int known_tail, bool one_run, bool with_dots>
void scatter(const BackwardScratch<Acc>& scratch, int64_t queries, int64_t head,
             const ScatterRows<Acc, S>& rows, bool first, Tail<Acc> tail) {
  constexpr int lanes = kLanes<Acc>;
  constexpr bool has_tail = known_tail != kNoTail;
  constexpr int full = vectors - (has_tail ? 1 : 0);
  using V = Vector<Acc, lanes>;
  const Plan<Acc>& plan = scratch.plan;
  const int64_t levels = one_run ? 1 : plan.levels, points = one_run ? 4 : plan.points;
  const int64_t per_head = levels * points, padded = one_run ? kOneRunPadded : plan.padded;
  const int64_t stride = rows.value_stride, grad_stride = rows.grad_value_stride;
  const Step first_step = plan.step[0];
  for (int64_t q = 0; q < queries; ++q) {
    if (scratch.exact[q] >> head & 1) continue;
    const int32_t* position = scratch.points[q].position + head * per_head;
    const Acc* weight = scratch.points[q].weight + head * per_head;
    Acc* dots = scratch.dots[q] + head * per_head;
    const auto channels = [&](const S* row, int v) __attribute__((always_inline)) {
      if constexpr (has_tail) {
        if (v == full) return load_tail_as<Acc, known_tail>(row + v * lanes, tail);
      }
      return load_as<Acc>(row + v * lanes);
    };
    V g[vectors];
    for (int v = 0; v < vectors; ++v) g[v] = channels(rows.grad_out + q * rows.grad_out_stride, v);
    const auto visit = [&](const S* row, Acc* grad, Acc scalar_weight) __attribute__((always_inline)) {
      V product{};
      if constexpr (with_dots) {
        product = g[0] * channels(row, 0);
        for (int v = 1; v < vectors; ++v) product += g[v] * channels(row, v);
      }
      const V w = broadcast<V>(scalar_weight);
      for (int v = 0; v < full; ++v) store(grad + v * lanes, load<V>(grad + v * lanes) + w * g[v]);
      if constexpr (has_tail) add_tail<Acc, known_tail>(grad + full * lanes, w * g[full], tail);
      return product;
    };
    for (int64_t level = 0; level < levels; ++level) {
      const Step step = one_run ? first_step : plan.step[level];
      const auto at_corner = [&](const S* row, Acc* grad, int64_t i,
                                 int corner) __attribute__((always_inline)) {
        const int64_t positions = (corner / 2 ? step.below : 0) + (corner % 2 ? step.right : 0);
        return visit(row + positions * stride, grad + positions * grad_stride, weight[corner * padded + i]);
      };
      int64_t i = 0;
      if constexpr (lanes >= 4) {
        for (; i + 4 <= points; i += 4) {
          constexpr int corners_at_once = lanes / 4;  // of four points
          const S* row[4];
          Acc* grad[4];
          for (int p = 0; p < 4; ++p) {
            row[p] = rows.value + position[i + p] * stride;
            grad[p] = rows.grad_value + position[i + p] * grad_stride;
          }
#pragma GCC unroll 4
          for (int corner = 0; corner < 4; corner += corners_at_once) {
            V products[lanes];
#pragma GCC unroll 16
            for (int l = 0; l < lanes; ++l) {
              products[l] = at_corner(row[l % 4], grad[l % 4], i + l % 4, corner + l / 4);
            }
            if constexpr (!with_dots) continue;
            using Four = Vector<Acc, 4>;
            Acc sums[lanes];
            store(sums, sum_each<Acc, lanes>(products));
            for (int c = 0; c < corners_at_once; ++c) {
              Acc* to = dots + (corner + c) * padded + i;
              const Four sum = load<Four>(sums + 4 * c);
              store(to, first ? sum : load<Four>(to) + sum);
            }
          }
        }
      }
      for (; i < points; ++i) {
        for (int corner = 0; corner < 4; ++corner) {
          const V product = at_corner(rows.value + position[i] * stride,
                                      rows.grad_value + position[i] * grad_stride, i, corner);
          if constexpr (!with_dots) continue;
          Acc sum = 0;
          for (int l = 0; l < lanes; ++l) sum += product[l];
          Acc* to = dots + corner * padded + i;
          *to = first ? sum : *to + sum;
        }
      }
      position += points;
      weight += points;
      dots += points;
    }
  }
}

template <typename Acc, typename S>
using Scatter = void (*)(const BackwardScratch<Acc>&, int64_t, int64_t, const ScatterRows<Acc, S>&, bool,
                         Tail<Acc>);

template <typename Acc, typename S, int known_tail, bool one_run, bool with_dots>
Scatter<Acc, S> choose_scatter(int64_t vectors) {
  static constexpr Scatter<Acc, S> kinds[] = {
      scatter<Acc, S, 1, known_tail, one_run, with_dots>,
      scatter<Acc, S, 2, known_tail, one_run, with_dots>,
      scatter<Acc, S, 3, known_tail, one_run, with_dots>,
      scatter<Acc, S, 4, known_tail, one_run, with_dots>,
  };
  return kinds[vectors - 1];
}
template <typename Acc, typename S, bool one_run, bool with_dots>
Scatter<Acc, S> choose_scatter(int64_t channels) {
  constexpr int64_t lanes = kLanes<Acc>;
  const int64_t vectors = round_up(channels, lanes) / lanes, tail = channels % lanes;
  if constexpr (one_run && kKnowsTails<Acc>) {
    if (tail == 6) return choose_scatter<Acc, S, 6, one_run, with_dots>(vectors);
    if constexpr (lanes == 8) {
      if (tail == 4) return choose_scatter<Acc, S, 4, one_run, with_dots>(vectors);
    } else {
      if (tail == 8) return choose_scatter<Acc, S, 8, one_run, with_dots>(vectors);
      if (tail == 12) return choose_scatter<Acc, S, 12, one_run, with_dots>(vectors);
    }
  }
  return tail == 0 ? choose_scatter<Acc, S, kNoTail, one_run, with_dots>(vectors)
                   : choose_scatter<Acc, S, kAnyTail, one_run, with_dots>(vectors);
}
template <typename Acc, typename S>
Scatter<Acc, S> choose_scatter(int64_t channels, bool one_run, bool with_dots) {
  if (with_dots) {
    return one_run ? choose_scatter<Acc, S, true, true>(channels)
                   : choose_scatter<Acc, S, false, true>(channels);
  }
  return one_run ? choose_scatter<Acc, S, true, false>(channels)
                 : choose_scatter<Acc, S, false, false>(channels);
}

// From the dot products to the gradients of the points and of their weights or logits.
template <typename Acc>
PIIP_OPS_ONE_COPY void finish_points(const Problem& problem, const BackwardScratch<Acc>& scratch, int64_t q,
                                     int64_t heads) {
  constexpr int lanes = kLanes<Acc>;
  using V = Vector<Acc, lanes>;
  const Points<Acc>& points = scratch.points[q];
  const Acc* dots = scratch.dots[q];
  const int64_t padded = scratch.plan.padded;
  const bool four = softmax_in_lanes<Acc>(problem);
  for (int64_t i = 0; i < padded; i += lanes) {
    const auto at = [&](const Acc* p, int64_t k) { return load<V>(p + k * padded + i); };
    const V d00 = at(dots, 0), d01 = at(dots, 1), d10 = at(dots, 2), d11 = at(dots, 3);
    const V wx0 = at(points.weight_x, 0), wx1 = at(points.weight_x, 1);
    const V wy0 = at(points.weight_y, 0), wy1 = at(points.weight_y, 1);
    const V left = wy0 * d00 + wy1 * d10, right = wy0 * d01 + wy1 * d11;
    const V top = wx0 * d00 + wx1 * d01, bottom = wx0 * d10 + wx1 * d11;
    const V attention = at(points.attention, 0);
    V gx = attention * (at(points.slope_x, 0) * left + at(points.slope_x, 1) * right);
    V gy = attention * (at(points.slope_y, 0) * top + at(points.slope_y, 1) * bottom);
    if (!problem.cross) {
      gx *= at(scratch.plan.width, 0);
      gy *= at(scratch.plan.height, 0);
    }
    V mixing = wx0 * left + wx1 * right;
    if constexpr (lanes >= 4) {  // through the softmax
      if (four) mixing = attention * (mixing - sum_of_four<Acc>(attention * mixing));
    }
    store(scratch.grad_mixing + i, mixing);
    store(scratch.grad_xy + 2 * i, shuffle<Acc, lanes, Alternate<lanes, 0>>(gx, gy));
    store(scratch.grad_xy + 2 * i + lanes, shuffle<Acc, lanes, Alternate<lanes, lanes / 2>>(gx, gy));
  }
  if (!problem.cross || four) return;
  for (int64_t h = 0; h < heads; ++h) {
    Acc* g = scratch.grad_mixing + h * problem.points;
    const Acc* attention = points.attention + h * problem.points;
    Acc mean = 0;
    for (int64_t p = 0; p < problem.points; ++p) mean += attention[p] * g[p];
    for (int64_t p = 0; p < problem.points; ++p) g[p] = attention[p] * (g[p] - mean);
  }
}

template <typename Acc, typename S>
void backward_of(const Problem& problem, int64_t begin, int64_t end, void* memory) {
  constexpr int64_t lanes = kLanes<Acc>;
  Arena arena(memory);
  BackwardScratch<Acc> scratch(problem, arena);
  scratch.plan.fill(problem);
  for (int64_t c = 0; c < problem.channels; ++c) scratch.nowhere[c] = 0;
  const int64_t channels = problem.channels, groups = problem.head_groups(), per_head = scratch.plan.per_head;
  const Tail<Acc> tail(static_cast<int>(channels % lanes));
  const bool one_run = has_one_run(scratch.plan);
  const bool points_wanted = problem.pass != Pass::kValue, value_wanted = problem.pass != Pass::kPoints;
  for (int64_t task = begin; task < end; ++task) {
    // Of kValue one head is worked on, of kPoints one block of queries.
    const int64_t blocks = problem.query_blocks();
    int64_t group = task % groups, batch = task / groups, first_block = group * blocks / groups;
    int64_t only_head = -1;
    if (!points_wanted) {
      batch = task / problem.heads;
      group = task % problem.heads / kHeadGroup;
      only_head = task % problem.heads % kHeadGroup;
      first_block = group * blocks / groups;
    } else if (!value_wanted) {
      batch = task / groups / blocks;
      first_block = task / groups % blocks;
    }
    const int64_t first_head = group * kHeadGroup, heads = smaller(kHeadGroup, problem.heads - first_head);
    const int64_t count = heads * per_head, first = first_head * per_head;
    const S* value = row_of<S>(problem.value, batch, 0, first_head * channels);
    Acc* grad_value = row_of<Acc>(problem.grad_value, batch, 0, first_head * channels);
    // Each group begins elsewhere: rows of grad_value hold all groups, and threads that add to the same rows
    // at a time take cache lines from each other, for processors fetch a line's neighbours along with it.
    for (int64_t walked = 0; walked < (value_wanted ? blocks : 1); ++walked) {
      const int64_t first_query = (first_block + walked) % blocks * kQueryBlock;
      const int64_t queries = smaller(kQueryBlock, problem.queries - first_query);
      if (points_wanted) {
        prefetch_ahead(problem, value, problem.value.row_stride, heads * channels, first_query, queries);
      }
      if (value_wanted) {
        prefetch_ahead(problem, grad_value, problem.grad_value.row_stride, heads * channels, first_query,
                       queries);
      }
      const auto rows_at = [&](int64_t q, int64_t head, int64_t c) -> ScatterRows<Acc, S> {
        const int64_t channel = (first_head + head) * channels + c;
        const S* grad_out = row_of<S>(problem.grad_out, batch, first_query + q, channel);
        const S* value_row = row_of<S>(problem.value, batch, 0, channel);
        if (!value_wanted) {
          return {
              grad_out, problem.grad_out.row_stride, value_row, problem.value.row_stride, scratch.nowhere + c,
              0};
        }
        Acc* grad_value_row = row_of<Acc>(problem.grad_value, batch, 0, channel);
        return {grad_out,       problem.grad_out.row_stride,  value_row, problem.value.row_stride,
                grad_value_row, problem.grad_value.row_stride};
      };
      FiniteCheck<Acc> finite_inputs, finite_results;
      for (int64_t q = 0; q < queries; ++q) {
        prepare<Acc, true>(problem, scratch.plan, batch, first_query + q, group, scratch.points[q]);
        finite_inputs.show(scratch.points[q].attention, count);
        finite_inputs.show(rows_at(q, 0, 0).grad_out, heads * channels);
        scratch.exact[q] = 0;
      }
      if (!finite_inputs.all_finite()) {
        for (int64_t q = 0; q < queries; ++q) {
          for (int64_t head = 0; head < heads; ++head) {
            const bool finite = all_finite<Acc>(scratch.points[q].attention + head * per_head, per_head) &&
                                all_finite<Acc>(rows_at(q, head, 0).grad_out, channels);
            scratch.exact[q] |= static_cast<uint8_t>(!finite << head);
          }
        }
      }
      for (int64_t head = 0; head < heads; ++head) {
        if (only_head >= 0 && head != only_head) continue;
        for (int64_t c = 0; c < channels; c += 4 * lanes) {
          const int64_t rest = smaller(channels - c, 4 * lanes);
          const auto run = choose_scatter<Acc, S>(rest, one_run, points_wanted);
          run(scratch, queries, head, rows_at(0, head, c), c == 0, tail);
        }
      }
      if (value_wanted && !finite_inputs.all_finite()) {
        for (int64_t q = 0; q < queries; ++q) {
          for (int64_t head = 0; head < heads; ++head) {
            if ((scratch.exact[q] >> head & 1) && (only_head < 0 || head == only_head))
              add_exactly(scratch.plan, scratch.points[q], head, rows_at(q, head, 0), channels);
          }
        }
      }
      if (!points_wanted) continue;
      const auto write_points = [&](int64_t q) {
        write(problem.grad_points, problem.point_type, batch, first_query + q, 2 * first, 2 * count,
              scratch.grad_xy);
        write(problem.grad_mixing, problem.point_type, batch, first_query + q, first, count,
              scratch.grad_mixing);
      };
      for (int64_t q = 0; q < queries; ++q) {
        finish_points(problem, scratch, q, heads);
        finite_results.show(scratch.grad_mixing, count);
        write_points(q);
      }
      if (finite_inputs.all_finite() && finite_results.all_finite()) continue;
      for (int64_t q = 0; q < queries; ++q) {
        for (int64_t head = 0; head < heads; ++head) {
          bool finite = !(scratch.exact[q] >> head & 1);
          for (int corner = 0; corner < 4; ++corner) {
            const Acc* dots = scratch.dots[q] + corner * scratch.plan.padded + head * per_head;
            finite = finite && all_finite<Acc>(dots, per_head);
          }
          if (finite) continue;
          scratch.exact[q] |= static_cast<uint8_t>(1 << head);
          dot_exactly(scratch.plan, scratch.points[q], head, rows_at(q, head, 0), channels, scratch.dots[q]);
        }
        finish_points(problem, scratch, q, heads);
        for (int64_t head = 0; head < heads; ++head) {
          if (scratch.exact[q] >> head & 1)
            drop_gradients_outside(scratch.plan, scratch.points[q], head, scratch.grad_xy);
        }
        write_points(q);
      }
    }
  }
}

void backward(const Problem& problem, int64_t begin, int64_t end, void* scratch) {
  if (problem.value_type == ScalarType::kFloat64) {
    backward_of<double, double>(problem, begin, end, scratch);
  } else {
    with_type<float>(problem.value_type, [&](auto element) {
      backward_of<float, decltype(element)>(problem, begin, end, scratch);
    });
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
