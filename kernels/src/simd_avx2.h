// Vectors of the 16 tokens of a tile: AVX2 with FMA, two registers each.
#pragma once
#include <immintrin.h>

struct F { __m256 v[2]; };   // 16 floats
struct I { __m256i v[2]; };  // 16 int32
struct W { __m256i v[2]; };  // 32 int16: two tiles of one channel, in the order that pack16 leaves

template <class V, class Function>
OFQ_INLINE V both(Function half) {
  return V{{half(0), half(1)}};
}
#define OFQ_BOTH(V, expression) both<V>([&](int i) __attribute__((always_inline)) { return expression; })

OFQ_INLINE __m256i load_half(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
OFQ_INLINE void store_half(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

OFQ_INLINE __m256i broadcast_four(const void* bytes) {
  int32_t four;
  std::memcpy(&four, bytes, 4);
  return _mm256_set1_epi32(four);
}

OFQ_INLINE F load(const float* p) { return OFQ_BOTH(F, _mm256_loadu_ps(p + 8 * i)); }
OFQ_INLINE void store(float* p, F a) { _mm256_storeu_ps(p, a.v[0]), _mm256_storeu_ps(p + 8, a.v[1]); }
OFQ_INLINE F set(float a) { return F{{_mm256_set1_ps(a), _mm256_set1_ps(a)}}; }
OFQ_INLINE F add(F a, F b) { return OFQ_BOTH(F, _mm256_add_ps(a.v[i], b.v[i])); }
OFQ_INLINE F sub(F a, F b) { return OFQ_BOTH(F, _mm256_sub_ps(a.v[i], b.v[i])); }
OFQ_INLINE F mul(F a, F b) { return OFQ_BOTH(F, _mm256_mul_ps(a.v[i], b.v[i])); }
OFQ_INLINE F div(F a, F b) { return OFQ_BOTH(F, _mm256_div_ps(a.v[i], b.v[i])); }
OFQ_INLINE F sqrt(F a) { return OFQ_BOTH(F, _mm256_sqrt_ps(a.v[i])); }
OFQ_INLINE F fma(F a, F b, F c) { return OFQ_BOTH(F, _mm256_fmadd_ps(a.v[i], b.v[i], c.v[i])); }
OFQ_INLINE F max(F a, F b) { return OFQ_BOTH(F, _mm256_max_ps(a.v[i], b.v[i])); }  // b where a is NaN
OFQ_INLINE F min(F a, F b) { return OFQ_BOTH(F, _mm256_min_ps(a.v[i], b.v[i])); }
OFQ_INLINE F round(F a) { return OFQ_BOTH(F, _mm256_round_ps(a.v[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }
OFQ_INLINE F to_float(I a) { return OFQ_BOTH(F, _mm256_cvtepi32_ps(a.v[i])); }
OFQ_INLINE I to_int(F a) { return OFQ_BOTH(I, _mm256_cvtps_epi32(a.v[i])); }  // half to even; the least int beyond the range and for NaN

OFQ_INLINE I load(const int32_t* p) { return OFQ_BOTH(I, load_half(p + 8 * i)); }
OFQ_INLINE void store(int32_t* p, I a) { store_half(p, a.v[0]), store_half(p + 8, a.v[1]); }
OFQ_INLINE I set(int32_t a) { return I{{_mm256_set1_epi32(a), _mm256_set1_epi32(a)}}; }
OFQ_INLINE I add(I a, I b) { return OFQ_BOTH(I, _mm256_add_epi32(a.v[i], b.v[i])); }
OFQ_INLINE I sub(I a, I b) { return OFQ_BOTH(I, _mm256_sub_epi32(a.v[i], b.v[i])); }
OFQ_INLINE I mul(I a, int32_t b) { return OFQ_BOTH(I, _mm256_mullo_epi32(a.v[i], _mm256_set1_epi32(b))); }
OFQ_INLINE I max(I a, I b) { return OFQ_BOTH(I, _mm256_max_epi32(a.v[i], b.v[i])); }
OFQ_INLINE I min(I a, I b) { return OFQ_BOTH(I, _mm256_min_epi32(a.v[i], b.v[i])); }
template <int N>
OFQ_INLINE I shift_right(I a) { return OFQ_BOTH(I, _mm256_srli_epi32(a.v[i], N)); }

// v * 2^n for whole n in [-120, 0]
OFQ_INLINE F scale_by_power(F v, F n) {
  const I exponent = add(to_int(n), set(int32_t(127)));
  return OFQ_BOTH(F, _mm256_mul_ps(v.v[i], _mm256_castsi256_ps(_mm256_slli_epi32(exponent.v[i], 23))));
}

// In each half of a register: bytes of 4 channels of 4 tokens, channel by channel <-> token by token.
OFQ_INLINE __m256i turn_four(__m256i v) {
  return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
}
// Codes without their offset -> bytes, cut to 0 .. top; channel by channel in each half
OFQ_INLINE __m256i pack_bytes(__m256i a, __m256i b, __m256i c, __m256i d, int zero, int top) {
  const __m256i offset = _mm256_set1_epi16(static_cast<short>(zero));
  const __m256i ab = _mm256_adds_epi16(_mm256_packs_epi32(a, b), offset), cd = _mm256_adds_epi16(_mm256_packs_epi32(c, d), offset);
  return _mm256_min_epu8(_mm256_packus_epi16(ab, cd), _mm256_set1_epi8(static_cast<char>(top)));
}
// 4 channels x 16 tokens of codes without their offset -> a line of bytes, cut to 0 .. top
OFQ_INLINE void store_line(uint8_t* line, I a, I b, I c, I d, int zero, int top) {
  store_half(line, turn_four(pack_bytes(a.v[0], b.v[0], c.v[0], d.v[0], zero, top)));
  store_half(line + 32, turn_four(pack_bytes(a.v[1], b.v[1], c.v[1], d.v[1], zero, top)));
}
// 16 codes as bytes
OFQ_INLINE void store_bytes(uint8_t* out, I a, int zero, int top) {
  const __m256i bytes = pack_bytes(a.v[0], a.v[1], a.v[0], a.v[1], zero, top);  // tokens 0-3, 8-11, ... | 4-7, 12-15, ...
  const __m128i low = _mm256_castsi256_si128(bytes), high = _mm256_extracti128_si256(bytes, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi32(low, high));
}
// sums[token] + the four bytes of a line
OFQ_INLINE I add_bytes(I sums, const uint8_t* line) {
  const __m256i ones8 = _mm256_set1_epi8(1), ones16 = _mm256_set1_epi16(1);
  return OFQ_BOTH(I, _mm256_add_epi32(sums.v[i], _mm256_madd_epi16(_mm256_maddubs_epi16(load_half(line + 32 * i), ones8), ones16)));
}
// The four channels of a line as floats, without their offset.
OFQ_INLINE F channel(const uint8_t* line, int which, int zero) {
  const __m128i shift = _mm_cvtsi32_si128(8 * which);
  const I bytes = OFQ_BOTH(I, _mm256_and_si256(_mm256_srl_epi32(load_half(line + 32 * i), shift), _mm256_set1_epi32(255)));
  return to_float(sub(bytes, set(int32_t(zero))));
}

// Two tiles of one channel in 16 bits: a register holds, in each half, 4 tokens of the first tile and then the same of the second.
OFQ_INLINE W pack16(I a, I b) { return OFQ_BOTH(W, _mm256_packs_epi32(a.v[i], b.v[i])); }
OFQ_INLINE W zero16() { return W{{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
OFQ_INLINE W cut(W x, int most) { return OFQ_BOTH(W, _mm256_min_epi16(x.v[i], _mm256_set1_epi16(static_cast<short>(most)))); }
// A comparison that holds is -1. x >= t as max(x, t) == x: t - 1 may not exist.
OFQ_INLINE W count_at_least(W count, W x, const int16_t* threshold) {
  const __m256i t = _mm256_set1_epi16(*threshold);
  return OFQ_BOTH(W, _mm256_sub_epi16(count.v[i], _mm256_cmpeq_epi16(_mm256_max_epi16(x.v[i], t), x.v[i])));
}
OFQ_INLINE W count_below(W count, W x, const int16_t* threshold) {
  return OFQ_BOTH(W, _mm256_sub_epi16(count.v[i], _mm256_cmpgt_epi16(_mm256_set1_epi16(*threshold), x.v[i])));
}
constexpr bool HAS_TABLE16 = true;
// Thresholds::table. A byte shuffle knows 8 entries, and gives 0 where an index is negative: the first eight, plus the steps to the
// entries 8, 16 and 24 further on from there on.
OFQ_INLINE W by_table(W x, const int16_t* table) {
  __m256i eight[4];
#pragma GCC unroll 4
  for (int k = 0; k < 4; k++) eight[k] = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 8 * k)));
  const __m256i step1 = _mm256_sub_epi16(eight[1], eight[0]), step2 = _mm256_sub_epi16(eight[2], eight[1]);
  const __m256i step3 = _mm256_sub_epi16(eight[3], eight[2]);
  return both<W>([&](int i) __attribute__((always_inline)) {
    const __m256i entry = _mm256_srli_epi16(x.v[i], 11);
    const __m256i bytes = _mm256_add_epi16(_mm256_mullo_epi16(entry, _mm256_set1_epi16(0x0202)), _mm256_set1_epi16(0x0100));
    const __m256i first = _mm256_add_epi16(_mm256_shuffle_epi8(eight[0], bytes),
                                           _mm256_shuffle_epi8(step1, _mm256_sub_epi8(bytes, _mm256_set1_epi8(16))));
    const __m256i rest = _mm256_add_epi16(_mm256_shuffle_epi8(step2, _mm256_sub_epi8(bytes, _mm256_set1_epi8(32))),
                                          _mm256_shuffle_epi8(step3, _mm256_sub_epi8(bytes, _mm256_set1_epi8(48))));
    return _mm256_srli_epi16(_mm256_add_epi16(x.v[i], _mm256_add_epi16(first, rest)), 11);
  });
}
// 4 channels of two tiles -> a line each; the second may be null
OFQ_INLINE void store_lines(uint8_t* first, uint8_t* second, W a, W b, W c, W d) {
  const W ab = OFQ_BOTH(W, _mm256_or_si256(a.v[i], _mm256_slli_epi16(b.v[i], 8)));
  const W cd = OFQ_BOTH(W, _mm256_or_si256(c.v[i], _mm256_slli_epi16(d.v[i], 8)));
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    store_half(first + 32 * i, _mm256_unpacklo_epi16(ab.v[i], cd.v[i]));
    if (second) store_half(second + 32 * i, _mm256_unpackhi_epi16(ab.v[i], cd.v[i]));
  }
}

// 8 lines of 8 tokens -> 8 rows of 32 bytes.
OFQ_INLINE void transpose_eight(const __m256i (&r)[8], int8_t* out) {
  __m256i t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {  // u[4 i + j]: lines 4 i .. 4 i + 3 of tokens j and 4 + j
    u[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    u[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; j++) {
    store_half(out + j * BLOCK, _mm256_permute2x128_si256(u[j], u[4 + j], 0x20));
    store_half(out + (4 + j) * BLOCK, _mm256_permute2x128_si256(u[j], u[4 + j], 0x31));
  }
}
// `lines` (at most 16) lines of 16 tokens -> 16 rows of 64 bytes, a token each, minus the offset; what is missing is 0.
OFQ_INLINE void transpose_lines(const uint8_t* x, int lines, int zero, int8_t* out) {
  const __m256i offset = _mm256_set1_epi8(static_cast<char>(zero));
  for (int line = 0; line < 16; line += 8)
    for (int half = 0; half < 2; half++) {
      __m256i r[8];
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++)
        r[i] = line + i < lines ? _mm256_sub_epi8(load_half(x + (line + i) * LINE + 32 * half), offset) : _mm256_setzero_si256();
      transpose_eight(r, out + 8 * half * BLOCK + 4 * line);
    }
}
// A line of 4 channels -> 16 bytes of each in rows that lie BLOCK apart, minus the offset.
OFQ_INLINE void split_line(const uint8_t* line, int zero, int8_t* out) {
  const __m256i offset = _mm256_set1_epi8(static_cast<char>(zero)), pairs = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const I eight = OFQ_BOTH(I, _mm256_permutevar8x32_epi32(turn_four(_mm256_sub_epi8(load_half(line + 32 * i), offset)), pairs));
  const __m256i even = _mm256_unpacklo_epi64(eight.v[0], eight.v[1]), odd = _mm256_unpackhi_epi64(eight.v[0], eight.v[1]);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(even));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + BLOCK), _mm256_castsi256_si128(odd));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 2 * BLOCK), _mm256_extracti128_si256(even, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 3 * BLOCK), _mm256_extracti128_si256(odd, 1));
}

// Tables of 32 and 16 floats by the low bits of an index. (A gather would be slower on most processors, and very slow where its leaks are
// mended.) The larger one lies in planes, the first bytes of all its floats, the second ones, ..: a shuffle finds 32 bytes.
struct Table32 {
  __m256i planes[4][2];
  explicit Table32(const float* p) {
    int8_t rows[4 * BLOCK];
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      split_line(reinterpret_cast<const uint8_t*>(p + 16 * half), 0, rows);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) planes[i][half] = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows + i * BLOCK)));
    }
  }
};
OFQ_INLINE void look_up(const Table32& t, __m256i bytes, F (&found)[2]) {
  const __m256i lower = _mm256_add_epi8(bytes, _mm256_set1_epi8(0x70)), upper = _mm256_sub_epi8(bytes, _mm256_set1_epi8(16));
  __m256i plane[4];  // an index below 0 finds 0
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) plane[i] = _mm256_or_si256(_mm256_shuffle_epi8(t.planes[i][0], lower), _mm256_shuffle_epi8(t.planes[i][1], upper));
  const I low = {{_mm256_unpacklo_epi8(plane[0], plane[1]), _mm256_unpackhi_epi8(plane[0], plane[1])}};
  const I high = {{_mm256_unpacklo_epi8(plane[2], plane[3]), _mm256_unpackhi_epi8(plane[2], plane[3])}};
  found[0] = OFQ_BOTH(F, _mm256_castsi256_ps(_mm256_unpacklo_epi16(low.v[i], high.v[i])));
  found[1] = OFQ_BOTH(F, _mm256_castsi256_ps(_mm256_unpackhi_epi16(low.v[i], high.v[i])));
}
// high[d / 32 % 32] * low[d % 32] of two keys
OFQ_INLINE void multiply_entries(const Table32& high, const Table32& low, const I (&d)[2], F (&p)[2]) {
  const __m256i below = _mm256_set1_epi16(31);
  const I words = OFQ_BOTH(I, _mm256_packs_epi32(d[0].v[i], d[1].v[i]));
  const I above = OFQ_BOTH(I, _mm256_and_si256(_mm256_srli_epi16(words.v[i], 5), below));
  const I rest = OFQ_BOTH(I, _mm256_and_si256(words.v[i], below));
  F factor[2];
  look_up(high, _mm256_packus_epi16(above.v[0], above.v[1]), p);
  look_up(low, _mm256_packus_epi16(rest.v[0], rest.v[1]), factor);
  p[0] = mul(p[0], factor[0]);
  p[1] = mul(p[1], factor[1]);
}
struct Table16 {
  __m256 values[2];
  explicit Table16(const float* p) : values{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)} {}
};
OFQ_INLINE F look_up(const Table16& t, I index) {
  return OFQ_BOTH(F, _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.values[0], index.v[i]), _mm256_permutevar8x32_ps(t.values[1], index.v[i]),
                                      _mm256_castsi256_ps(_mm256_slli_epi32(index.v[i], 28))));
}
