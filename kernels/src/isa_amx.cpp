// AMX with AVX-512: Intel from Sapphire Rapids. The process must have asked Linux for the tile registers.
#include <immintrin.h>

#include "isa.h"

namespace ofq {
namespace amx {
#include "simd_avx512.h"
#include "tiles_amx.h"
#include "product_amx.h"
#include "by_tile.h"
#include "shared.inc"
}  // namespace amx

extern const Kernels kernels_amx;
const Kernels kernels_amx = {"amx", amx::configure_tiles, amx::patches, amx::layer_norm, amx::linear, amx::attention_keys, amx::attention,
                             amx::PANELS};
}  // namespace ofq
