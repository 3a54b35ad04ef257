// The loops of AMX in plain C++, for any processor: what proves them where there is no AMX.
#define OFQ_INLINE static inline  // by force, these arrays for vectors take minutes to compile
#include "isa.h"

namespace ofq {
namespace amx_emulated {
#include "simd_plain.h"
#include "tiles_emulated.h"
#include "product_amx.h"
#include "by_tile.h"
#include "shared.inc"
}  // namespace amx_emulated

extern const Kernels kernels_amx_emulated;
const Kernels kernels_amx_emulated = {"amx-emulated", amx_emulated::configure_tiles, amx_emulated::patches, amx_emulated::layer_norm,
                                      amx_emulated::linear, amx_emulated::attention_keys, amx_emulated::attention, amx_emulated::PANELS};
}  // namespace ofq
