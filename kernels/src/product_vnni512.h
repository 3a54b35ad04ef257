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

// sums int32 [tiles][16 channels][16 tokens] = start[channel] + weights x codes; see docs/kernels.md
static void product(const int8_t* w, int lines, int, int, const uint8_t* x, size_t x_tile, int tiles, const int32_t* start, int32_t* sums) {
  constexpr int HALF = PANEL / 2;
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
