// The product of a panel of weights with tiles of codes, on the tile registers of tiles_amx.h or tiles_emulated.h: weights are the rows,
// codes the columns.
#pragma once

constexpr int KIB = PANEL * BLOCK;  // bytes of a block of weights, and of the codes that it meets

// int32 [16 channels][16 tokens], the same for all tokens
OFQ_INLINE void spread(const int32_t* start, int32_t* sums) {
  for (int c = 0; c < PANEL; c++) store(sums + c * LANES, set(start[c]));
}

// sums int32 [tiles][16 channels][16 tokens] = start[channel] + weights x codes; whole blocks of codes are read
static __attribute__((noinline)) void product(const int8_t* w, int lines, int, int, const uint8_t* x, size_t x_tile, int tokens,
                                              const int32_t* start, int32_t* sums) {
  const int64_t bytes = ceil_div(lines, 16) * KIB;
  alignas(64) int32_t first[TILE];
  spread(start, first);
  for (int t = 0; t < tiles_of(tokens); t++, x += x_tile, sums += TILE) {
    tile_load<0>(first);
    for (int64_t k = 0; k < bytes; k += KIB) {
      tile_load<4>(w + k);
      tile_load<6>(x + k);
      tile_product<0, 4, 6>();
    }
    tile_store<0>(sums);
  }
}
