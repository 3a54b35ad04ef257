// The product of a panel of weights with tiles of codes, by AVX2: codes are the vectors, weights the broadcast dwords.
#pragma once

// Sums live in their own element types: GCC does not see through casts in a loop that a sum and its successor are one register, and spills.
typedef int16_t Sums16 __attribute__((vector_size(32)));
typedef int32_t Sums32 __attribute__((vector_size(32)));

// R channels of a tile in registers. The products of two neighbours are summed in 16 bits, and over all `lines` too: no sum may leave them.
// Where `start` is null, they are added to `sums`.
template <int R>
static __attribute__((noinline)) void sum_bytes(const int8_t* w, int lines, const uint8_t* x, const int32_t* start, int32_t* sums) {
  Sums16 sum[R][2] = {};
  for (; lines > 0; lines -= 16, w += PANEL * BLOCK) {
    const int steps = lines < 16 ? lines : 16;
#pragma GCC unroll 1
    for (int step = 0; step < steps; step++, x += LINE) {
      const __m256i codes[2] = {load_half(x), load_half(x + 32)};
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const __m256i weights = broadcast_four(w + r * BLOCK + 4 * step);
        sum[r][0] += (Sums16)_mm256_maddubs_epi16(codes[0], weights);
        sum[r][1] += (Sums16)_mm256_maddubs_epi16(codes[1], weights);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    const I wide = OFQ_BOTH(I, _mm256_madd_epi16((__m256i)sum[r][i], _mm256_set1_epi16(1)));
    store(sums + r * LANES, add(start ? set(start[r]) : load(sums + r * LANES), wide));
  }
}

// The same in numbers of 16 bits and sums of 32. `words` are the weights 0 and 2 of every four of a block, then 1 and 3, block by block.
template <int R>
static __attribute__((noinline)) void sum_words(const int16_t* words, int lines, const uint8_t* x, const int32_t* start, int32_t* sums) {
  Sums32 sum[R][2] = {};
  for (; lines > 0; lines -= 16, x += 16 * LINE) {
    const int steps = lines < 16 ? lines : 16;
#pragma GCC unroll 2
    for (int odd = 0; odd < 2; odd++, words += PANEL * BLOCK / 2)
#pragma GCC unroll 1
      for (int step = 0; step < steps; step++) {
        const __m256i byte = _mm256_set1_epi16(255);
        const I own = OFQ_BOTH(I, load_half(x + step * LINE + 32 * i));
        const I codes = OFQ_BOTH(I, odd ? _mm256_srli_epi16(own.v[i], 8) : _mm256_and_si256(own.v[i], byte));
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          const __m256i weights = broadcast_four(words + (r * BLOCK + 4 * step) / 2);
          sum[r][0] += (Sums32)_mm256_madd_epi16(codes.v[0], weights);
          sum[r][1] += (Sums32)_mm256_madd_epi16(codes.v[1], weights);
        }
      }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) {
    const I own = {{(__m256i)sum[r][0], (__m256i)sum[r][1]}};
    store(sums + r * LANES, add(start ? set(start[r]) : load(sums + r * LANES), own));
  }
}

// Weights are widened for up to BATCH blocks at a time, for all tiles.
static void product_of_words(const int8_t* w, int lines, const uint8_t* x, size_t x_tile, int tiles, const int32_t* start, int32_t* sums) {
  constexpr int BATCH = 4, SIZE = PANEL * BLOCK;
  alignas(64) int16_t words[BATCH * SIZE];
  for (; lines > 0; lines -= 16 * BATCH, w += BATCH * SIZE, x += 16 * BATCH * LINE, start = nullptr) {
    const int now = lines < 16 * BATCH ? lines : 16 * BATCH;
    for (int block = 0; block < ceil_div(now, 16); block++)
      for (int i = 0; i < SIZE; i += 32) {
        const __m256i bytes = load_half(w + block * SIZE + i);
        store_half(words + block * SIZE + i / 2, _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8));
        store_half(words + block * SIZE + (SIZE + i) / 2, _mm256_srai_epi16(bytes, 8));
      }
    for (int t = 0; t < tiles; t++) {
      const uint8_t* codes = x + t * x_tile;
      int32_t* own = sums + t * PANEL * LANES;
      sum_words<6>(words, now, codes, start, own);
      sum_words<5>(words + 6 * BLOCK / 2, now, codes, start ? start + 6 : nullptr, own + 6 * LANES);
      sum_words<5>(words + 11 * BLOCK / 2, now, codes, start ? start + 11 : nullptr, own + 11 * LANES);
    }
  }
}

// sums int32 [tiles][16 channels][16 tokens] = start[channel] + weights x codes; `tokens` of them are read
static void product(const int8_t* w, int lines, int largest_code, int largest_weight, const uint8_t* x, size_t x_tile, int tokens,
                    const int32_t* start, int32_t* sums) {
  const int tiles = int(tiles_of(tokens));
  // So many lines fit into sums of 16 bits; where they are few, words are faster.
  const int fit = largest_weight ? 32767 / (2 * largest_code * largest_weight) : lines;
  if (fit < 4) return product_of_words(w, lines, x, x_tile, tiles, start, sums);
  const int chunk = fit >= 16 ? fit / 16 * 16 : fit >= 8 ? 8 : 4;  // blocks, or a part of one that divides it
  for (int t = 0; t < tiles; t++, x += x_tile, sums += PANEL * LANES)
    for (int line = 0; line < lines; line += chunk) {
      const int now = lines - line < chunk ? lines - line : chunk;
      const int8_t* own = w + line / 16 * PANEL * BLOCK + line % 16 * 4;
      const uint8_t* codes = x + line * LINE;
      sum_bytes<6>(own, now, codes, line ? nullptr : start, sums);
      sum_bytes<5>(own + 6 * BLOCK, now, codes, line ? nullptr : start + 6, sums + 6 * LANES);
      sum_bytes<5>(own + 11 * BLOCK, now, codes, line ? nullptr : start + 11, sums + 11 * LANES);
    }
}
