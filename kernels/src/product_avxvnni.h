// The product of a panel of weights with tiles of codes, by AVX-VNNI: codes are the vectors, weights the broadcast dwords.
#pragma once

// See product_avx2.h.
typedef int32_t Sums __attribute__((vector_size(32)));

OFQ_INLINE Sums add_fours(Sums sum, __m256i codes, __m256i weights) {
#ifdef __AVXVNNI__
  return (Sums)_mm256_dpbusd_avx_epi32((__m256i)sum, codes, weights);
#else  // the same instruction of AVX-512, where this file is tested without AVX-VNNI
  return (Sums)_mm256_dpbusd_epi32((__m256i)sum, codes, weights);
#endif
}

// R channels of a tile in registers; `lines` groups of four inputs.
template <int R>
static __attribute__((noinline)) void sum_in_registers(const int8_t* w, int lines, const uint8_t* x, const int32_t* start, int32_t* sums) {
  Sums sum[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = (Sums)_mm256_set1_epi32(start[r]);
  for (; lines > 0; lines -= 16, w += PANEL * BLOCK) {
    const int steps = lines < 16 ? lines : 16;
#pragma GCC unroll 1
    for (int step = 0; step < steps; step++, x += LINE) {
      const __m256i codes[2] = {load_half(x), load_half(x + 32)};
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const __m256i weights = broadcast_four(w + r * BLOCK + 4 * step);
        sum[r][0] = add_fours(sum[r][0], codes[0], weights);
        sum[r][1] = add_fours(sum[r][1], codes[1], weights);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) store(sums + r * LANES, I{{(__m256i)sum[r][0], (__m256i)sum[r][1]}});
}

// sums int32 [tiles][16 channels][16 tokens] = start[channel] + weights x codes; `tokens` of them are read
static void product(const int8_t* w, int lines, int, int, const uint8_t* x, size_t x_tile, int tokens, const int32_t* start, int32_t* sums) {
  for (int t = 0; t < tiles_of(tokens); t++, x += x_tile, sums += PANEL * LANES) {
    sum_in_registers<6>(w, lines, x, start, sums);
    sum_in_registers<5>(w + 6 * BLOCK, lines, x, start + 6, sums + 6 * LANES);
    sum_in_registers<5>(w + 11 * BLOCK, lines, x, start + 11, sums + 11 * LANES);
  }
}
