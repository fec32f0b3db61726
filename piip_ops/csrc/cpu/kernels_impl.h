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

template <typename S>
PIIP_OPS_INLINE S* row_of(const Rows& rows, int64_t batch, int64_t row, int64_t first) {
  return static_cast<S*>(rows.data) + batch * rows.batch_stride + row * rows.row_stride + first;
}

// `n` elements from `first` on in row `row`: in place where they are accumulators already and nothing reads
// behind them (`whole`), else converted into `buffer`.
template <typename Acc>
PIIP_OPS_INLINE const Acc* read(const Rows& rows, ScalarType type, int64_t batch, int64_t row, int64_t first,
                                int64_t n, bool whole, Acc* buffer) {
  const Acc* at = buffer;
  with_type<Acc>(type, [&](auto s) {
    using S = decltype(s);
    const S* from = row_of<S>(rows, batch, row, first);
    if constexpr (sizeof(S) == sizeof(Acc)) {
      if (whole) {
        at = from;
        return;
      }
    }
    read_row(from, n, buffer);
  });
  return at;
}
template <typename Acc>
PIIP_OPS_INLINE void write(const Rows& rows, ScalarType type, int64_t batch, int64_t row, int64_t first,
                           int64_t n, const Acc* from) {
  with_type<Acc>(type, [&](auto s) { write_row(from, n, row_of<decltype(s)>(rows, batch, row, first)); });
}

}  // namespace
}  // namespace piip_ops

#include "points_impl.h"

#include "exact_impl.h"
#include "forward_impl.h"
#include "backward_impl.h"
