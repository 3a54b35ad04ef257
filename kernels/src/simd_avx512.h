// Vectors of the 16 tokens of a tile: AVX-512 (F, BW, VL, DQ; VNNI for sums of bytes).
#pragma once
#include <immintrin.h>

using F = __m512;   // 16 floats
using I = __m512i;  // 16 int32
using W = __m512i;  // 32 int16: two tiles of one channel, in the order that pack16 leaves

OFQ_INLINE F load(const float* p) { return _mm512_loadu_ps(p); }
OFQ_INLINE void store(float* p, F v) { _mm512_storeu_ps(p, v); }
OFQ_INLINE F set(float v) { return _mm512_set1_ps(v); }
OFQ_INLINE F add(F a, F b) { return _mm512_add_ps(a, b); }
OFQ_INLINE F sub(F a, F b) { return _mm512_sub_ps(a, b); }
OFQ_INLINE F mul(F a, F b) { return _mm512_mul_ps(a, b); }
OFQ_INLINE F div(F a, F b) { return _mm512_div_ps(a, b); }
OFQ_INLINE F sqrt(F a) { return _mm512_sqrt_ps(a); }
OFQ_INLINE F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
OFQ_INLINE F max(F a, F b) { return _mm512_max_ps(a, b); }  // b where a is NaN
OFQ_INLINE F min(F a, F b) { return _mm512_min_ps(a, b); }
OFQ_INLINE F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
OFQ_INLINE F to_float(I a) { return _mm512_cvtepi32_ps(a); }
OFQ_INLINE I to_int(F a) { return _mm512_cvtps_epi32(a); }  // half to even; the least int beyond the range and for NaN

OFQ_INLINE I load(const int32_t* p) { return _mm512_loadu_si512(p); }
OFQ_INLINE void store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
OFQ_INLINE I set(int32_t v) { return _mm512_set1_epi32(v); }
OFQ_INLINE I add(I a, I b) { return _mm512_add_epi32(a, b); }
OFQ_INLINE I sub(I a, I b) { return _mm512_sub_epi32(a, b); }
OFQ_INLINE I mul(I a, int32_t b) { return _mm512_mullo_epi32(a, _mm512_set1_epi32(b)); }
OFQ_INLINE I max(I a, I b) { return _mm512_max_epi32(a, b); }
OFQ_INLINE I min(I a, I b) { return _mm512_min_epi32(a, b); }
template <int N>
OFQ_INLINE I shift_right(I a) { return _mm512_srli_epi32(a, N); }

// v * 2^n for whole n in [-120, 0]
OFQ_INLINE F scale_by_power(F v, F n) { return _mm512_scalef_ps(v, n); }

// Tables of 32 and 16 floats by the low bits of an index.
struct Table32 {
  F low, high;
  explicit Table32(const float* p) : low(_mm512_loadu_ps(p)), high(_mm512_loadu_ps(p + 16)) {}
};
struct Table16 {
  F values;
  explicit Table16(const float* p) : values(_mm512_loadu_ps(p)) {}
};
OFQ_INLINE F look_up(const Table32& t, I index) { return _mm512_permutex2var_ps(t.low, index, t.high); }
OFQ_INLINE F look_up(const Table16& t, I index) { return _mm512_permutexvar_ps(index, t.values); }

// 4 channels x 16 tokens of codes without their offset -> a line of bytes, cut to 0 .. top
OFQ_INLINE I order_line() { return _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)); }
OFQ_INLINE void store_line(uint8_t* line, I a, I b, I c, I d, int zero, int top) {
  const I offset = _mm512_set1_epi16(static_cast<short>(zero));
  const I ab = _mm512_adds_epi16(_mm512_packs_epi32(a, b), offset), cd = _mm512_adds_epi16(_mm512_packs_epi32(c, d), offset);
  const I bytes = _mm512_min_epu8(_mm512_packus_epi16(ab, cd), _mm512_set1_epi8(static_cast<char>(top)));
  _mm512_storeu_si512(line, _mm512_shuffle_epi8(bytes, order_line()));
}
// 16 codes as bytes
OFQ_INLINE void store_bytes(uint8_t* out, I v, int zero, int top) {
  v = min(max(add(v, set(int32_t(zero))), set(int32_t(0))), set(int32_t(top)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(v));
}
// sums[token] + the four bytes of a line
OFQ_INLINE I add_bytes(I sums, const uint8_t* line) {
  return _mm512_dpbusd_epi32(sums, _mm512_loadu_si512(line), _mm512_set1_epi8(1));
}
// The four channels of a line as floats, without their offset.
OFQ_INLINE F channel(const uint8_t* line, int which, int zero) {
  const I bytes = _mm512_and_si512(_mm512_srl_epi32(_mm512_loadu_si512(line), _mm_cvtsi32_si128(8 * which)), _mm512_set1_epi32(255));
  return to_float(sub(bytes, set(int32_t(zero))));
}

// Two tiles of one channel in 16 bits.
OFQ_INLINE W pack16(I a, I b) { return _mm512_packs_epi32(a, b); }
OFQ_INLINE W zero16() { return _mm512_setzero_si512(); }
OFQ_INLINE W cut(W x, int most) { return _mm512_min_epi16(x, _mm512_set1_epi16(static_cast<short>(most))); }
OFQ_INLINE W count_at_least(W count, W x, const int16_t* threshold) {
  return _mm512_mask_add_epi16(count, _mm512_cmpge_epi16_mask(x, _mm512_set1_epi16(*threshold)), count, _mm512_set1_epi16(1));
}
OFQ_INLINE W count_below(W count, W x, const int16_t* threshold) {
  return _mm512_mask_add_epi16(count, _mm512_cmplt_epi16_mask(x, _mm512_set1_epi16(*threshold)), count, _mm512_set1_epi16(1));
}
constexpr bool HAS_TABLE16 = true;
OFQ_INLINE W by_table(W x, const int16_t* table) {  // Thresholds::table
  const W entry = _mm512_permutexvar_epi16(_mm512_srli_epi16(x, 11), _mm512_loadu_si512(table));
  return _mm512_srli_epi16(_mm512_add_epi16(x, entry), 11);
}
// 4 channels of two tiles -> a line each; the second may be null
OFQ_INLINE void store_lines(uint8_t* first, uint8_t* second, W a, W b, W c, W d) {
  const W ab = _mm512_or_si512(a, _mm512_slli_epi16(b, 8)), cd = _mm512_or_si512(c, _mm512_slli_epi16(d, 8));
  _mm512_storeu_si512(first, _mm512_unpacklo_epi16(ab, cd));
  if (second) _mm512_storeu_si512(second, _mm512_unpackhi_epi16(ab, cd));
}

// `lines` (at most 16) lines of 16 tokens -> 16 rows of 64 bytes, a token each, minus the offset; what is missing is 0.
OFQ_INLINE void transpose_lines(const uint8_t* x, int lines, int zero, int8_t* out) {
  const I offset = _mm512_set1_epi8(static_cast<char>(zero));
  I r[16], t[16];
  if (lines == 16) {
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) r[i] = _mm512_sub_epi8(_mm512_loadu_si512(x + i * LINE), offset);
  } else {
    for (int i = 0; i < 16; i++) r[i] = i < lines ? _mm512_sub_epi8(_mm512_loadu_si512(x + i * LINE), offset) : _mm512_setzero_si512();
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {  // r[4 i + j]: lines 4 i .. 4 i + 3 of tokens j, 4 + j, 8 + j, 12 + j
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    const I low01 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x44), low23 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x44);
    const I high01 = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xee), high23 = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xee);
    _mm512_storeu_si512(out + j * BLOCK, _mm512_shuffle_i32x4(low01, low23, 0x88));
    _mm512_storeu_si512(out + (4 + j) * BLOCK, _mm512_shuffle_i32x4(low01, low23, 0xdd));
    _mm512_storeu_si512(out + (8 + j) * BLOCK, _mm512_shuffle_i32x4(high01, high23, 0x88));
    _mm512_storeu_si512(out + (12 + j) * BLOCK, _mm512_shuffle_i32x4(high01, high23, 0xdd));
  }
}
// A line of 4 channels -> 16 bytes of each in rows that lie BLOCK apart, minus the offset.
OFQ_INLINE void split_line(const uint8_t* line, int zero, int8_t* out) {
  const I turn = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const I bytes = _mm512_sub_epi8(_mm512_loadu_si512(line), _mm512_set1_epi8(static_cast<char>(zero)));
  const I rows = _mm512_permutexvar_epi32(turn, _mm512_shuffle_epi8(bytes, order_line()));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_castsi512_si128(rows));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + BLOCK), _mm512_extracti32x4_epi32(rows, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * BLOCK), _mm512_extracti32x4_epi32(rows, 2));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 3 * BLOCK), _mm512_extracti32x4_epi32(rows, 3));
}
