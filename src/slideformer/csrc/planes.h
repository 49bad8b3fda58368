// An fp32 value as two 16-bit planes: hi, its bf16 rounding (ties away from zero), and lo, the signed rest.
#pragma once

#include <cstdint>

namespace slideformer {

// master [count] -> hi [count], lo [count]
void split(const float* master, uint16_t* hi, int16_t* lo, int64_t count, int num_threads);

// hi [count], lo [count] -> out [count]; the inverse of `split`, for every bit pattern
void join(const uint16_t* hi, const int16_t* lo, float* out, int64_t count, int num_threads);

}  // namespace slideformer
