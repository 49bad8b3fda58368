#include "planes.h"

#include <cstring>

namespace slideformer {

void split(const float* master, uint16_t* hi, int16_t* lo, int64_t count, int num_threads) {
#pragma omp parallel for simd num_threads(num_threads) schedule(static)
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, master + i, sizeof bits);
    hi[i] = static_cast<uint16_t>((bits + 0x8000u) >> 16);
    lo[i] = static_cast<int16_t>(bits);
  }
}

void join(const uint16_t* hi, const int16_t* lo, float* out, int64_t count, int num_threads) {
#pragma omp parallel for simd num_threads(num_threads) schedule(static)
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = (static_cast<uint32_t>(hi[i]) << 16) + static_cast<uint32_t>(static_cast<int32_t>(lo[i]));
    std::memcpy(out + i, &bits, sizeof bits);
  }
}

}  // namespace slideformer
