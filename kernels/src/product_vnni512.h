// The product of a panel of weights with tiles of codes, by AVX512-VNNI: codes are the vectors, weights the broadcast dwords.
#pragma once

// R channels x N tiles of sums in registers; `lines` groups of four inputs.
template <int R, int N>
static __attribute__((noinline)) void sum_in_registers(
    const int8_t* w, int lines, const uint8_t* x, size_t x_tile, const int32_t* start, int32_t* sums) {
  I sum[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) sum[r][n] = set(start[r]);
  for (; lines > 0; lines -= 16, w += PANEL * BLOCK) {
    const int steps = lines < 16 ? lines : 16;
#pragma GCC unroll 1
    for (int step = 0; step < steps; step++, x += LINE) {
      I codes[N];
#pragma GCC unroll 4
      for (int n = 0; n < N; n++) codes[n] = _mm512_loadu_si512(x + n * x_tile);
#pragma GCC unroll 16
      for (int r = 0; r < R; r++) {
        int32_t four;
        std::memcpy(&four, w + r * BLOCK + 4 * step, 4);
        const I weights = _mm512_set1_epi32(four);
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) sum[r][n] = _mm512_dpbusd_epi32(sum[r][n], codes[n], weights);
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int n = 0; n < N; n++) store(sums + n * TILE + r * LANES, sum[r][n]);
}

// 16 channels x the first 8 tokens of a tile, in half vectors; sums of the others are 0.
static __attribute__((noinline)) void sum_half(const int8_t* w, int lines, const uint8_t* x, const int32_t* start, int32_t* sums) {
  __m256i sum[PANEL];
#pragma GCC unroll 16
  for (int r = 0; r < PANEL; r++) sum[r] = _mm256_set1_epi32(start[r]);
  for (; lines > 0; lines -= 16, w += PANEL * BLOCK) {
    const int steps = lines < 16 ? lines : 16;
#pragma GCC unroll 1
    for (int step = 0; step < steps; step++, x += LINE) {
      const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
#pragma GCC unroll 16
      for (int r = 0; r < PANEL; r++) {
        int32_t four;
        std::memcpy(&four, w + r * BLOCK + 4 * step, 4);
        sum[r] = _mm256_dpbusd_epi32(sum[r], codes, _mm256_set1_epi32(four));
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < PANEL; r++) store(sums + r * LANES, _mm512_zextsi256_si512(sum[r]));
}

// sums int32 [tiles][16 channels][16 tokens] = start[channel] + weights x codes; `tokens` of them are read
static void product(const int8_t* w, int lines, int, int, const uint8_t* x, size_t x_tile, int tokens, const int32_t* start, int32_t* sums) {
  constexpr int HALF = PANEL / 2;
  const int last = tokens % LANES, half = last && last <= LANES / 2, tiles = int(tiles_of(tokens)) - half;
  if (half) sum_half(w, lines, x + tiles * x_tile, start, sums + tiles * TILE);
  int t = 0;
  for (; tiles - t >= 3; t += 3) {
    sum_in_registers<HALF, 3>(w, lines, x + t * x_tile, x_tile, start, sums + t * TILE);
    sum_in_registers<HALF, 3>(w + HALF * BLOCK, lines, x + t * x_tile, x_tile, start + HALF, sums + t * TILE + HALF * LANES);
  }
  if (tiles - t == 2) {
    sum_in_registers<HALF, 2>(w, lines, x + t * x_tile, x_tile, start, sums + t * TILE);
    sum_in_registers<HALF, 2>(w + HALF * BLOCK, lines, x + t * x_tile, x_tile, start + HALF, sums + t * TILE + HALF * LANES);
  } else if (tiles - t == 1) {
    sum_in_registers<PANEL, 1>(w, lines, x + t * x_tile, x_tile, start, sums + t * TILE);
  }
}
