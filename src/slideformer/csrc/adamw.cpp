#include "adamw.h"

#include <algorithm>
#include <vector>

namespace slideformer {
namespace {

// Elements a thread takes at a time: at most 16 bytes of each are touched, so a chunk stays within a core's L2 cache.
constexpr int64_t kChunk = 16384;

const void* advance(const void* grad, GradType type, int64_t elements) {
  return static_cast<const char*>(grad) + elements * (type == GradType::kBf16 ? 2 : 4);
}

void* advance(void* moment, MomentType type, int64_t elements) {
  return static_cast<char*>(moment) + elements * (type == MomentType::kBf16 ? 2 : 4);
}

AdamWRun make_run(const AdamWArrays& arrays, const Span& span, int64_t offset, int64_t count, float decay) {
  const int64_t at = span.start + offset;
  AdamWRun run{arrays, at, count, span.decay ? decay : 1.0f};
  run.at.hi += at;
  run.at.lo += at;
  run.at.exp_avg = advance(arrays.exp_avg, arrays.moment_type, at);
  run.at.exp_avg_sq = advance(arrays.exp_avg_sq, arrays.moment_type, at);
  if (arrays.grad_type == GradType::kNone || span.grad_start < 0) {
    run.at.grad_type = GradType::kNone;
  } else {
    run.at.grad = advance(arrays.grad, arrays.grad_type, span.grad_start + offset);
  }
  return run;
}

}  // namespace

void adamw(const AdamWArrays& arrays, const Span* spans, int64_t span_count, const AdamWScalars& scalars,
           AdamWKernel kernel, int num_threads) {
  // ends[k]: elements in spans 0..k. Chunks cut this concatenation, so a chunk may hold many short spans or a
  // small part of a long one.
  std::vector<int64_t> ends(span_count);
  int64_t total = 0;
  for (int64_t k = 0; k < span_count; ++k) ends[k] = total += spans[k].stop - spans[k].start;

  const int64_t chunks = (total + kChunk - 1) / kChunk;
  const int team = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(num_threads, chunks)));
#pragma omp parallel for num_threads(team) schedule(dynamic)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    int64_t at = chunk * kChunk;
    const int64_t stop = std::min(total, at + kChunk);
    for (int64_t k = std::upper_bound(ends.begin(), ends.end(), at) - ends.begin(); at < stop; ++k) {
      const int64_t count = std::min(stop, ends[k]) - at;
      const int64_t offset = (spans[k].stop - spans[k].start) - (ends[k] - at);
      if (count > 0) kernel(make_run(arrays, spans[k], offset, count, scalars.decay), scalars);
      at += count;
    }
  }
}

}  // namespace slideformer
