#include "isa.h"

#include <cstdlib>
#include <stdexcept>

namespace slideformer {

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
#if defined(__x86_64__)
  // By hand: GCC's target_clones can match exact processor models only, and then falls back without a word.
  if (__builtin_cpu_supports("avx512f")) isas.push_back({"avx512", adamw_avx512});
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas.push_back({"avx2", adamw_avx2});
#endif
  isas.push_back({"portable", adamw_portable});
  return isas;
}

Isa selected_isa() {
  const std::vector<Isa> isas = available_isas();
  const char* forced = std::getenv("SLIDEFORMER_ISA");
  if (!forced || !*forced) return isas.front();
  std::string names;
  for (const Isa& isa : isas) {
    if (isa.name == forced) return isa;
    names += (names.empty() ? "" : ", ") + isa.name;
  }
  throw std::runtime_error("SLIDEFORMER_ISA=" + std::string(forced) +
                           " is not available here; this build and processor have " + names);
}

}  // namespace slideformer
