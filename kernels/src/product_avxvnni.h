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

// R channels of V times 8 tokens in registers; `lines` groups of four inputs.
template <int R, int V>
static __attribute__((noinline)) void sum_in_registers(const int8_t* w, int lines, const uint8_t* x, const int32_t* start, int32_t* sums) {
  Sums sum[R][V];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) sum[r][v] = (Sums)_mm256_set1_epi32(start[r]);
  for (; lines > 0; lines -= 16, w += PANEL * BLOCK) {
    const int steps = lines < 16 ? lines : 16;
#pragma GCC unroll 1
    for (int step = 0; step < steps; step++, x += LINE) {
      __m256i codes[V];
#pragma GCC unroll 2
      for (int v = 0; v < V; v++) codes[v] = load_half(x + 32 * v);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const __m256i weights = broadcast_four(w + r * BLOCK + 4 * step);
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) sum[r][v] = add_fours(sum[r][v], codes[v], weights);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++) store_half(sums + r * LANES + 8 * v, v < V ? (__m256i)sum[r][v] : _mm256_setzero_si256());
}

// sums int32 [tiles][16 channels][16 tokens] = start[channel] + weights x codes; `tokens` of them are read
static void product(const int8_t* w, int lines, int, int, const uint8_t* x, size_t x_tile, int tokens, const int32_t* start, int32_t* sums) {
  for (; tokens > 0; tokens -= LANES, x += x_tile, sums += TILE) {
    const auto part = [&](auto sum, int r) { sum(w + r * BLOCK, lines, x, start + r, sums + r * LANES); };
    if (tokens <= LANES / 2) {
      part(sum_in_registers<8, 1>, 0);
      part(sum_in_registers<8, 1>, 8);
    } else {
      part(sum_in_registers<6, 2>, 0);
      part(sum_in_registers<5, 2>, 6);
      part(sum_in_registers<5, 2>, 11);
    }
  }
}
