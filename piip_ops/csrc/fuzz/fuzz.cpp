// Runs the CPU kernels over random shapes and positions in memory that is exactly as large as it must be, for
// the address sanitizer to watch (`make asan`). Needs neither PyTorch nor Python.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "../cpu/kernels.h"

using namespace piip_ops;

namespace {

std::mt19937 random_bits(0);

int64_t pick(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_bits);
}

int64_t size_of(ScalarType type) {
  return type == ScalarType::kFloat64 ? 8 : type == ScalarType::kFloat32 ? 4 : 2;
}

// `n` elements: mostly near zero, now and then huge, infinite or not a number.
std::unique_ptr<char[]> elements(ScalarType type, int64_t n) {
  auto memory = std::make_unique<char[]>(static_cast<size_t>(n * size_of(type)));
  std::normal_distribution<double> normal(0, 2);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t kind = pick(0, 99);
    const double wild[] = {1e30, -1e30, INFINITY, -INFINITY, NAN};
    const double x = kind < 5 ? wild[kind] : normal(random_bits);
    if (type == ScalarType::kFloat64) {
      reinterpret_cast<double*>(memory.get())[i] = x;
    } else if (type == ScalarType::kFloat32) {
      reinterpret_cast<float*>(memory.get())[i] = static_cast<float>(x);
    } else {  // any bits are a number, an infinity or NaN
      reinterpret_cast<uint16_t*>(memory.get())[i] = static_cast<uint16_t>(pick(0, 65535));
    }
  }
  return memory;
}

void run_once(const Kernels& kernels) {
  Problem p{};
  p.cross = pick(0, 1) == 1;
  p.batch = pick(1, 2);
  p.heads = pick(1, 9);
  p.channels = pick(1, 8) == 1 ? pick(1, 140) : pick(1, 40);
  p.levels = p.cross ? 1 : pick(1, 4);
  p.points = pick(1, 2) == 1 ? 4 : pick(1, 9);
  std::vector<int32_t> shape;
  for (int64_t level = 0; level < p.levels; ++level) {
    shape.push_back(static_cast<int32_t>(pick(1, 7)));
    shape.push_back(static_cast<int32_t>(pick(1, 7)));
    p.length += shape[2 * level] * shape[2 * level + 1];
  }
  p.level_shape = shape.data();
  p.query_height = pick(1, 6);
  p.query_width = pick(1, 6);
  p.queries = p.query_height * p.query_width;
  const ScalarType types[] = {ScalarType::kFloat64, ScalarType::kFloat32, ScalarType::kBFloat16,
                              ScalarType::kFloat16};
  p.value_type = types[pick(0, 3)];
  const bool wide = size_of(p.value_type) == 2 && pick(0, 1) == 1;
  p.point_type = wide ? ScalarType::kFloat32 : p.value_type;

  std::vector<std::unique_ptr<char[]>> memory;
  const auto rows = [&](ScalarType type, int64_t count, int64_t width) {
    memory.push_back(elements(type, p.batch * count * width));
    return Rows{memory.back().get(), count * width, width};
  };
  const int64_t of_query = p.heads * p.levels * p.points;
  p.value = rows(p.value_type, p.length, p.heads * p.channels);
  p.points_xy = rows(p.point_type, p.queries, 2 * of_query);
  p.mixing = rows(p.point_type, p.queries, of_query);
  p.out = rows(p.value_type, p.queries, p.heads * p.channels);
  p.grad_out = rows(p.value_type, p.queries, p.heads * p.channels);
  p.grad_value = rows(p.value_type, p.length, p.heads * p.channels);
  p.grad_points = rows(p.point_type, p.queries, 2 * of_query);
  p.grad_mixing = rows(p.point_type, p.queries, of_query);
  for (const bool backward : {false, true}) {
    const size_t bytes = (kernels.scratch_bytes(p, backward) + 63) / 64 * 64;
    const std::unique_ptr<void, decltype(&std::free)> scratch(std::aligned_alloc(64, bytes), std::free);
    if (backward) {
      kernels.backward(p, 0, p.batch * p.head_groups(), scratch.get());
    } else {
      kernels.forward(p, 0, p.batch * p.head_groups() * p.query_blocks(), scratch.get());
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 2000;
  std::vector<const Kernels*> all = {&kBaselineKernels};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all.push_back(&kAvx2Kernels);
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    all.push_back(&kAvx512Kernels);
#endif
  for (const Kernels* kernels : all) {
    for (int round = 0; round < rounds; ++round) run_once(*kernels);
    std::printf("%s: %d random problems\n", kernels->name, rounds);
  }
  return 0;
}
