// Runs every set of CPU kernels that this CPU can run over the same random problems and compares what they
// give, in memory that is exactly as large as it must be, for the address sanitizer to watch (`make
// sanitize`). Needs neither PyTorch nor Python.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../cpu/kernels.h"
#include "../cpu/simd.h"

using namespace piip_ops;

namespace {

std::mt19937 random_bits(0);

int64_t pick(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random_bits);
}

int64_t size_of(ScalarType type) {
  return type == ScalarType::kFloat64 ? 8 : type == ScalarType::kFloat32 ? 4 : 2;
}

using Memory = std::unique_ptr<char[]>;

double get(const Memory& memory, ScalarType type, int64_t i) {
  switch (type) {
    case ScalarType::kFloat64:
      return reinterpret_cast<const double*>(memory.get())[i];
    case ScalarType::kFloat32:
      return reinterpret_cast<const float*>(memory.get())[i];
    case ScalarType::kBFloat16:
      return to_float(reinterpret_cast<const BFloat16*>(memory.get())[i]);
    default:
      return to_float(reinterpret_cast<const Float16*>(memory.get())[i]);
  }
}

void set(const Memory& memory, ScalarType type, int64_t i, double x) {
  switch (type) {
    case ScalarType::kFloat64:
      reinterpret_cast<double*>(memory.get())[i] = x;
      break;
    case ScalarType::kFloat32:
      reinterpret_cast<float*>(memory.get())[i] = static_cast<float>(x);
      break;
    case ScalarType::kBFloat16:
      reinterpret_cast<BFloat16*>(memory.get())[i] = to_bfloat16(static_cast<float>(x));
      break;
    default:
      reinterpret_cast<Float16*>(memory.get())[i] = to_float16(static_cast<float>(x));
  }
}

// A tensor (batch, count, width) and what it holds.
struct Array {
  ScalarType type;
  int64_t batch, count, width;
  Memory memory;

  Array(ScalarType type, int64_t batch, int64_t count, int64_t width)
      : type(type),
        batch(batch),
        count(count),
        width(width),
        memory(new char[static_cast<size_t>(size() * size_of(type))]) {}
  int64_t size() const { return batch * count * width; }
  Rows rows() const { return {memory.get(), count * width, width}; }
};

enum class Numbers { kTame, kHoles, kWild, kAnyBits };

// Mostly around zero; holes: now and then not a number; wild: or huge, or infinite; any bits (of a half type,
// else wild).
Array random_array(ScalarType type, int64_t batch, int64_t count, int64_t width, Numbers numbers) {
  Array array(type, batch, count, width);
  std::normal_distribution<double> normal(0, 2);
  for (int64_t i = 0; i < array.size(); ++i) {
    const double strange[] = {1e30, -1e30, INFINITY, -INFINITY, NAN};
    const int64_t kind = numbers == Numbers::kTame ? 99 : pick(0, 99);
    if (numbers == Numbers::kAnyBits && size_of(type) == 2) {
      reinterpret_cast<uint16_t*>(array.memory.get())[i] = static_cast<uint16_t>(pick(0, 65535));
    } else {
      const bool is_strange = numbers == Numbers::kHoles ? kind == 4 : kind < 5;
      set(array.memory, type, i, is_strange ? strange[kind] : normal(random_bits));
    }
  }
  return array;
}

// The largest difference between two arrays that hold the same numbers in another order of summation; what is
// not a number is so in both.
double tolerance(ScalarType type) {
  switch (type) {
    case ScalarType::kFloat64:
      return 1e-11;
    case ScalarType::kFloat32:
      return 1e-4;
    case ScalarType::kBFloat16:
      return 1. / 64;
    default:
      return 1. / 512;
  }
}

void compare(const Array& expected, const Array& actual, const char* what, const char* kernels) {
  double largest = 1;
  for (int64_t i = 0; i < expected.size(); ++i) {
    largest = std::max(largest, std::abs(get(expected.memory, expected.type, i)));
  }
  for (int64_t i = 0; i < expected.size(); ++i) {
    const double a = get(expected.memory, expected.type, i), b = get(actual.memory, actual.type, i);
    if ((std::isnan(a) && std::isnan(b)) || std::abs(a - b) <= tolerance(expected.type) * largest) continue;
    std::printf("%s: %s[%lld] is %g, expected %g\n", kernels, what, static_cast<long long>(i), b, a);
    std::exit(1);
  }
}

// What the kernels write: out, and the gradients of value, points and mixing.
std::vector<Array> run(const Kernels& kernels, Problem p, bool two_passes = false) {
  const int64_t of_query = p.heads * p.levels * p.points;
  std::vector<Array> results;
  results.emplace_back(p.value_type, p.batch, p.queries, p.heads * p.channels);
  results.emplace_back(p.value_type == ScalarType::kFloat64 ? p.value_type : ScalarType::kFloat32, p.batch,
                       p.length, p.heads * p.channels);
  std::memset(results[1].memory.get(), 0, static_cast<size_t>(results[1].size() * size_of(results[1].type)));
  results.emplace_back(p.point_type, p.batch, p.queries, 2 * of_query);
  results.emplace_back(p.point_type, p.batch, p.queries, of_query);
  p.out = results[0].rows();
  p.grad_value = results[1].rows();
  p.grad_points = results[2].rows();
  p.grad_mixing = results[3].rows();
  const auto scratch = [&](bool backward) {
    const size_t bytes = (kernels.scratch_bytes(p, backward) + 63) / 64 * 64;
    return std::unique_ptr<void, decltype(&std::free)>(std::aligned_alloc(64, bytes), std::free);
  };
  kernels.forward(p, 0, p.batch * p.head_groups() * p.query_blocks(), scratch(false).get());
  std::vector<Pass> passes = {Pass::kEverything};
  if (two_passes) passes = {Pass::kPoints, Pass::kValue};
  for (const Pass pass : passes) {
    p.pass = pass;
    kernels.backward(p, 0, p.backward_tasks(), scratch(true).get());
  }
  return results;
}

void run_once(const std::vector<const Kernels*>& kernels) {
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

  const int64_t of_query = p.heads * p.levels * p.points;
  // Half of the problems hold numbers whose sums can be compared, the others whatever memory may hold.
  const bool comparable = pick(0, 1) == 1;
  const Numbers numbers = !comparable       ? Numbers::kAnyBits
                          : pick(0, 1) == 1 ? Numbers::kHoles
                                            : Numbers::kTame;
  const Array value = random_array(p.value_type, p.batch, p.length, p.heads * p.channels, numbers);
  const Array points = random_array(p.point_type, p.batch, p.queries, 2 * of_query,
                                    comparable ? Numbers::kWild : Numbers::kAnyBits);
  const Array mixing = random_array(p.point_type, p.batch, p.queries, of_query, numbers);
  const Array grad_out = random_array(p.value_type, p.batch, p.queries, p.heads * p.channels, numbers);
  p.value = value.rows();
  p.points_xy = points.rows();
  p.mixing = mixing.rows();
  p.grad_out = grad_out.rows();
  const char* names[] = {"out", "grad_value", "grad_points", "grad_mixing"};
  const std::vector<Array> expected = run(*kernels[0], p);
  for (const Kernels* each : kernels) {  // two passes add in the order of one
    const std::vector<Array> once = run(*each, p), twice = run(*each, p, true);
    for (size_t i = 0; i < once.size(); ++i) {
      for (int64_t j = 0; j < once[i].size(); ++j) {
        const double a = get(once[i].memory, once[i].type, j), b = get(twice[i].memory, twice[i].type, j);
        if (a == b || (std::isnan(a) && std::isnan(b))) continue;
        std::printf("%s: %s[%lld] of two passes is %g, not %g\n", each->name, names[i],
                    static_cast<long long>(j), b, a);
        std::exit(1);
      }
    }
  }
  for (size_t k = 1; k < kernels.size(); ++k) {
    const std::vector<Array> actual = run(*kernels[k], p);
    for (size_t i = 0; comparable && i < expected.size(); ++i)
      compare(expected[i], actual[i], names[i], kernels[k]->name);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 4000;
  std::vector<const Kernels*> all = {&kBaselineKernels};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) all.push_back(&kAvx2Kernels);
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq"))
    all.push_back(&kAvx512Kernels);
#endif
  for (int round = 0; round < rounds; ++round) run_once(all);
  for (const Kernels* kernels : all) std::printf("%s: %d random problems\n", kernels->name, rounds);
  return 0;
}
