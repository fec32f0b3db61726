// What the operator's ATen side (deform_attn_cpu.cpp) and its kernels agree on. The kernels are compiled once
// for every instruction set and must not include ATen or standard-library headers: an inline function
// compiled there for AVX-512 could be the copy that the linker keeps for everybody.
#pragma once

#include <cstddef>
#include <cstdint>

namespace piip_ops {

enum class ScalarType { kFloat64, kFloat32, kBFloat16, kFloat16 };

// What a backward kernel does. Everything at once takes least work, in batch * head_groups tasks; with many
// more threads than these, the gradients of points and mixing are found first, in batch * query_blocks *
// head_groups tasks, and that of value afterwards, in batch * heads tasks. A head's slice of grad_value has
// one owner and one order of summation either way, so that the result does not depend on the number of
// threads.
enum class Pass { kEverything, kPoints, kValue };

// Heads are worked on in groups: 4 heads of 4 points fill the 16 lanes of an AVX-512 register.
constexpr int64_t kHeadGroup = 4;
// Queries prepared at a time.
constexpr int64_t kQueryBlock = 8;

// A tensor (batch, rows, ...) whose rows are contiguous; strides in elements.
struct Rows {
  void* data;
  int64_t batch_stride;
  int64_t row_stride;
};

struct Problem {
  int64_t batch, queries, heads, channels, levels, points;
  int64_t length;              // rows of value: sum of height * width over the levels
  const int32_t* level_shape;  // (levels, 2): height, width

  // true: deform_cross_attn, where mixing holds logits and points are offsets in pixels from the query's
  // cell. false: ms_deform_attn, where mixing holds weights and points are locations in [0, 1].
  bool cross;
  int64_t query_height, query_width;

  ScalarType value_type;  // also of out and grad_out
  ScalarType point_type;  // of points, mixing and their gradients
  Rows value;             // (batch, length, heads * channels)
  Rows points_xy;         // (batch, queries, heads * levels * points * 2)
  Rows mixing;            // (batch, queries, heads * levels * points)
  Rows out;               // (batch, queries, heads * channels)

  // Backward only, as above; grad_value is added to, in float32 (float64 for float64 tensors).
  Rows grad_out, grad_value, grad_points, grad_mixing;
  Pass pass;

  int64_t head_groups() const { return (heads + kHeadGroup - 1) / kHeadGroup; }
  int64_t query_blocks() const { return (queries + kQueryBlock - 1) / kQueryBlock; }
  int64_t backward_tasks() const {
    if (pass == Pass::kValue) return batch * heads;
    return batch * head_groups() * (pass == Pass::kPoints ? query_blocks() : 1);
  }
};

struct Kernels {
  const char* name;
  // Bytes one thread needs: grows neither with the queries nor with the maps.
  size_t (*scratch_bytes)(const Problem& problem, bool backward);
  // Tasks [begin, end) out of batch * query_blocks * head_groups.
  void (*forward)(const Problem& problem, int64_t begin, int64_t end, void* scratch);
  // Tasks [begin, end) out of backward_tasks().
  void (*backward)(const Problem& problem, int64_t begin, int64_t end, void* scratch);
};

extern const Kernels kBaselineKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace piip_ops
