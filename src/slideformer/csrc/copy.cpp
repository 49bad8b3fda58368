#include "copy.h"

#include <algorithm>
#include <cstring>

namespace slideformer {
namespace {

constexpr int64_t kPiece = 4 << 20;  // long enough for memcpy to write past the caches

}  // namespace

void copy(const char* from, char* to, int64_t bytes, int num_threads) {
  const int64_t pieces = (bytes + kPiece - 1) / kPiece;
  const int team = static_cast<int>(std::clamp<int64_t>(pieces, 1, num_threads));
#pragma omp parallel for num_threads(team) schedule(dynamic)
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t at = piece * kPiece;
    std::memcpy(to + at, from + at, std::min(kPiece, bytes - at));
  }
}

}  // namespace slideformer
