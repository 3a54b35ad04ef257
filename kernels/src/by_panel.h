// What the operators ask of a product that takes a panel at a time: sums go through a buffer that stays in L1.
#pragma once
#include "panel.h"

constexpr int PANELS = 1;  // of a task of a linear operator

// Brings a panel of weights near, which the next task will read: in a network each call finds others' data in the caches.
OFQ_INLINE void fetch_panel(const Weights& w, int panel) {
  if (panel >= w.panels) return;
  const int64_t bytes = int64_t(w.parts) * w.blocks * PANEL * BLOCK;
  const int8_t* own = w.tiles.data() + panel * bytes;
  for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch(own + i, 0, 2);
}

// The sums of a task's panels and at most CHUNK tiles of codes, given to the epilogue. `tokens` of their lanes are read in the end.
template <class Epilogue>
static __attribute__((noinline)) void multiply(const Linear& op, int panel, int part, const uint8_t* x, size_t x_tile, int tokens,
                                               Epilogue epilogue) {
  alignas(64) int32_t sums[CHUNK * TILE];
  fetch_panel(op.weights, panel + PANELS);
  panel_sums(op, panel, part, x, x_tile, tokens, sums);
  finish_panel(panel, int(tiles_of(tokens)), sums, epilogue);
}

// sums int32 [panels][16 channels][16 tokens] of one tile of codes, `tokens` of whose lanes are read; start = -zero * sum(weights), null where zero is 0. Room for a copy of
// the codes is given where they may end with the last line, not with a block.
static void multiply_tile(const int8_t* w, int panels, int lines, int largest_code, int largest_weight, int, const uint8_t* x, int tokens,
                          uint8_t*, const int32_t* start, int32_t* sums) {
  alignas(64) static const int32_t none[PANEL] = {};
  const int64_t panel = ceil_div(lines, 16) * PANEL * BLOCK;
  for (int m = 0; m < panels; m++)
    product(w + m * panel, lines, largest_code, largest_weight, x, 0, tokens, start ? start + m * PANEL : none, sums + m * TILE);
}
