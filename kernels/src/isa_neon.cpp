// NEON with dot products: ARM from Cortex-A55/A76, Neoverse N1, Apple A13.
#include <arm_neon.h>

#include "isa.h"

namespace ofq {
namespace neon {
#include "simd_neon.h"
#include "product_neon.h"
#include "by_panel.h"
#include "shared.inc"
}  // namespace neon

extern const Kernels kernels_neon;
const Kernels kernels_neon = {"neon", nullptr, neon::patches, neon::layer_norm, neon::linear, neon::attention_keys, neon::attention};
}  // namespace ofq
