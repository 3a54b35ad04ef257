// Plain C++, for any processor.
#define OFQ_INLINE static inline  // by force, these arrays for vectors take minutes to compile
#include "isa.h"

namespace ofq {
namespace plain {
#include "simd_plain.h"
#include "product_plain.h"
#include "by_panel.h"
#include "shared.inc"
}  // namespace plain

extern const Kernels kernels_plain;
const Kernels kernels_plain = {"plain", nullptr, plain::patches, plain::layer_norm, plain::linear, plain::attention_keys, plain::attention};
}  // namespace ofq
