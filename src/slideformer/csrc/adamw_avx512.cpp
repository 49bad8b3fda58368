#include "adamw_kernel.h"
#include "vector_avx512.h"

namespace slideformer {

void adamw_avx512(const AdamWRun& run, const AdamWScalars& scalars) { adamw_run<Avx512>(run, scalars); }

}  // namespace slideformer
