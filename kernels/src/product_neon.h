// The product of a panel of weights with tiles of codes, by NEON's dot products: codes are the vectors, weights the lanes.
#pragma once

// Codes are unsigned, the dot product is not: codes above 127 are read less 128, and `start` makes up for it.
template <bool LARGE>
OFQ_INLINE int8x16_t load_codes(const uint8_t* x) {
  const uint8x16_t codes = vld1q_u8(x);
  return vreinterpretq_s8_u8(LARGE ? veorq_u8(codes, vdupq_n_u8(128)) : codes);
}

template <bool LARGE, int LANE, int R, int V>
OFQ_INLINE void add_line(int32x4_t (&sum)[R][V], const int8x16_t (&weights)[R], const uint8_t* x) {
  int8x16_t codes[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; v++) codes[v] = load_codes<LARGE>(x + 16 * v);
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) sum[r][v] = vdotq_laneq_s32(sum[r][v], codes[v], weights[r], LANE);
}

// R channels of V times 4 tokens in registers; `lines` groups of four inputs, four of them a register of weights.
template <bool LARGE, int R, int V>
static __attribute__((noinline)) void sum_in_registers(const int8_t* w, int lines, const uint8_t* x, const int32_t* start, int32_t* sums) {
  int32x4_t sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) sum[r][v] = vdupq_n_s32(start[r]);
  int line = 0;
  for (; line + 4 <= lines; line += 4, x += 4 * LINE) {
    const int8_t* own = w + line / 16 * PANEL * BLOCK + line % 16 * 4;
    int8x16_t weights[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) weights[r] = vld1q_s8(own + r * BLOCK);
    add_line<LARGE, 0>(sum, weights, x);
    add_line<LARGE, 1>(sum, weights, x + LINE);
    add_line<LARGE, 2>(sum, weights, x + 2 * LINE);
    add_line<LARGE, 3>(sum, weights, x + 3 * LINE);
  }
  for (; line < lines; line++, x += LINE) {
    int8x16_t weights[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      int32_t four;
      std::memcpy(&four, w + line / 16 * PANEL * BLOCK + r * BLOCK + line % 16 * 4, 4);
      weights[r] = vreinterpretq_s8_s32(vdupq_n_s32(four));
    }
    add_line<LARGE, 0>(sum, weights, x);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) vst1q_s32(sums + r * LANES + 4 * v, v < V ? sum[r][v] : vdupq_n_s32(0));
}

template <bool LARGE>
static void sum_tiles(const int8_t* w, int lines, const uint8_t* x, size_t x_tile, int tokens, const int32_t* start, int32_t* sums) {
  for (; tokens > 0; tokens -= LANES, x += x_tile, sums += TILE)
    if (tokens <= LANES / 2) {
      for (int r = 0; r < PANEL; r += 8) sum_in_registers<LARGE, 8, 2>(w + r * BLOCK, lines, x, start + r, sums + r * LANES);
    } else {
      for (int r = 0; r < PANEL; r += 4) sum_in_registers<LARGE, 4, 4>(w + r * BLOCK, lines, x, start + r, sums + r * LANES);
    }
}

// sums int32 [tiles][16 channels][16 tokens] = start[channel] + weights x codes; `tokens` of them are read
static void product(const int8_t* w, int lines, int largest_code, int, const uint8_t* x, size_t x_tile, int tokens, const int32_t* start,
                    int32_t* sums) {
  if (largest_code < 128) return sum_tiles<false>(w, lines, x, x_tile, tokens, start, sums);
  int32_t own[PANEL];
  for (int r = 0; r < PANEL; r++) {
    int32_t sum = 0;
    for (int line = 0; line < lines; line += 16) {
      const int8_t* weights = w + line / 16 * PANEL * BLOCK + r * BLOCK;
      for (int k = 0; k < 4 * (lines - line < 16 ? lines - line : 16); k++) sum += weights[k];
    }
    own[r] = start[r] + 128 * sum;
  }
  sum_tiles<true>(w, lines, x, x_tile, tokens, own, sums);
}
