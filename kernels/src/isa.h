// What an isa_*.cpp includes before its namespace.
#pragma once
#include <cmath>
#include <cstring>

#include "coefficients.h"
#include "shapes.h"

#define OFQ_INLINE static inline __attribute__((always_inline))
#define OFQ_INLINE_MEMBER inline __attribute__((always_inline))
