// The sums of a panel of weights in a buffer, by `product`, and what an epilogue takes of them.
#pragma once

// The integers of a panel and part: where they lie, or widened in `room`.
static const int8_t* panel_of(const Weights& w, int panel, int part, int8_t* room) {
  constexpr int SIZE = PANEL * BLOCK, HALF = SIZE / 2;
  const int64_t first = (int64_t(panel) * w.parts + part) * w.blocks;
  if (w.packed.empty()) return w.tiles.data() + first * SIZE;
  const uint8_t* fields = w.packed.data() + first * HALF;
  const uint8_t offset = uint8_t(w.offset), twice = w.unit == 2 ? 255 : 0;
  for (int block = 0; block < w.blocks; block++, fields += HALF, room += SIZE)
    for (int i = 0; i < HALF; i++) {
      const uint8_t low = fields[i] & 15, high = fields[i] >> 4;
      room[i] = int8_t(low + (low & twice) - offset);
      room[HALF + i] = int8_t(high + (high & twice) - offset);
    }
  return room - int64_t(w.blocks) * SIZE;
}

// Sums of a panel and up to CHUNK tiles, `tokens` of whose lanes are read.
static void panel_sums(const Linear& op, int panel, int part, const uint8_t* x, size_t x_tile, int tokens, int32_t* sums) {
  const Weights& w = op.weights;
  const int lines = int(ceil_div(w.inputs, 4));
  int8_t* const room = w.packed.empty() ? nullptr : panel_room(int64_t(w.blocks) * PANEL * BLOCK);
  const int8_t* own = panel_of(w, panel, part, room);
  const int32_t* start = w.start.data() + (int64_t(part) * w.panels + panel) * PANEL;
  x += int64_t(part) * w.blocks * 16 * LINE;
  if (!w.wide) return product(own, lines, op.in.top(), w.largest, x, x_tile, tokens, start, sums);
  // integers 2 k + 1: twice the sum over k, and the sum of the codes
  alignas(64) static const int32_t none[PANEL] = {};
  product(own, lines, op.in.top(), w.largest, x, x_tile, tokens, none, sums);
  for (int t = 0; t < tiles_of(tokens); t++) {
    I codes = set(int32_t(0));
    for (int line = 0; line < lines; line++) codes = add_bytes(codes, x + t * x_tile + int64_t(line) * LINE);
    for (int c = 0; c < PANEL; c++) {
      int32_t* own_sums = sums + t * TILE + c * LANES;
      const I half = load(own_sums);
      store(own_sums, add(add(half, half), add(codes, set(start[c]))));
    }
  }
}

// An epilogue takes four channels, i .. i + 3, of two tiles at a time: one channel of both fills a vector of 16-bit numbers.
template <class Epilogue>
OFQ_INLINE void finish_panel(int panel, int tiles, const int32_t* sums, const Epilogue& epilogue) {
  for (int t = 0; t < tiles; t += 2)
    for (int i = 0; i < PANEL; i += 4)
      epilogue(panel, t, sums + t * TILE + i * LANES, t + 1 < tiles ? sums + (t + 1) * TILE + i * LANES : nullptr, i);
}
