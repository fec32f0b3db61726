// Vectors in the compiler's own vector extension, so that one source serves every instruction set; intrinsics
// only for what the extension lacks: loads of part of a vector, and half precision.
#pragma once

#include <cstddef>
#include <cstdint>

namespace piip_ops {
namespace {

#if defined(PIIP_OPS_AVX512)
constexpr int kVectorBytes = 64;
#elif defined(PIIP_OPS_AVX2)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#define PIIP_OPS_INLINE inline __attribute__((always_inline))
// Of two copies of a function the compiler may contract products and sums differently.
#define PIIP_OPS_ONE_COPY __attribute__((noinline))

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <typename T, int lanes>
struct VectorType {
  typedef T type __attribute__((vector_size(sizeof(T) * lanes)));
};
template <typename T, int lanes>
using Vector = typename VectorType<T, lanes>::type;

// Lanes of a full vector of Acc, the type of coordinates and sums: float, or double for float64 tensors.
template <typename Acc>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Acc));

template <typename V, typename T>
PIIP_OPS_INLINE V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <typename V, typename T>
PIIP_OPS_INLINE void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// x in every lane. (Subtracting zero is free; adding it is not, for it would turn -0 into 0.)
template <typename V, typename T>
PIIP_OPS_INLINE V broadcast(T x) {
  return x - V{};
}

template <int... lane>
struct Lanes {};
template <int n, int... lane>
struct MakeLanes : MakeLanes<n - 1, n - 1, lane...> {};
template <int... lane>
struct MakeLanes<0, lane...> {
  using type = Lanes<lane...>;
};

// Lane l of the result is lane Source::of(l) of a and b joined.
template <typename T, int lanes, typename Source, int... lane>
PIIP_OPS_INLINE Vector<T, lanes> shuffle(Vector<T, lanes> a, Vector<T, lanes> b, Lanes<lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Source::of(lane)...);
#else
  if constexpr (sizeof(T) == 8) {
    return __builtin_shuffle(a, b, Vector<int64_t, lanes>{Source::of(lane)...});
  } else {
    return __builtin_shuffle(a, b, Vector<int32_t, lanes>{Source::of(lane)...});
  }
#endif
}
template <typename T, int lanes, typename Source>
PIIP_OPS_INLINE Vector<T, lanes> shuffle(Vector<T, lanes> a, Vector<T, lanes> b) {
  return shuffle<T, lanes, Source>(a, b, typename MakeLanes<lanes>::type{});
}

template <int first>
struct EveryOther {
  static constexpr int of(int lane) { return first + 2 * lane; }
};
// a0 b0 a1 b1 ... from the lower (first = 0) or the upper half of a and b.
template <int lanes, int first>
struct Alternate {
  static constexpr int of(int lane) { return first + lane / 2 + (lane % 2 ? lanes : 0); }
};
template <int bit>
struct Exchange {
  static constexpr int of(int lane) { return lane ^ bit; }
};
// Half of a transposing addition: runs of `run` lanes of a and b by turns, from the lower or the upper half
// of every `domain` lanes.
template <int lanes, int run, int domain, bool upper>
struct Interleave {
  static constexpr int of(int lane) {
    const int within = lane % domain;
    const int pair = within / (2 * run);
    const bool from_b = (within / run) % 2 == 1;
    return (from_b ? lanes : 0) + lane - within + pair * run + within % run + (upper ? domain / 2 : 0);
  }
};

// The sum over the lanes of each of `lanes` vectors, as one vector; overwrites v.
template <typename T, int lanes, int run = 1>
PIIP_OPS_INLINE Vector<T, lanes> sum_each(Vector<T, lanes>* v) {
  if constexpr (run == lanes) {
    return v[0];
  } else {
    constexpr int lanes128 = 16 / sizeof(T);
    constexpr int domain = 2 * run <= lanes128 ? lanes128 : lanes;
    for (int i = 0; i < lanes / (2 * run); ++i) {
      v[i] = shuffle<T, lanes, Interleave<lanes, run, domain, false>>(v[2 * i], v[2 * i + 1]) +
             shuffle<T, lanes, Interleave<lanes, run, domain, true>>(v[2 * i], v[2 * i + 1]);
    }
    return sum_each<T, lanes, 2 * run>(v);
  }
}

inline float to_float(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  __builtin_memcpy(&y, &bits, 4);
  return y;
}

inline BFloat16 to_bfloat16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>(x == x ? rounded : 0x7fc0)};
}

// Half precision without instructions for it: the exponent is moved by multiplying, which also serves
// subnormals.
inline float to_float(Float16 x) {
  const uint32_t magnitude = x.bits & 0x7fff;
  const uint32_t shifted = magnitude << 13;
  float y;
  __builtin_memcpy(&y, &shifted, 4);
  y *= 0x1p112f;
  uint32_t bits;
  __builtin_memcpy(&bits, &y, 4);
  if (magnitude >= 0x7c00) bits |= 0x7f800000;  // infinities and NaN
  bits |= static_cast<uint32_t>(x.bits & 0x8000) << 16;
  __builtin_memcpy(&y, &bits, 4);
  return y;
}

inline Float16 to_float16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  const uint32_t sign = (bits >> 16) & 0x8000;
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // rounds to infinity
  if (magnitude < 0x38800000) {  // subnormal: let the addition round to a multiple of 2^-24
    float y;
    __builtin_memcpy(&y, &magnitude, 4);
    y += 0.5f;
    __builtin_memcpy(&bits, &y, 4);
    return {static_cast<uint16_t>(sign | (bits - 0x3f000000))};
  }
  return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13))};
}

// The first n lanes of a vector, for channels that do not fill it.
template <typename Acc>
struct Tail {
  static constexpr int lanes = kLanes<Acc>;
  int n;
#if defined(PIIP_OPS_AVX512)
  uint16_t mask;
  explicit Tail(int n) : n(n), mask(static_cast<uint16_t>((1u << n) - 1)) {}
#elif defined(PIIP_OPS_AVX2)
  // Ones for the lanes kept: of the accumulator's width, and of 32 bits for pairs of 16-bit elements.
  Vector<int32_t, 8> mask;
  Vector<int32_t, 4> pairs;
  explicit Tail(int n) : n(n) {
    const int words = n * static_cast<int>(sizeof(Acc)) / 4;
    for (int i = 0; i < 8; ++i) mask[i] = i < words ? -1 : 0;
    for (int i = 0; i < 4; ++i) pairs[i] = 2 * i + 1 < n ? -1 : 0;
  }
#else
  explicit Tail(int n) : n(n) {}
#endif
};

template <typename S>
constexpr bool is_bfloat16 = false;
template <>
constexpr bool is_bfloat16<BFloat16> = true;

// A vector of half-precision numbers, bit for bit, as float.
template <typename Acc, typename S>
PIIP_OPS_INLINE Vector<Acc, kLanes<Acc>> widen(Vector<uint16_t, kLanes<Acc>> halves) {
  constexpr int lanes = kLanes<Acc>;
  if constexpr (is_bfloat16<S>) {
    return reinterpret_cast<Vector<Acc, lanes>>(__builtin_convertvector(halves, Vector<uint32_t, lanes>)
                                                << 16);
  } else {
#if defined(PIIP_OPS_AVX512)
    return _mm512_maskz_cvtph_ps(0xffff, reinterpret_cast<__m256i>(halves));
#elif defined(PIIP_OPS_AVX2)
    return _mm256_cvtph_ps(reinterpret_cast<__m128i>(halves));
#else
    Vector<Acc, lanes> v;
    for (int i = 0; i < lanes; ++i) v[i] = to_float(Float16{halves[i]});
    return v;
#endif
  }
}

// Channels that do not fill a vector. Loads and stores of part of a vector by a mask are slow with AVX2 on
// AMD's processors, and with AVX-512 on Intel's where what was stored is soon read again, as sums are. Of 6,
// 12 and 24 channels a head the rest of a vector is 6 or 4 (AVX2), or 6, 12 or 8 (AVX-512): these are worth
// code of their own; kAnyTail stands for other numbers.
constexpr int kNoTail = 0, kAnyTail = -1;
template <typename Acc>
constexpr bool kKnowsTails = kVectorBytes >= 32 && sizeof(Acc) == 4;

// Elements of a tensor as accumulators: a full vector, and the first tail.n lanes (`known` of them, if it is
// not kAnyTail; the others are zero). The loads of part of a vector do not touch what lies behind.
template <typename Acc, typename S>
PIIP_OPS_INLINE Vector<Acc, kLanes<Acc>> load_as(const S* p) {
  if constexpr (sizeof(S) != 2) {
    return load<Vector<Acc, kLanes<Acc>>>(p);
  } else {
    return widen<Acc, S>(load<Vector<uint16_t, kLanes<Acc>>>(p));
  }
}

template <typename Acc, int known, typename S>
PIIP_OPS_INLINE Vector<Acc, kLanes<Acc>> load_tail_as(const S* p, const Tail<Acc>& tail) {
#if defined(PIIP_OPS_AVX512)
  if constexpr (sizeof(S) == 8) {
    return _mm512_maskz_loadu_pd(static_cast<uint8_t>(tail.mask), p);
  } else if constexpr (sizeof(S) == 4) {
    return _mm512_maskz_loadu_ps(tail.mask, p);
  } else {
    return widen<Acc, S>(reinterpret_cast<Vector<uint16_t, 16>>(_mm256_maskz_loadu_epi16(tail.mask, p)));
  }
#elif defined(PIIP_OPS_AVX2)
  if constexpr (known != kAnyTail) {
    static_assert(known == 4 || known == 6);
    if constexpr (sizeof(S) == 4) {
      const __m256 four = _mm256_zextps128_ps256(load<__m128>(p));
      if constexpr (known == 4) return four;
      const auto* pair = reinterpret_cast<const __m64*>(p + 4);
      return _mm256_insertf128_ps(four, _mm_loadl_pi(__m128{}, pair), 1);
    } else {
      __m128i part = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
      if constexpr (known == 6) part = _mm_insert_epi32(part, load<int32_t>(p + 4), 2);
      return widen<Acc, S>(reinterpret_cast<Vector<uint16_t, 8>>(part));
    }
  } else if constexpr (sizeof(S) == 8) {
    return _mm256_maskload_pd(p, reinterpret_cast<__m256i>(tail.mask));
  } else if constexpr (sizeof(S) == 4) {
    return _mm256_maskload_ps(p, reinterpret_cast<__m256i>(tail.mask));
  } else {
    auto part = reinterpret_cast<Vector<uint16_t, 8>>(
        _mm_maskload_epi32(reinterpret_cast<const int*>(p), reinterpret_cast<__m128i>(tail.pairs)));
    if (__builtin_expect(tail.n % 2, 0)) part[tail.n - 1] = p[tail.n - 1].bits;
    return widen<Acc, S>(part);
  }
#else
  S part[kLanes<Acc>] = {};
  for (int i = 0; i < tail.n; ++i) part[i] = p[i];
  return load_as<Acc>(part);
#endif
}

// Adds the first tail.n lanes (`known` of them, if it is not kAnyTail) to memory and touches nothing behind
// them.
template <typename Acc, int known>
PIIP_OPS_INLINE void add_tail(Acc* to, Vector<Acc, kLanes<Acc>> x, const Tail<Acc>& tail) {
#if defined(PIIP_OPS_AVX512)
  if constexpr (known != kAnyTail) {
    static_assert(known == 6 || known == 8 || known == 12);
    const __m256 eight = _mm512_castps512_ps256(x);
    if constexpr (known == 6) {
      auto* pair = reinterpret_cast<__m64*>(to + 4);
      store(to, load<__m128>(to) + _mm256_castps256_ps128(eight));
      _mm_storel_pi(pair, _mm_loadl_pi(__m128{}, pair) + _mm256_extractf128_ps(eight, 1));
    } else {
      store(to, load<__m256>(to) + eight);
      if constexpr (known == 12) store(to + 8, load<__m128>(to + 8) + _mm512_extractf32x4_ps(x, 2));
    }
  } else if constexpr (sizeof(Acc) == 8) {
    const auto mask = static_cast<uint8_t>(tail.mask);
    _mm512_mask_storeu_pd(to, mask, _mm512_maskz_loadu_pd(mask, to) + x);
  } else {
    _mm512_mask_storeu_ps(to, tail.mask, _mm512_maskz_loadu_ps(tail.mask, to) + x);
  }
#else
#if defined(PIIP_OPS_AVX2)
  if constexpr (known != kAnyTail) {
    static_assert(known == 4 || known == 6);
    store(to, load<__m128>(to) + _mm256_castps256_ps128(x));
    if constexpr (known == 6) {
      auto* pair = reinterpret_cast<__m64*>(to + 4);
      _mm_storel_pi(pair, _mm_loadl_pi(__m128{}, pair) + _mm256_extractf128_ps(x, 1));
    }
    return;
  }
#endif
  Acc lanes[kLanes<Acc>];
  store(lanes, x);
  for (int i = 0; i < tail.n; ++i) to[i] += lanes[i];
#endif
}

template <typename Acc, typename S>
PIIP_OPS_INLINE Acc element_as(S x) {
  if constexpr (sizeof(S) == 2) {
    return to_float(x);
  } else {
    return x;
  }
}

// Whether all numbers that it is shown are finite.
template <typename Acc>
class FiniteCheck {
 public:
  template <typename S>
  PIIP_OPS_INLINE void show(const S* p, int64_t n) {
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) show(load_as<Acc>(p + i));
    if (i < n && n >= lanes) {
      show(load_as<Acc>(p + n - lanes));
    } else {
      for (; i < n; ++i) differences_[0] += element_as<Acc>(p[i]) - element_as<Acc>(p[i]);
    }
  }
  PIIP_OPS_INLINE bool all_finite() const {
    Acc sums[lanes];
    store(sums, differences_);
    for (int half = lanes / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) sums[l] += sums[l + half];
    }
    return sums[0] == 0;
  }

 private:
  static constexpr int lanes = kLanes<Acc>;
  using V = Vector<Acc, lanes>;
  PIIP_OPS_INLINE void show(V v) { differences_ += v - v; }
  V differences_{};  // of each number with itself: 0, or NaN where it is infinite or NaN
};
template <typename Acc, typename S>
PIIP_OPS_INLINE bool all_finite(const S* p, int64_t n) {
  FiniteCheck<Acc> check;
  check.show(p, n);
  return check.all_finite();
}

// n elements between a tensor and accumulators.
template <typename Acc, typename S>
inline void read_row(const S* from, int64_t n, Acc* to) {
  constexpr int lanes = kLanes<Acc>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(to + i, load_as<Acc>(from + i));
  for (; i < n; ++i) to[i] = element_as<Acc>(from[i]);
}

// Rows are short: a loop beats a call of memcpy.
template <typename Acc>
inline void write_row(const Acc* from, int64_t n, Acc* to) {
  int64_t i = 0;
  for (; i + kLanes<Acc> <= n; i += kLanes<Acc>) store(to + i, load<Vector<Acc, kLanes<Acc>>>(from + i));
  for (; i + 2 <= n; i += 2) store(to + i, load<Vector<Acc, 2>>(from + i));
  if (i < n) to[i] = from[i];
}
inline void write_row(const float* from, int64_t n, BFloat16* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_bfloat16(from[i]);
}
inline void write_row(const float* from, int64_t n, Float16* to) {
  int64_t i = 0;
#if defined(PIIP_OPS_AVX512) || defined(PIIP_OPS_AVX2)
  for (; i + 8 <= n; i += 8)
    store(to + i, _mm256_cvtps_ph(load<__m256>(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < n; ++i) to[i] = to_float16(from[i]);
}

// exp(x) for x <= 0, to 2 ulp; exactly 0 for -infinity, NaN for NaN.
template <int lanes>
PIIP_OPS_INLINE Vector<float, lanes> exp_of_negative(Vector<float, lanes> x) {
  using V = Vector<float, lanes>;
  using U = Vector<uint32_t, lanes>;
  const auto nothing = x == broadcast<V>(-__builtin_inff());
  x = x < -87.0f ? broadcast<V>(-87.0f) : x;
  const V magic = broadcast<V>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
  const V shifted = x * 1.44269504089f + magic;
  const V n = shifted - magic;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const U exponent = (reinterpret_cast<U>(shifted) << 23) + (127u << 23);
  return nothing ? V{} : p * reinterpret_cast<V>(exponent);
}
template <int lanes>
PIIP_OPS_INLINE Vector<double, lanes> exp_of_negative(Vector<double, lanes> x) {
  for (int i = 0; i < lanes; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

}  // namespace
}  // namespace piip_ops
