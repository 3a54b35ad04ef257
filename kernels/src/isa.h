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
