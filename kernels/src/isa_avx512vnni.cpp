// AVX-512 with VNNI: Intel from Cascade Lake, AMD from Zen 4.
#include <immintrin.h>

#include "isa.h"

namespace ofq {
namespace avx512vnni {
#include "simd_avx512.h"
#include "product_vnni512.h"
#include "by_panel.h"
#include "shared.inc"
}  // namespace avx512vnni

extern const Kernels kernels_avx512vnni;
const Kernels kernels_avx512vnni = {"avx512vnni", nullptr, avx512vnni::patches, avx512vnni::layer_norm, avx512vnni::linear,
                                    avx512vnni::attention_keys, avx512vnni::attention};
}  // namespace ofq
