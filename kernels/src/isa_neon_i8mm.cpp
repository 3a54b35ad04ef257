// NEON with products of int8 matrices: ARM from Cortex-A510/A710, Neoverse V1 and N2, Apple M2.
#include <arm_neon.h>

#include "isa.h"

namespace ofq {
namespace neon_i8mm {
#include "simd_neon.h"
#include "product_i8mm.h"
#include "by_panel.h"
#include "shared.inc"
}  // namespace neon_i8mm

extern const Kernels kernels_neon_i8mm;
const Kernels kernels_neon_i8mm = {"neon-i8mm", nullptr, neon_i8mm::patches, neon_i8mm::layer_norm, neon_i8mm::linear, neon_i8mm::attention_keys,
                                   neon_i8mm::attention};
}  // namespace ofq
