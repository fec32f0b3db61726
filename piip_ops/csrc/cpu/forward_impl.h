// The forward kernel (part of kernels_impl.h).
#pragma once

namespace piip_ops {
namespace {

template <typename Acc>
struct ForwardScratch {
  static constexpr int64_t lanes = kLanes<Acc>;
  Plan<Acc> plan;
  Points<Acc> points[kQueryBlock];
  Acc* out;  // (kQueryBlock, out_stride): a head group's channels and room for a vector behind them
  int64_t out_stride;

  ForwardScratch(const Problem& problem, Arena& arena) : plan(problem, problem.value.row_stride, arena) {
    for (auto& query : points) query = take_points<Acc>(arena, plan.padded, false);
    out_stride = kHeadGroup * problem.channels + lanes;
    out = arena.take<Acc>(kQueryBlock * out_stride);
  }
};

// `full` vectors of channels, and a part of one if has_tail, of one head for all queries of a block.
template <typename Acc, typename S, int full, bool has_tail, int known_per_head>
void gather(const ForwardScratch<Acc>& scratch, int64_t queries, int64_t head, const S* base, Acc* out,
            const Tail<Acc>& tail) {
  constexpr int lanes = kLanes<Acc>;
  constexpr int vectors = full + (has_tail ? 1 : 0);
  // A sum is a chain of dependent additions: few vectors need several chains to keep the units busy.
  constexpr int chains = vectors == 1 ? 4 : vectors == 2 ? 2 : 1;
  using V = Vector<Acc, lanes>;
  const int64_t per_head = known_per_head ? known_per_head : scratch.plan.per_head;
  const int64_t padded = known_per_head ? kHeadGroup * known_per_head : scratch.plan.padded;
  for (int64_t q = 0; q < queries; ++q) {
    const int32_t* offset = scratch.points[q].offset + head * per_head;
    const Acc* weight = scratch.points[q].weight + head * per_head;
    V sum[chains][vectors] = {};
    const auto visit = [&](int corner, int64_t i) __attribute__((always_inline)) {
      const S* row = base + offset[corner * padded + i];
      const V w = V{} + weight[corner * padded + i];
      V* chain = sum[corner % chains];
      for (int v = 0; v < full; ++v) chain[v] += w * load_as<Acc>(row + v * lanes);
      if constexpr (has_tail) chain[full] += w * load_tail_as<Acc>(row + full * lanes, tail);
    };
    if constexpr (known_per_head != 0) {
#pragma GCC unroll 16
      for (int i = 0; i < 4 * known_per_head; ++i) visit(i / known_per_head, i % known_per_head);
    } else {
      for (int corner = 0; corner < 4; ++corner) {
        for (int64_t i = 0; i < per_head; ++i) visit(corner, i);
      }
    }
    for (int v = 0; v < vectors; ++v) {
      V total = sum[0][v];
      for (int c = 1; c < chains; ++c) total += sum[c][v];
      store(out + q * scratch.out_stride + v * lanes, total);
    }
  }
}

template <typename Acc, typename S>
using Gather = void (*)(const ForwardScratch<Acc>&, int64_t, int64_t, const S*, Acc*, const Tail<Acc>&);

template <typename Acc, typename S, int known_per_head>
Gather<Acc, S> choose_gather(int64_t full, bool has_tail) {
  static constexpr Gather<Acc, S> kinds[5][2] = {
      {nullptr, gather<Acc, S, 0, true, known_per_head>},
      {gather<Acc, S, 1, false, known_per_head>, gather<Acc, S, 1, true, known_per_head>},
      {gather<Acc, S, 2, false, known_per_head>, gather<Acc, S, 2, true, known_per_head>},
      {gather<Acc, S, 3, false, known_per_head>, gather<Acc, S, 3, true, known_per_head>},
      {gather<Acc, S, 4, false, known_per_head>, nullptr},
  };
  return kinds[full][has_tail ? 1 : 0];
}
template <typename Acc, typename S>
Gather<Acc, S> choose_gather(const Plan<Acc>& plan, int64_t full, bool has_tail) {
  // 4 points, as PIIP has them, are worth unrolling where they fill the padding exactly; float64 is for
  // tests.
  if constexpr (sizeof(Acc) == 4) {
    if (plan.per_head == 4 && plan.padded == kHeadGroup * 4) return choose_gather<Acc, S, 4>(full, has_tail);
  }
  return choose_gather<Acc, S, 0>(full, has_tail);
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
  with_type<Acc>(problem.value_type, [&](auto element) {
    using S = decltype(element);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task % blocks, group = task / blocks % groups, batch = task / blocks / groups;
      const int64_t first_query = block * kQueryBlock;
      const int64_t queries = smaller(kQueryBlock, problem.queries - first_query);
      const int64_t first_head = group * kHeadGroup, heads = smaller(kHeadGroup, problem.heads - first_head);
      for (int64_t q = 0; q < queries; ++q) {
        prepare<Acc, false>(problem, scratch.plan, batch, first_query + q, group, scratch.points[q]);
      }
      const S* base = static_cast<const S*>(problem.value.data) + batch * problem.value.batch_stride;
      for (int64_t head = 0; head < heads; ++head) {
        // In ascending order: the last vector of a head may spill into the next one, which comes after it.
        for (int64_t c = 0; c < channels; c += 4 * lanes) {
          const int64_t rest = smaller(channels - c, 4 * lanes);
          const auto run = choose_gather<Acc, S>(scratch.plan, rest / lanes, rest % lanes != 0);
          run(scratch, queries, head, base + (first_head + head) * channels + c,
              scratch.out + head * channels + c, tail);
        }
      }
      for (int64_t q = 0; q < queries; ++q) {
        write(problem.out, problem.value_type, batch, first_query + q, first_head * channels,
              heads * channels, scratch.out + q * scratch.out_stride);
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
