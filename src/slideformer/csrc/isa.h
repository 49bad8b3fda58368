// Which instruction set the AdamW kernel runs with.
#pragma once

#include <string>
#include <vector>

#include "adamw.h"

namespace slideformer {

struct Isa {
  std::string name;  // avx512, avx2 or portable
  AdamWKernel kernel;
};

// What was compiled in and this processor can run, widest first.
std::vector<Isa> available_isas();

// The widest, or the one that the environment variable SLIDEFORMER_ISA names.
// Throws std::runtime_error where that is not available.
Isa selected_isa();

}  // namespace slideformer
