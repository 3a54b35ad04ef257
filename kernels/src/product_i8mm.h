// The product of a panel of weights with tiles of codes, by NEON's products of int8 matrices: 2 tokens x 8 inputs x 2 channels each.
#pragma once

// 2 P channels of half a tile in registers; `lines` groups of four inputs, two of them a step.
template <int P>
static __attribute__((noinline)) void sum_in_registers(const int8_t* w, int lines, const uint8_t* x, const int32_t* start, int32_t* sums) {
  static const uint8_t none[LINE / 2] = {};  // stands in for the second line of a last step
  int32x4_t sum[P][4];                       // token 0 of both channels, token 1 of both
#pragma GCC unroll 4
  for (int p = 0; p < P; p++)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) sum[p][i] = vcombine_s32(vld1_s32(start + 2 * p), vld1_s32(start + 2 * p));
  for (int line = 0; line < lines; line += 2, x += 2 * LINE) {
    const uint8_t* next = line + 1 < lines ? x + LINE : none;
    uint8x16_t codes[4];
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
      const uint32x4_t low = vreinterpretq_u32_u8(vld1q_u8(x + 16 * i)), high = vreinterpretq_u32_u8(vld1q_u8(next + 16 * i));
      codes[2 * i] = vreinterpretq_u8_u32(vzip1q_u32(low, high));
      codes[2 * i + 1] = vreinterpretq_u8_u32(vzip2q_u32(low, high));
    }
    const int8_t* own = w + line / 16 * PANEL * BLOCK + line % 16 * 4;
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) {
      const int8x16_t weights = vcombine_s8(vld1_s8(own + 2 * p * BLOCK), vld1_s8(own + (2 * p + 1) * BLOCK));
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) sum[p][i] = vusmmlaq_s32(sum[p][i], codes[i], weights);
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; p++)
#pragma GCC unroll 2
    for (int i = 0; i < 4; i += 2) {
      vst1q_s32(sums + 2 * p * LANES + 2 * i, vuzp1q_s32(sum[p][i], sum[p][i + 1]));
      vst1q_s32(sums + (2 * p + 1) * LANES + 2 * i, vuzp2q_s32(sum[p][i], sum[p][i + 1]));
    }
}

// sums int32 [tiles][16 channels][16 tokens] = start[channel] + weights x codes; `tokens` of them are read
static void product(const int8_t* w, int lines, int, int, const uint8_t* x, size_t x_tile, int tokens, const int32_t* start, int32_t* sums) {
  for (int token = 0; token < tokens; token += LANES / 2) {  // half a tile at a time
    const int t = token / LANES, lane = token % LANES;
    for (int r = 0; r < PANEL; r += 8)
      sum_in_registers<4>(w + r * BLOCK, lines, x + t * x_tile + 4 * lane, start + r, sums + (t * PANEL + r) * LANES + lane);
  }
}
