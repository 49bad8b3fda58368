// One AdamW step over spans of a flat parameter vector whose fp32 master is held in two 16-bit planes.
#pragma once

#include <cstdint>

namespace slideformer {

enum class GradType { kNone, kBf16, kFloat };
enum class MomentType { kFloat, kBf16 };

// The scalars of one step, computed in double by the caller and rounded to float once.
struct AdamWScalars {
  float lerp_weight;  // 1 - beta1
  float beta2;
  float square_weight;          // 1 - beta2
  float negative_step_size;     // -(learning_rate / (1 - beta1^step))
  float bias_correction2_sqrt;  // sqrt(1 - beta2^step)
  float epsilon;
  float decay;            // 1 - learning_rate * weight_decay
  float grad_scale;       // multiplies the gradient first
  uint64_t rounding_key;  // of the random bits that round bf16 moments
};

// Flat arrays of one layer; `grad` may be shorter, or null where grad_type is kNone.
struct AdamWArrays {
  uint16_t* hi;
  int16_t* lo;
  void* exp_avg;
  void* exp_avg_sq;
  const void* grad;
  GradType grad_type;
  MomentType moment_type;
};

// Elements [start, stop) of the layer; their gradient begins at grad_start, or is zero where that is -1.
struct Span {
  int64_t start;
  int64_t stop;
  int64_t grad_start;
  int64_t decay;  // 0 or 1
};

// A contiguous piece of work: every pointer is at its first element, which is the layer's element `first`.
struct AdamWRun {
  AdamWArrays at;
  int64_t first;
  int64_t count;
  float decay;
};

using AdamWKernel = void (*)(const AdamWRun&, const AdamWScalars&);

void adamw_portable(const AdamWRun& run, const AdamWScalars& scalars);
void adamw_avx2(const AdamWRun& run, const AdamWScalars& scalars);
void adamw_avx512(const AdamWRun& run, const AdamWScalars& scalars);

// Updates all spans, which do not overlap, dividing their elements evenly over the threads.
void adamw(const AdamWArrays& arrays, const Span* spans, int64_t span_count, const AdamWScalars& scalars,
           AdamWKernel kernel, int num_threads);

}  // namespace slideformer
