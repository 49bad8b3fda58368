#include "adamw_kernel.h"

namespace slideformer {

void adamw_portable(const AdamWRun& run, const AdamWScalars& scalars) { adamw_run<Portable>(run, scalars); }

}  // namespace slideformer
