// Vectors of the 16 tokens of a tile: NEON with dot products (ARMv8.2), four registers each.
#pragma once
#include <arm_neon.h>

struct F { float32x4_t v[4]; };  // 16 floats
struct I { int32x4_t v[4]; };    // 16 int32
struct W { int16x8_t v[4]; };    // 32 int16: two tiles of one channel

template <class V, class Function>
OFQ_INLINE V all(Function quarter) {
  return V{{quarter(0), quarter(1), quarter(2), quarter(3)}};
}
#define OFQ_ALL(V, expression) all<V>([&](int i) __attribute__((always_inline)) { return expression; })

OFQ_INLINE F load(const float* p) { return OFQ_ALL(F, vld1q_f32(p + 4 * i)); }
OFQ_INLINE void store(float* p, F a) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, a.v[i]);
}
OFQ_INLINE F set(float a) { return OFQ_ALL(F, (void(i), vdupq_n_f32(a))); }
OFQ_INLINE F add(F a, F b) { return OFQ_ALL(F, vaddq_f32(a.v[i], b.v[i])); }
OFQ_INLINE F sub(F a, F b) { return OFQ_ALL(F, vsubq_f32(a.v[i], b.v[i])); }
OFQ_INLINE F mul(F a, F b) { return OFQ_ALL(F, vmulq_f32(a.v[i], b.v[i])); }
OFQ_INLINE F div(F a, F b) { return OFQ_ALL(F, vdivq_f32(a.v[i], b.v[i])); }
OFQ_INLINE F sqrt(F a) { return OFQ_ALL(F, vsqrtq_f32(a.v[i])); }
OFQ_INLINE F fma(F a, F b, F c) { return OFQ_ALL(F, vfmaq_f32(c.v[i], a.v[i], b.v[i])); }
// b where a is NaN: the instructions for maximum and minimum would keep the NaN
OFQ_INLINE F max(F a, F b) { return OFQ_ALL(F, vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i])); }
OFQ_INLINE F min(F a, F b) { return OFQ_ALL(F, vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i])); }
OFQ_INLINE F round(F a) { return OFQ_ALL(F, vrndnq_f32(a.v[i])); }
OFQ_INLINE F to_float(I a) { return OFQ_ALL(F, vcvtq_f32_s32(a.v[i])); }
// Half to even; the least int beyond the range and for NaN, where the conversion alone would give the largest and 0.
OFQ_INLINE I to_int(F a) {
  return OFQ_ALL(I, vbslq_s32(vcltq_f32(a.v[i], vdupq_n_f32(2147483648.f)), vcvtnq_s32_f32(a.v[i]), vdupq_n_s32(INT32_MIN)));
}

OFQ_INLINE I load(const int32_t* p) { return OFQ_ALL(I, vld1q_s32(p + 4 * i)); }
OFQ_INLINE void store(int32_t* p, I a) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) vst1q_s32(p + 4 * i, a.v[i]);
}
OFQ_INLINE I set(int32_t a) { return OFQ_ALL(I, (void(i), vdupq_n_s32(a))); }
OFQ_INLINE I add(I a, I b) { return OFQ_ALL(I, vaddq_s32(a.v[i], b.v[i])); }
OFQ_INLINE I sub(I a, I b) { return OFQ_ALL(I, vsubq_s32(a.v[i], b.v[i])); }
OFQ_INLINE I mul(I a, int32_t b) { return OFQ_ALL(I, vmulq_n_s32(a.v[i], b)); }
OFQ_INLINE I max(I a, I b) { return OFQ_ALL(I, vmaxq_s32(a.v[i], b.v[i])); }
OFQ_INLINE I min(I a, I b) { return OFQ_ALL(I, vminq_s32(a.v[i], b.v[i])); }
template <int N>
OFQ_INLINE I shift_right(I a) { return OFQ_ALL(I, vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(a.v[i]), N))); }

// v * 2^n for whole n in [-120, 0]
OFQ_INLINE F scale_by_power(F v, F n) {
  return OFQ_ALL(F, vmulq_f32(v.v[i], vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.v[i]), vdupq_n_s32(127)), 23))));
}

// Tables of 32 and 16 floats by the low bits of an index: looked up byte by byte.
OFQ_INLINE uint8x16x4_t load_table(const void* p) {
  const uint8_t* bytes = static_cast<const uint8_t*>(p);
  return {{vld1q_u8(bytes), vld1q_u8(bytes + 16), vld1q_u8(bytes + 32), vld1q_u8(bytes + 48)}};
}
struct Table32 {
  uint8x16x4_t low, high;
  explicit Table32(const float* p) : low(load_table(p)), high(load_table(p + 16)) {}
};
struct Table16 {
  uint8x16x4_t values;
  explicit Table16(const float* p) : values(load_table(p)) {}
};
OFQ_INLINE uint8x16_t bytes_of_entry(int32x4_t index, int count) {
  const uint32x4_t entry = vandq_u32(vreinterpretq_u32_s32(index), vdupq_n_u32(count - 1));
  return vreinterpretq_u8_u32(vmlaq_n_u32(vdupq_n_u32(0x03020100), entry, 0x04040404));
}
OFQ_INLINE F look_up(const Table32& t, I index) {
  return all<F>([&](int i) __attribute__((always_inline)) {
    const uint8x16_t bytes = bytes_of_entry(index.v[i], 32);  // an index that the table lacks gives 0, or what was there before
    return vreinterpretq_f32_u8(vqtbx4q_u8(vqtbl4q_u8(t.low, bytes), t.high, vsubq_u8(bytes, vdupq_n_u8(64))));
  });
}
OFQ_INLINE F look_up(const Table16& t, I index) {
  return OFQ_ALL(F, vreinterpretq_f32_u8(vqtbl4q_u8(t.values, bytes_of_entry(index.v[i], 16))));
}

// 16 codes without their offset -> bytes, cut to 0 .. top
OFQ_INLINE uint8x16_t pack_bytes(I a, int zero, int top) {
  const int16x8_t offset = vdupq_n_s16(static_cast<int16_t>(zero));
  const int16x8_t low = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(a.v[0]), a.v[1]), offset);
  const int16x8_t high = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(a.v[2]), a.v[3]), offset);
  return vminq_u8(vqmovun_high_s16(vqmovun_s16(low), high), vdupq_n_u8(static_cast<uint8_t>(top)));
}
OFQ_INLINE void store_channels(uint8_t* line, uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
  const uint8x16x4_t channels = {{a, b, c, d}};  // named: clang's store is a macro
  vst4q_u8(line, channels);
}
// 4 channels x 16 tokens of codes without their offset -> a line of bytes, cut to 0 .. top
OFQ_INLINE void store_line(uint8_t* line, I a, I b, I c, I d, int zero, int top) {
  store_channels(line, pack_bytes(a, zero, top), pack_bytes(b, zero, top), pack_bytes(c, zero, top), pack_bytes(d, zero, top));
}
// 16 codes as bytes
OFQ_INLINE void store_bytes(uint8_t* out, I a, int zero, int top) { vst1q_u8(out, pack_bytes(a, zero, top)); }
// sums[token] + the four bytes of a line
OFQ_INLINE I add_bytes(I sums, const uint8_t* line) {
  return OFQ_ALL(I, vreinterpretq_s32_u32(vdotq_u32(vreinterpretq_u32_s32(sums.v[i]), vld1q_u8(line + 16 * i), vdupq_n_u8(1))));
}
// The four channels of a line as floats, without their offset.
OFQ_INLINE F channel(const uint8_t* line, int which, int zero) {
  return all<F>([&](int i) __attribute__((always_inline)) {
    const uint32x4_t four = vreinterpretq_u32_u8(vld1q_u8(line + 16 * i));
    const uint32x4_t byte = vandq_u32(vshlq_u32(four, vdupq_n_s32(-8 * which)), vdupq_n_u32(255));
    return vcvtq_f32_s32(vsubq_s32(vreinterpretq_s32_u32(byte), vdupq_n_s32(zero)));
  });
}

// Two tiles of one channel in 16 bits.
OFQ_INLINE W pack16(I a, I b) {
  const auto half = [](const I& tile, int i) __attribute__((always_inline)) { return vqmovn_high_s32(vqmovn_s32(tile.v[i]), tile.v[i + 1]); };
  return W{{half(a, 0), half(a, 2), half(b, 0), half(b, 2)}};
}
OFQ_INLINE W zero16() { return OFQ_ALL(W, (void(i), vdupq_n_s16(0))); }
OFQ_INLINE W cut(W x, int most) { return OFQ_ALL(W, vminq_s16(x.v[i], vdupq_n_s16(int16_t(most)))); }
// A comparison that holds is -1.
OFQ_INLINE W count_at_least(W count, W x, const int16_t* threshold) {
  return OFQ_ALL(W, vsubq_s16(count.v[i], vreinterpretq_s16_u16(vcgeq_s16(x.v[i], vdupq_n_s16(*threshold)))));
}
OFQ_INLINE W count_below(W count, W x, const int16_t* threshold) {
  return OFQ_ALL(W, vsubq_s16(count.v[i], vreinterpretq_s16_u16(vcltq_s16(x.v[i], vdupq_n_s16(*threshold)))));
}
constexpr bool HAS_TABLE16 = true;
OFQ_INLINE W by_table(W x, const int16_t* table) {  // Thresholds::table
  const uint8x16x4_t entries = load_table(table);
  return all<W>([&](int i) __attribute__((always_inline)) {
    const uint16x8_t own = vreinterpretq_u16_s16(x.v[i]);
    const uint8x16_t bytes = vreinterpretq_u8_u16(vmlaq_n_u16(vdupq_n_u16(0x0100), vshrq_n_u16(own, 11), 0x0202));
    return vreinterpretq_s16_u16(vshrq_n_u16(vaddq_u16(own, vreinterpretq_u16_u8(vqtbl4q_u8(entries, bytes))), 11));
  });
}
// 4 channels of two tiles -> a line each; the second may be null
OFQ_INLINE void store_lines(uint8_t* first, uint8_t* second, W a, W b, W c, W d) {
  const auto bytes = [](const W& codes, int i) __attribute__((always_inline)) {
    return vuzp1q_u8(vreinterpretq_u8_s16(codes.v[i]), vreinterpretq_u8_s16(codes.v[i + 1]));
  };
  store_channels(first, bytes(a, 0), bytes(b, 0), bytes(c, 0), bytes(d, 0));
  if (second) store_channels(second, bytes(a, 2), bytes(b, 2), bytes(c, 2), bytes(d, 2));
}

// `lines` (at most 16) lines of 16 tokens -> 16 rows of 64 bytes, a token each, minus the offset; what is missing is 0.
OFQ_INLINE void transpose_lines(const uint8_t* x, int lines, int zero, int8_t* out) {
  const uint8x16_t offset = vdupq_n_u8(static_cast<uint8_t>(zero));
  for (int line = 0; line < 16; line += 4)
    for (int token = 0; token < LANES; token += 4) {
      uint64x2_t pairs[4];  // lines 0 and 1 of tokens 0 and 2, and 1 and 3; then lines 2 and 3 of them
      for (int i = 0; i < 4; i += 2) {
        const auto four = [&](int n) __attribute__((always_inline)) {
          return line + n < lines ? vreinterpretq_u32_u8(vsubq_u8(vld1q_u8(x + (line + n) * LINE + 4 * token), offset)) : vdupq_n_u32(0);
        };
        const uint32x4_t upper = four(i), lower = four(i + 1);
        pairs[i] = vreinterpretq_u64_u32(vtrn1q_u32(upper, lower));
        pairs[i + 1] = vreinterpretq_u64_u32(vtrn2q_u32(upper, lower));
      }
      int8_t* to = out + token * BLOCK + 4 * line;
      vst1q_s8(to, vreinterpretq_s8_u64(vtrn1q_u64(pairs[0], pairs[2])));
      vst1q_s8(to + BLOCK, vreinterpretq_s8_u64(vtrn1q_u64(pairs[1], pairs[3])));
      vst1q_s8(to + 2 * BLOCK, vreinterpretq_s8_u64(vtrn2q_u64(pairs[0], pairs[2])));
      vst1q_s8(to + 3 * BLOCK, vreinterpretq_s8_u64(vtrn2q_u64(pairs[1], pairs[3])));
    }
}
// A line of 4 channels -> 16 bytes of each in rows that lie BLOCK apart, minus the offset.
OFQ_INLINE void split_line(const uint8_t* line, int zero, int8_t* out) {
  const uint8x16x4_t channels = vld4q_u8(line);
#pragma GCC unroll 4
  for (int c = 0; c < 4; c++) vst1q_s8(out + c * BLOCK, vreinterpretq_s8_u8(vsubq_u8(channels.val[c], vdupq_n_u8(static_cast<uint8_t>(zero)))));
}
