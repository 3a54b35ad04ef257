// What an isa_*.cpp includes before its namespace.
#pragma once
#include <cmath>
#include <cstring>

#include "coefficients.h"
#include "shapes.h"

#ifndef OFQ_INLINE
#define OFQ_INLINE static inline __attribute__((always_inline))
#endif
#define OFQ_INLINE_MEMBER inline __attribute__((always_inline))

namespace ofq {

// Panels of a head that meet one tile of codes after another: keys or values.
struct HeadPanels {
  const int8_t* w;         // [panels][blocks][16][64]
  int panels, lines, largest_code, largest_weight;
  int zero;                // offset of the codes
  const int32_t* start;    // -zero * sum of the weights; null where zero is 0
  int32_t* sums;           // [panels][16 keys or channels][16 queries]
};

// What stands beside a pass over the keys where nothing does.
constexpr auto nothing = [](int) {};

}  // namespace ofq
