// AVX2 with FMA: Intel from Haswell, AMD from Zen.
#include <immintrin.h>

#include "isa.h"

namespace ofq {
namespace avx2 {
#include "simd_avx2.h"
#include "product_avx2.h"
#include "by_panel.h"
#include "shared.inc"
}  // namespace avx2

extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = {"avx2", nullptr, avx2::patches, avx2::layer_norm, avx2::linear, avx2::attention_keys, avx2::attention};
}  // namespace ofq
