// The product of a panel of weights with tiles of codes, in plain C++.
#pragma once

// sums int32 [tiles][16 channels][16 tokens] = start[channel] + weights x codes; `tokens` of them are read
static void product(const int8_t* w, int lines, int, int, const uint8_t* x, size_t x_tile, int tokens, const int32_t* start, int32_t* sums) {
  for (int t = 0; t < tiles_of(tokens); t++, x += x_tile, sums += TILE)
    for (int r = 0; r < PANEL; r++) {
      int32_t* own = sums + r * LANES;
      for (int i = 0; i < LANES; i++) own[i] = start[r];
      for (int line = 0; line < lines; line++) {
        const int8_t* four = w + line / 16 * PANEL * BLOCK + r * BLOCK + line % 16 * 4;
        const uint8_t* codes = x + line * LINE;
        for (int i = 0; i < LANES; i++)
          own[i] += four[0] * codes[4 * i] + four[1] * codes[4 * i + 1] + four[2] * codes[4 * i + 2] + four[3] * codes[4 * i + 3];
      }
    }
}
