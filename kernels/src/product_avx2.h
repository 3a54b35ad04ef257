// The product of a panel of weights with tiles of codes, by AVX2: codes are the vectors, weights the broadcast dwords.
#pragma once

// Sums live in their own element types: GCC does not see through casts in a loop that a sum and its successor are one register, and spills.
typedef int16_t Sums16 __attribute__((vector_size(32)));
typedef int32_t Sums32 __attribute__((vector_size(32)));

// R channels of V times 8 tokens in registers. The products of two neighbours are summed in 16 bits, and over all `lines` too: no sum may
// leave them. Where `start` is null, they are added to `sums`.
template <int R, int V>
static __attribute__((noinline)) void sum_bytes(const int8_t* w, int lines, const uint8_t* x, const int32_t* start, int32_t* sums) {
  Sums16 sum[R][V] = {};
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
        for (int v = 0; v < V; v++) sum[r][v] += (Sums16)_mm256_maddubs_epi16(codes[v], weights);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      int32_t* own = sums + r * LANES + 8 * v;
      const __m256i wide = _mm256_madd_epi16((__m256i)sum[r][v], _mm256_set1_epi16(1));
      store_half(own, _mm256_add_epi32(start ? _mm256_set1_epi32(start[r]) : load_half(own), wide));
    }
}

// The same in numbers of 16 bits and sums of 32. `words` are the weights 0 and 2 of every four of a block, then 1 and 3, block by block.
template <int R, int V>
static __attribute__((noinline)) void sum_words(const int8_t* words, int lines, const uint8_t* x, const int32_t* start, int32_t* sums) {
  Sums32 sum[R][V] = {};
  for (; lines > 0; lines -= 16, x += 16 * LINE) {
    const int steps = lines < 16 ? lines : 16;
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; odd++, words += PANEL * BLOCK)
#pragma GCC unroll 1
      for (int step = 0; step < steps; step++) {
        __m256i codes[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; v++) {
          const __m256i bytes = load_half(x + step * LINE + 32 * v);
          codes[v] = odd ? _mm256_srli_epi16(bytes, 8) : _mm256_and_si256(bytes, _mm256_set1_epi16(255));
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          const __m256i weights = broadcast_four(words + r * BLOCK + 4 * step);
#pragma GCC unroll 2
          for (int v = 0; v < V; v++) sum[r][v] += (Sums32)_mm256_madd_epi16(codes[v], weights);
        }
      }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 2
    for (int v = 0; v < V; v++) {
      int32_t* own = sums + r * LANES + 8 * v;
      store_half(own, _mm256_add_epi32(start ? _mm256_set1_epi32(start[r]) : load_half(own), (__m256i)sum[r][v]));
    }
}

// Blocks of weights as words, in the order that sum_words reads.
static void widen(const int8_t* w, int blocks, int8_t* words) {
  constexpr int SIZE = PANEL * BLOCK;
  for (int block = 0; block < blocks; block++, w += SIZE, words += 2 * SIZE)
    for (int i = 0; i < SIZE; i += 32) {
      const __m256i bytes = load_half(w + i);
      store_half(words + i, _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8));
      store_half(words + SIZE + i, _mm256_srai_epi16(bytes, 8));
    }
}

// All channels of a tile; `half`: only its first 8 tokens are read.
template <bool WORDS>
static void sum_tile(const int8_t* w, int lines, const uint8_t* x, bool half, const int32_t* start, int32_t* sums) {
  constexpr auto wide6 = WORDS ? sum_words<6, 2> : sum_bytes<6, 2>, wide5 = WORDS ? sum_words<5, 2> : sum_bytes<5, 2>;
  constexpr auto narrow8 = WORDS ? sum_words<8, 1> : sum_bytes<8, 1>;
  const auto part = [&](auto sum, int r) { sum(w + r * BLOCK, lines, x, start ? start + r : nullptr, sums + r * LANES); };
  if (half) {
    part(narrow8, 0);
    part(narrow8, 8);
    for (int r = 0; r < PANEL; r++) store_half(sums + r * LANES + 8, _mm256_setzero_si256());
  } else {
    part(wide6, 0);
    part(wide5, 6);
    part(wide5, 11);
  }
}

// sums int32 [tiles][16 channels][16 tokens] = start[channel] + weights x codes; `tokens` of them are read
static void product(const int8_t* w, int lines, int largest_code, int largest_weight, const uint8_t* x, size_t x_tile, int tokens,
                    const int32_t* start, int32_t* sums) {
  // So many lines fit into sums of 16 bits: whole blocks, or a part of one that divides it. Where they are few, words are faster; of
  // those, weights are widened for some blocks at a time.
  const int fit = largest_weight ? 32767 / (2 * largest_code * largest_weight) : lines;
  const bool words = fit < 4;
  const auto sum = words ? sum_tile<true> : sum_tile<false>;
  constexpr int BATCH = 4, SIZE = PANEL * BLOCK;
  alignas(64) int8_t wide[2 * BATCH * SIZE];
  const int chunk = words ? 16 * BATCH : fit >= 16 ? fit / 16 * 16 : fit >= 8 ? 8 : 4;
  for (int line = 0; line < lines; line += chunk) {
    const int now = lines - line < chunk ? lines - line : chunk;
    const int8_t* own = w + line / 16 * SIZE + line % 16 * 4;
    if (words) widen(own, int(ceil_div(now, 16)), wide);
    for (int t = 0; t * LANES < tokens; t++)
      sum(words ? wide : own, now, x + t * x_tile + line * LINE, tokens - t * LANES <= LANES / 2, line ? nullptr : start, sums + t * TILE);
  }
}
