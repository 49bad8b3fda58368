// Bytes from one place in memory to another, by several threads: one cannot move what the memory gives.
#pragma once

#include <cstdint>

namespace slideformer {

// from [bytes] -> to [bytes]; they do not overlap
void copy(const char* from, char* to, int64_t bytes, int num_threads);

}  // namespace slideformer
