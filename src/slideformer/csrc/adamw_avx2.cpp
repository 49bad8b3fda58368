#include "adamw_kernel.h"
#include "vector_avx2.h"

namespace slideformer {

void adamw_avx2(const AdamWRun& run, const AdamWScalars& scalars) { adamw_run<Avx2>(run, scalars); }

}  // namespace slideformer
