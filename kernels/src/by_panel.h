// What the operators ask of a product that takes a panel at a time: sums go through a buffer that stays in L1.
#pragma once
#include "panel.h"

constexpr int PANELS = 1;  // of a task of a linear operator

// Brings a panel of weights near, which the next task will read: in a network each call finds others' data in the caches.
OFQ_INLINE void fetch_panel(const Weights& w, int panel) {
  if (panel >= w.panels) return;
  const int64_t bytes = int64_t(w.parts) * w.blocks * PANEL * BLOCK / (w.packed.empty() ? 1 : 2);
  const char* all = w.packed.empty() ? reinterpret_cast<const char*>(w.tiles.data()) : reinterpret_cast<const char*>(w.packed.data());
  for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch(all + panel * bytes + i, 0, 2);
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

// A head's attention, one tile of queries after another: scores; powers(t) turns them into powers of two and codes(t) these into lines p;
// sums of values; finish(t) writes them. Where lines of the last block of queries may not be read, `room` can hold a copy.
template <class Powers, class Codes, class Finish>
OFQ_INLINE void attend(const HeadPanels& keys, const HeadPanels& values, const uint8_t* q, size_t q_tile, int rows, const uint8_t* p, uint8_t*,
                       int from, int to, const Powers& powers, const Codes& codes, const Finish& finish) {
  alignas(64) static const int32_t none[PANEL] = {};
  const auto multiply_all = [&](const HeadPanels& of, const uint8_t* x, int tokens) __attribute__((always_inline)) {
    const int64_t panel = ceil_div(of.lines, 16) * PANEL * BLOCK;
    for (int m = 0; m < of.panels; m++)
      product(of.w + m * panel, of.lines, of.largest_code, of.largest_weight, x, 0, tokens, of.start ? of.start + m * PANEL : none,
              of.sums + m * TILE);
  };
  for (int t = from; t < to; t++) {
    const int queries = rows - t * LANES < LANES ? rows - t * LANES : LANES;
    multiply_all(keys, q + t * q_tile, queries);
    powers(t, nothing);
    codes(t, nothing);
    multiply_all(values, p, queries);
    finish(t);
  }
}
