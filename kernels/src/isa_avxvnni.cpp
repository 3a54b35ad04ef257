// AVX2 with VNNI: Intel's processors without AVX-512, from Alder Lake.
#include <immintrin.h>

#include "isa.h"

namespace ofq {
namespace avxvnni {
#include "simd_avx2.h"
#include "product_avxvnni.h"
#include "by_panel.h"
#include "shared.inc"
}  // namespace avxvnni

extern const Kernels kernels_avxvnni;
const Kernels kernels_avxvnni = {"avxvnni", nullptr, avxvnni::patches, avxvnni::layer_norm, avxvnni::linear, avxvnni::attention_keys,
                                 avxvnni::attention};
}  // namespace ofq
