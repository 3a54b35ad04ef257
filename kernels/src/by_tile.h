// What the operators ask of a product, by loops of their own on tile registers.
#pragma once
#include "panel.h"

constexpr int PANELS = 2;      // of a task of a linear operator
constexpr int L1_BLOCKS = 12;  // of each of the four operands of a square, so that L1 holds them all

// Linear: units of sums, [panels][2 tiles][16 channels][16 tokens]. The epilogue of a unit stands between the products of the next one,
// or, where it is not light, between two units.

struct Unit {
  int panel, tile;
  bool pair;            // of tiles
  const int32_t* sums;
  unsigned steps;       // of the epilogue: four a panel
};

template <class Epilogue>
OFQ_INLINE void finish(const Unit& unit, unsigned from, unsigned to, const Epilogue& epilogue) {
  for (unsigned step = from; step < to && step < unit.steps; step++) {
    const unsigned i = step % 4 * 4;
    const int32_t* first = unit.sums + step / 4 * 2 * TILE + i * LANES;
    epilogue(int(unit.panel + step / 4), unit.tile, first, unit.pair ? first + TILE : nullptr, int(i));
  }
}

// Three blocks: a panel's weights stay in registers 4, 5 and 6.
template <int SUMS>
OFQ_INLINE void multiply_resident(const uint8_t* x, const int32_t* start) {
  tile_load<SUMS>(start);
  tile_load<7>(x);
  tile_product<SUMS, 4, 7>();
  tile_load<3>(x + KIB);
  tile_product<SUMS, 5, 3>();
  tile_load<2>(x + 2 * KIB);
  tile_product<SUMS, 6, 2>();
}

template <class Epilogue>
OFQ_INLINE void multiply_three(const Linear& op, int panel, int panels, int part, const uint8_t* x, size_t x_tile, int tiles,
                               const Epilogue& epilogue) {
  const Weights& weights = op.weights;
  alignas(64) int32_t start[TILE], sums[2][2 * TILE];
  int own = 0;
  Unit before{};
  for (int p = panel; p < panel + panels; p++) {
    const int8_t* w = weights.tiles.data() + (int64_t(p) * weights.parts + part) * 3 * KIB;
    spread(weights.start.data() + (int64_t(part) * weights.panels + p) * PANEL, start);
    tile_load<4>(w);
    tile_load<5>(w + KIB);
    tile_load<6>(w + 2 * KIB);
    for (int t = 0; t < tiles; t += 2) {
      const bool pair = t + 1 < tiles;
      multiply_resident<0>(x + t * x_tile, start);
      if (Epilogue::LIGHT) finish(before, 0, 2, epilogue);
      tile_store<0>(sums[own]);
      if (pair) multiply_resident<1>(x + (t + 1) * x_tile, start);
      finish(before, Epilogue::LIGHT ? 2 : 0, 4, epilogue);
      if (pair) tile_store<1>(sums[own] + TILE);
      before = {p, t, pair, sums[own], 4};
      own ^= 1;
    }
  }
  finish(before, 0, 4, epilogue);
}

// Two panels x N tiles in registers 0 to 3, [panel][tile]. Two panels of weights and of starts lie w_panel bytes and start_panel sums apart,
// tiles of codes and of starts x_tile bytes and start_tile sums; between(k) follows the first products of block k.
template <int N, class Between>
OFQ_INLINE void multiply_square(const int8_t* w, int64_t w_panel, const uint8_t* x, int64_t x_tile, int blocks, const int32_t* start,
                                int start_panel, int start_tile, int32_t* sums, const Between& between) {
  tile_load<0>(start);
  if (N > 1) tile_load<1>(start + start_tile);
  tile_load<2>(start + start_panel);
  if (N > 1) tile_load<3>(start + start_panel + start_tile);
  for (int k = 0; k < blocks; k++, w += KIB, x += KIB) {
    tile_load<4>(w);
    tile_load<6>(x);
    tile_product<0, 4, 6>();
    if (N > 1) {
      tile_load<7>(x + x_tile);
      tile_product<1, 4, 7>();
    }
    between(k);
    tile_load<5>(w + w_panel);
    tile_product<2, 5, 6>();
    if (N > 1) tile_product<3, 5, 7>();
  }
  tile_store<0>(sums);
  if (N > 1) tile_store<1>(sums + TILE);
  tile_store<2>(sums + 2 * TILE);
  if (N > 1) tile_store<3>(sums + 3 * TILE);
}

// Two panels, in as many passes over parts of the inputs as keep a square's operands in L1; between passes the sums of all units wait.
template <class Epilogue>
OFQ_INLINE void multiply_squares(const Linear& op, int panel, int part, const uint8_t* x, size_t x_tile, int tiles,
                                 const Epilogue& epilogue) {
  const Weights& weights = op.weights;
  const int64_t w_panel = int64_t(weights.parts) * weights.blocks * KIB;
  const int8_t* w = weights.tiles.data() + panel * w_panel + int64_t(part) * weights.blocks * KIB;
  alignas(64) int32_t start[2][TILE], sums[CHUNK / 2][4 * TILE];
  for (int p = 0; p < 2; p++) spread(weights.start.data() + (int64_t(part) * weights.panels + panel + p) * PANEL, start[p]);
  const int passes = int(ceil_div(weights.blocks, L1_BLOCKS));
  Unit before{};
  for (int pass = 0; pass < passes; pass++) {
    const int from = weights.blocks * pass / passes, blocks = weights.blocks * (pass + 1) / passes - from;
    const unsigned due = Epilogue::LIGHT ? unsigned(ceil_div(8, blocks)) : 0;  // steps of the epilogue in a block
    const auto between = [&](unsigned k) __attribute__((always_inline)) { finish(before, k * due, (k + 1) * due, epilogue); };
    for (int t = 0; t < tiles; t += 2) {
      const bool pair = t + 1 < tiles;
      int32_t* own = sums[passes > 1 ? t / 2 : t / 2 % 2];
      const int32_t* first = pass ? own : start[0];
      const int first_panel = pass ? 2 * TILE : TILE, first_tile = pass ? TILE : 0;
      if (pair) {
        multiply_square<2>(w + from * KIB, w_panel, x + t * x_tile + from * KIB, x_tile, blocks, first, first_panel, first_tile, own, between);
      } else {
        multiply_square<1>(w + from * KIB, w_panel, x + t * x_tile + from * KIB, x_tile, blocks, first, first_panel, first_tile, own, between);
      }
      if (pass + 1 < passes) continue;
      if (!Epilogue::LIGHT) finish(before, 0, 8, epilogue);
      before = {panel, t, pair, own, 8};
    }
  }
  finish(before, 0, 8, epilogue);
}

// As in by_panel.h.
template <class Epilogue>
static __attribute__((noinline)) void multiply(const Linear& op, int panel, int part, const uint8_t* x, size_t x_tile, int tokens,
                                               Epilogue epilogue) {
  const Weights& weights = op.weights;
  const int tiles = int(tiles_of(tokens));
  const int panels = weights.panels - panel < PANELS ? 1 : PANELS;
  const uint8_t* own_x = x + int64_t(part) * weights.blocks * KIB;
  if (!weights.wide && weights.blocks == 3) return multiply_three(op, panel, panels, part, own_x, x_tile, tiles, epilogue);
  if (!weights.wide && panels == 2) return multiply_squares(op, panel, part, own_x, x_tile, tiles, epilogue);
  alignas(64) int32_t sums[CHUNK * TILE];
  for (int p = panel; p < panel + panels; p++) {
    panel_sums(op, p, part, x, x_tile, tokens, sums);
    finish_panel(p, tiles, sums, epilogue);
  }
}

// Attention. Products and passes over the scores stand beside one another: those of the values with the codes p of the tile before beside
// the powers, those that make the next tile's scores beside the codes, which take the old ones away.

// One panel; codes stay in register 5 where they are one block.
template <class Code>
OFQ_INLINE void multiply_panel(const int8_t* w, const uint8_t* x, int blocks, bool resident, int32_t* sums) {
  tile_zero<7>();
  for (int k = 0; k < blocks; k++) {
    tile_load<4>(w + k * KIB);
    if (!resident) tile_load<5>(x + k * KIB);
    tile_product<7, 4, 5, Code>();
  }
  tile_store<7>(sums);
}

// Block k of up to four panels of values, whose sums are in registers 0 to 3.
OFQ_INLINE void add_values(const HeadPanels& values, const uint8_t* p, int k) {
  const int64_t panel = ceil_div(values.lines, 16) * KIB;
  const int8_t* w = values.w + k * KIB;
  if (k == 0) {
    tile_zero<0>();
    tile_zero<1>();
    tile_zero<2>();
    tile_zero<3>();
  }
  tile_load<6>(p + k * KIB);
  tile_load<4>(w);
  tile_product<0, 4, 6>();
  if (values.panels < 2) return;
  tile_load<7>(w + panel);
  tile_product<1, 7, 6>();
  if (values.panels < 3) return;
  tile_load<4>(w + 2 * panel);
  tile_product<2, 4, 6>();
  if (values.panels < 4) return;
  tile_load<7>(w + 3 * panel);
  tile_product<3, 7, 6>();
}

// Stores what add_values summed, and the sums of further panels.
OFQ_INLINE void store_values(const HeadPanels& values, const uint8_t* p) {
  const int blocks = int(ceil_div(values.lines, 16));
  tile_store<0>(values.sums);
  if (values.panels > 1) tile_store<1>(values.sums + TILE);
  if (values.panels > 2) tile_store<2>(values.sums + 2 * TILE);
  if (values.panels > 3) tile_store<3>(values.sums + 3 * TILE);
  for (int n = 4; n < values.panels; n++)
    multiply_panel<uint8_t>(values.w + int64_t(n) * blocks * KIB, p, blocks, false, values.sums + n * TILE);
}

// As in by_panel.h.
template <class Powers, class Codes, class Finish>
OFQ_INLINE void attend(const HeadPanels& keys, const HeadPanels& values, const uint8_t* q, size_t q_tile, int, const uint8_t* p, uint8_t* room,
                       int from, int to, const Powers& powers, const Codes& codes, const Finish& finish) {
  const int key_blocks = int(ceil_div(keys.lines, 16)), value_blocks = int(ceil_div(values.lines, 16)), bytes = keys.lines * LINE;
  const bool resident = key_blocks == 1, copied = keys.zero || keys.lines % 16;
  const uint8_t* x = nullptr;
  // Codes with an offset are copied without it, so that sums start at 0; so are those that end within a block.
  const auto take_queries = [&](int t) __attribute__((always_inline)) {
    x = q + t * q_tile;
    if (copied) {
      for (int i = 0; i < bytes; i++) room[i] = uint8_t(x[i] - keys.zero);
      x = room;
    }
    if (resident) tile_load<5>(x);
  };
  const auto score = [&](int m) __attribute__((always_inline)) {
    const int8_t* w = keys.w + int64_t(m) * key_blocks * KIB;
    if (keys.zero) {
      multiply_panel<int8_t>(w, x, key_blocks, resident, keys.sums + m * TILE);
    } else {
      multiply_panel<uint8_t>(w, x, key_blocks, resident, keys.sums + m * TILE);
    }
  };
  std::memset(room + bytes, 0, key_blocks * KIB - bytes);
  take_queries(from);
  for (int m = 0; m < keys.panels; m++) score(m);
  for (int t = from; t < to; t++) {
    powers(t, [&](int k) __attribute__((always_inline)) {
      if (t > from && k < value_blocks) add_values(values, p, k);
    });
    if (t > from) {
      store_values(values, p);
      finish(t - 1);
    }
    if (t + 1 < to) take_queries(t + 1);
    codes(t, [&](int m) __attribute__((always_inline)) {
      if (t + 1 < to) score(m);
    });
  }
  for (int k = 0; k < value_blocks; k++) add_values(values, p, k);
  store_values(values, p);
  finish(to - 1);
}
