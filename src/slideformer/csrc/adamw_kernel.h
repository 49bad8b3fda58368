// The AdamW update, written once over a vector type V (vector_*.h) and compiled once per instruction set.
//
// All names are local to the including file: code compiled for a wider instruction set must never be merged by the
// linker with that of a narrower one.
#pragma once

#include <type_traits>

#include "adamw.h"
#include "rounding.h"
#include "vector_portable.h"

namespace slideformer {
namespace {

// Hardware prefetching stops at each 4 KiB page and five streams are read at once: asking 1 KiB of fp32 ahead gained
// 6-12% on a Zen 3 core. Asking past the end is harmless.
constexpr int64_t kPrefetch = 256;

template <class Moment>
void prefetch(const AdamWArrays& at, int64_t i) {
  __builtin_prefetch(at.hi + i);
  __builtin_prefetch(at.lo + i);
  __builtin_prefetch(static_cast<const Moment*>(at.exp_avg) + i);
  __builtin_prefetch(static_cast<const Moment*>(at.exp_avg_sq) + i);
}

// Gradient elements [i, i + V::width) as fp32, scaled; Grad is void for a zero gradient.
template <class V, class Grad>
typename V::Float scaled_gradient(const Grad* grad, int64_t i, typename V::Float scale) {
  if constexpr (std::is_void_v<Grad>) {
    return V::set1(0.0f);
  } else {
    return V::mul(V::load(grad + i), scale);
  }
}

// fp32 moments are stored as they are; of bf16 ones, each is rounded with its half of the element's random bits.
// Inlined by order: of itself GCC called them once a vector, which made the AVX2 loop half as fast.
template <class V>
[[gnu::always_inline]] inline void store_moments(typename V::Float m, typename V::Float v, float* exp_avg,
                                                 float* exp_avg_sq, uint64_t, int64_t) {
  V::store(exp_avg, m);
  V::store(exp_avg_sq, v);
}

template <class V>
[[gnu::always_inline]] inline void store_moments(typename V::Float m, typename V::Float v, uint16_t* exp_avg,
                                                 uint16_t* exp_avg_sq, uint64_t key, int64_t index) {
  const typename V::Bits random = random_bits<V>(key, index);
  V::store_rounded(m, V::low_half(random), exp_avg);
  V::store_rounded(v, V::template shift_right<16>(random), exp_avg_sq);
}

// Updates as many whole vectors as fit and returns how many elements that was.
template <class V, class Grad, class Moment>
int64_t update(const AdamWRun& run, int64_t start, const AdamWScalars& s) {
  using Float = typename V::Float;
  uint16_t* __restrict hi = run.at.hi;
  int16_t* __restrict lo = run.at.lo;
  Moment* __restrict exp_avg = static_cast<Moment*>(run.at.exp_avg);
  Moment* __restrict exp_avg_sq = static_cast<Moment*>(run.at.exp_avg_sq);
  const Grad* __restrict grad = static_cast<const Grad*>(run.at.grad);

  // A lerp from the nearer end, so that beta1 = 0 gives exactly the gradient.
  const bool from_gradient = s.lerp_weight >= 0.5f;
  const Float lerp = V::set1(from_gradient ? s.lerp_weight - 1.0f : s.lerp_weight);
  const Float beta2 = V::set1(s.beta2), square_weight = V::set1(s.square_weight);
  const Float negative_step_size = V::set1(s.negative_step_size), epsilon = V::set1(s.epsilon);
  const Float bias_correction2_sqrt = V::set1(s.bias_correction2_sqrt);
  const Float decay = V::set1(run.decay), grad_scale = V::set1(s.grad_scale);

  const int64_t stop = start + (run.count - start) / V::width * V::width;
#pragma GCC ivdep
  for (int64_t i = start; i < stop; i += V::width) {
    if constexpr (V::width > 1) prefetch<Moment>(run.at, i + kPrefetch);
    const Float g = scaled_gradient<V>(grad, i, grad_scale);
    Float m = V::load(exp_avg + i);
    m = V::fma(lerp, V::sub(g, m), from_gradient ? g : m);
    const Float v = V::fma(V::mul(square_weight, g), g, V::mul(V::load(exp_avg_sq + i), beta2));
    const Float denominator = V::add(V::div(V::sqrt(v), bias_correction2_sqrt), epsilon);
    const Float p = V::mul(V::load_planes(hi + i, lo + i), decay);
    store_moments<V>(m, v, exp_avg + i, exp_avg_sq + i, s.rounding_key, run.first + i);
    V::store_planes(V::add(p, V::div(V::mul(negative_step_size, m), denominator)), hi + i, lo + i);
  }
  return stop;
}

template <class V, class Grad, class Moment>
void update_all(const AdamWRun& run, const AdamWScalars& scalars) {
  const int64_t done = update<V, Grad, Moment>(run, 0, scalars);
  if constexpr (V::width > 1) update<Portable, Grad, Moment>(run, done, scalars);  // the tail
}

template <class V, class Moment>
void update_with(const AdamWRun& run, const AdamWScalars& scalars) {
  switch (run.at.grad_type) {
    case GradType::kNone: return update_all<V, void, Moment>(run, scalars);
    case GradType::kBf16: return update_all<V, uint16_t, Moment>(run, scalars);
    case GradType::kFloat: return update_all<V, float, Moment>(run, scalars);
  }
}

template <class V>
void adamw_run(const AdamWRun& run, const AdamWScalars& scalars) {
  switch (run.at.moment_type) {
    case MomentType::kFloat: return update_with<V, float>(run, scalars);
    case MomentType::kBf16: return update_with<V, uint16_t>(run, scalars);
  }
}

}  // namespace
}  // namespace slideformer
