// The definition, word for word, for what is not finite (part of kernels_impl.h): a sample is the sum over
// the corners inside the map, outside of it lie zeros, and every product is formed. Slow; for a head of one
// query at a time, so that all others keep their bits.
#pragma once

namespace piip_ops {
namespace {

// The rows that a backward kernel works on, from its first channel on; strides in elements.
template <typename Acc, typename S>
struct ScatterRows {
  const S* grad_out;
  int64_t grad_out_stride;
  const S* value;
  int64_t value_stride;
  Acc* grad_value;
  int64_t grad_value_stride;
};

// A corner's row in value, from corner 00 of point i of a head on.
template <typename Acc>
int64_t corner_row(const Plan<Acc>& plan, const Points<Acc>& points, int64_t i, int corner) {
  const Step step = plan.step[i % plan.per_head / plan.points];
  return points.position[i] + (corner / 2 ? step.below : 0) + (corner % 2 ? step.right : 0);
}

template <typename Acc, typename S>
void gather_exactly(const Plan<Acc>& plan, const Points<Acc>& points, int64_t head, const S* value,
                    int64_t stride, int64_t channels, Acc* out) {
  for (int64_t c = 0; c < channels; ++c) out[c] = 0;
  for (int64_t i = head * plan.per_head; i < (head + 1) * plan.per_head; ++i) {
    for (int64_t c = 0; c < channels; ++c) {
      Acc sample = 0;
      for (int corner = 0; corner < 4; ++corner) {
        if (!is_inside(points, plan.padded, i, corner)) continue;
        sample += points.weight_y[corner / 2 * plan.padded + i] *
                  points.weight_x[corner % 2 * plan.padded + i] *
                  element_as<Acc>(value[corner_row(plan, points, i, corner) * stride + c]);
      }
      out[c] += points.attention[i] * sample;
    }
  }
}

// The dot products of a head's points with grad_out.
template <typename Acc, typename S>
PIIP_OPS_ONE_COPY void dot_exactly(const Plan<Acc>& plan, const Points<Acc>& points, int64_t head,
                                   const ScatterRows<Acc, S>& rows, int64_t channels, Acc* dots) {
  for (int64_t i = head * plan.per_head; i < (head + 1) * plan.per_head; ++i) {
    for (int corner = 0; corner < 4; ++corner) {
      const bool inside = is_inside(points, plan.padded, i, corner);
      const S* value = rows.value + corner_row(plan, points, i, corner) * rows.value_stride;
      Acc dot = 0;
      for (int64_t c = 0; c < channels; ++c) {
        dot += element_as<Acc>(rows.grad_out[c]) * (inside ? element_as<Acc>(value[c]) : Acc(0));
      }
      dots[corner * plan.padded + i] = dot;
    }
  }
}

// What a head's points add to grad_value.
template <typename Acc, typename S>
PIIP_OPS_ONE_COPY void add_exactly(const Plan<Acc>& plan, const Points<Acc>& points, int64_t head,
                                   const ScatterRows<Acc, S>& rows, int64_t channels) {
  for (int64_t i = head * plan.per_head; i < (head + 1) * plan.per_head; ++i) {
    for (int corner = 0; corner < 4; ++corner) {
      if (!is_inside(points, plan.padded, i, corner)) continue;
      Acc* grad_value = rows.grad_value + corner_row(plan, points, i, corner) * rows.grad_value_stride;
      for (int64_t c = 0; c < channels; ++c) {
        grad_value[c] += points.weight[corner * plan.padded + i] * element_as<Acc>(rows.grad_out[c]);
      }
    }
  }
}

// A position that touches no cell has no gradient, whatever it would be multiplied by.
template <typename Acc>
void drop_gradients_outside(const Plan<Acc>& plan, const Points<Acc>& points, int64_t head, Acc* grad_xy) {
  for (int64_t i = head * plan.per_head; i < (head + 1) * plan.per_head; ++i) {
    bool touches = false;
    for (int corner = 0; corner < 4; ++corner) touches |= is_inside(points, plan.padded, i, corner);
    if (!touches) grad_xy[2 * i] = grad_xy[2 * i + 1] = 0;
  }
}

}  // namespace
}  // namespace piip_ops
