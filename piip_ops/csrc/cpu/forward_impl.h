// The forward kernel (part of kernels_impl.h).
#pragma once

namespace piip_ops {
namespace {

template <typename Acc>
struct ForwardScratch {
  static constexpr int64_t lanes = kLanes<Acc>;
  Plan<Acc> plan;
  Points<Acc> points[kQueryBlock];
  Points<Acc> exact;  // of one query, where what comes out is not finite
  Acc* out;           // (kQueryBlock, out_stride): a head group's channels and room for a vector behind them
  int64_t out_stride;

  ForwardScratch(const Problem& problem, Arena& arena) : plan(problem, arena) {
    for (auto& query : points) query = take_points<Acc>(arena, plan.padded, false);
    exact = take_points<Acc>(arena, plan.padded, true);
    out_stride = round_up(kHeadGroup * problem.channels + lanes, lanes);
    out = arena.take<Acc>(kQueryBlock * out_stride);
  }
};

// Up to four vectors of channels, the last of them a part if has_tail, of one head for all queries of a
// block.
template <typename Acc, typename S, int vectors, bool has_tail, bool one_run>
void gather(const ForwardScratch<Acc>& scratch, int64_t queries, int64_t head, const S* base, int64_t stride,
            Acc* out, const Tail<Acc>& tail) {
  constexpr int lanes = kLanes<Acc>;
  constexpr int full = vectors - (has_tail ? 1 : 0);
  // A sum is a chain of dependent additions: few vectors need several chains to keep the units busy.
  constexpr int chains = vectors == 1 ? 4 : vectors == 2 ? 2 : 1;
  using V = Vector<Acc, lanes>;
  const Plan<Acc>& plan = scratch.plan;
  const int64_t levels = one_run ? 1 : plan.levels, points = one_run ? 4 : plan.points;
  const int64_t per_head = levels * points, padded = one_run ? kOneRunPadded : plan.padded;
  const Step first_step = plan.step[0];
  for (int64_t q = 0; q < queries; ++q) {
    const int32_t* position = scratch.points[q].position + head * per_head;
    const Acc* weight = scratch.points[q].weight + head * per_head;
    V sum[chains][vectors] = {};
    const auto add = [&](int corner, const S* row, Acc scalar_weight) __attribute__((always_inline)) {
      const V w = broadcast<V>(scalar_weight);
      V* chain = sum[corner % chains];
      for (int v = 0; v < full; ++v) chain[v] += w * load_as<Acc>(row + v * lanes);
      if constexpr (has_tail) chain[full] += w * load_tail_as<Acc, kAnyTail>(row + full * lanes, tail);
    };
    for (int64_t level = 0; level < levels; ++level) {
      const Step step = one_run ? first_step : plan.step[level];
      const int64_t right = step.right * stride, below = step.below * stride;
      const auto visit = [&](int64_t i) __attribute__((always_inline)) {
        const S* row = base + position[i] * stride;
        add(0, row, weight[i]);
        add(1, row + right, weight[padded + i]);
        add(2, row + below, weight[2 * padded + i]);
        add(3, row + below + right, weight[3 * padded + i]);
      };
      int64_t i = 0;
      for (; i + 4 <= points; i += 4) {
        visit(i);
        visit(i + 1);
        visit(i + 2);
        visit(i + 3);
      }
      for (; i < points; ++i) visit(i);
      position += points;
      weight += points;
    }
    for (int v = 0; v < vectors; ++v) {
      V total = sum[0][v];
      for (int c = 1; c < chains; ++c) total += sum[c][v];
      store(out + q * scratch.out_stride + v * lanes, total);
    }
  }
}

template <typename Acc, typename S>
using Gather = void (*)(const ForwardScratch<Acc>&, int64_t, int64_t, const S*, int64_t, Acc*,
                        const Tail<Acc>&);

template <typename Acc, typename S, bool one_run>
Gather<Acc, S> choose_gather(int64_t vectors, bool has_tail) {
  static constexpr Gather<Acc, S> kinds[4][2] = {
      {gather<Acc, S, 1, false, one_run>, gather<Acc, S, 1, true, one_run>},
      {gather<Acc, S, 2, false, one_run>, gather<Acc, S, 2, true, one_run>},
      {gather<Acc, S, 3, false, one_run>, gather<Acc, S, 3, true, one_run>},
      {gather<Acc, S, 4, false, one_run>, gather<Acc, S, 4, true, one_run>},
  };
  return kinds[vectors - 1][has_tail ? 1 : 0];
}

template <typename Acc>
void forward_as(const Problem& problem, int64_t begin, int64_t end, void* memory) {
  constexpr int64_t lanes = kLanes<Acc>;
  Arena arena(memory);
  ForwardScratch<Acc> scratch(problem, arena);
  scratch.plan.fill(problem);
  const int64_t blocks = problem.query_blocks(), groups = problem.head_groups();
  const int64_t channels = problem.channels;
  const Tail<Acc> tail(static_cast<int>(channels % lanes));
  const bool one_run = has_one_run(scratch.plan);
  with_type<Acc>(problem.value_type, [&](auto element) {
    using S = decltype(element);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task % groups, block = task / groups % blocks, batch = task / blocks / groups;
      const int64_t first_query = block * kQueryBlock;
      const int64_t queries = smaller(kQueryBlock, problem.queries - first_query);
      const int64_t first_head = group * kHeadGroup, heads = smaller(kHeadGroup, problem.heads - first_head);
      for (int64_t q = 0; q < queries; ++q) {
        prepare<Acc, false>(problem, scratch.plan, batch, first_query + q, group, scratch.points[q]);
      }
      prefetch_ahead(problem, row_of<S>(problem.value, batch, 0, first_head * channels),
                     problem.value.row_stride, heads * channels, first_query, queries);
      for (int64_t head = 0; head < heads; ++head) {
        const S* base = row_of<S>(problem.value, batch, 0, (first_head + head) * channels);
        // A whole vector reads into the heads that follow, where there are any, and costs less than a part.
        const bool may_read_on = round_up(channels, lanes) <= (problem.heads - first_head - head) * channels;
        // In ascending order: the last vector of a head may spill into the next one, which comes after it.
        for (int64_t c = 0; c < channels; c += 4 * lanes) {
          const int64_t rest = smaller(channels - c, 4 * lanes), vectors = round_up(rest, lanes) / lanes;
          const bool has_tail = rest % lanes != 0 && !may_read_on;
          const auto run = one_run ? choose_gather<Acc, S, true>(vectors, has_tail)
                                   : choose_gather<Acc, S, false>(vectors, has_tail);
          run(scratch, queries, head, base + c, problem.value.row_stride, scratch.out + head * channels + c,
              tail);
        }
      }
      FiniteCheck<Acc> finite;
      for (int64_t q = 0; q < queries; ++q)
        finite.show(scratch.out + q * scratch.out_stride, heads * channels);
      const bool whole_block_finite = finite.all_finite();
      for (int64_t q = 0; q < queries; ++q) {
        Acc* out = scratch.out + q * scratch.out_stride;
        if (!whole_block_finite && !all_finite<Acc>(out, heads * channels)) {
          prepare<Acc, true>(problem, scratch.plan, batch, first_query + q, group, scratch.exact);
          for (int64_t head = 0; head < heads; ++head) {
            if (all_finite<Acc>(out + head * channels, channels)) continue;
            const S* value = row_of<S>(problem.value, batch, 0, (first_head + head) * channels);
            gather_exactly(scratch.plan, scratch.exact, head, value, problem.value.row_stride, channels,
                           out + head * channels);
          }
        }
        write(problem.out, problem.value_type, batch, first_query + q, first_head * channels,
              heads * channels, out);
      }
    }
  });
}

void forward(const Problem& problem, int64_t begin, int64_t end, void* scratch) {
  if (problem.value_type == ScalarType::kFloat64) {
    forward_as<double>(problem, begin, end, scratch);
  } else {
    forward_as<float>(problem, begin, end, scratch);
  }
}

}  // namespace
}  // namespace piip_ops
