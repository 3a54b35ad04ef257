// Vectors of the 16 tokens of a tile as plain C++: what every other instruction set must equal bit for bit.
#pragma once

struct F { float v[LANES]; };     // 16 floats
struct I { int32_t v[LANES]; };   // 16 int32
struct W { int16_t v[2 * LANES]; };  // 32 int16: two tiles of one channel

template <class V, class Function>
OFQ_INLINE V each(Function function) {
  V result;
  for (int i = 0; i < int(sizeof(result.v) / sizeof(result.v[0])); i++) result.v[i] = function(i);
  return result;
}

OFQ_INLINE F load(const float* p) { return each<F>([&](int i) { return p[i]; }); }
OFQ_INLINE void store(float* p, const F& a) { std::memcpy(p, a.v, sizeof(a.v)); }
OFQ_INLINE F set(float a) { return each<F>([&](int) { return a; }); }
OFQ_INLINE F add(const F& a, const F& b) { return each<F>([&](int i) { return a.v[i] + b.v[i]; }); }
OFQ_INLINE F sub(const F& a, const F& b) { return each<F>([&](int i) { return a.v[i] - b.v[i]; }); }
OFQ_INLINE F mul(const F& a, const F& b) { return each<F>([&](int i) { return a.v[i] * b.v[i]; }); }
OFQ_INLINE F div(const F& a, const F& b) { return each<F>([&](int i) { return a.v[i] / b.v[i]; }); }
OFQ_INLINE F sqrt(const F& a) { return each<F>([&](int i) { return std::sqrt(a.v[i]); }); }
OFQ_INLINE F fma(const F& a, const F& b, const F& c) { return each<F>([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); }); }
OFQ_INLINE F max(const F& a, const F& b) { return each<F>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }  // b where a is NaN
OFQ_INLINE F min(const F& a, const F& b) { return each<F>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
OFQ_INLINE F round(const F& a) { return each<F>([&](int i) { return std::nearbyint(a.v[i]); }); }
OFQ_INLINE F to_float(const I& a) { return each<F>([&](int i) { return float(a.v[i]); }); }
OFQ_INLINE I to_int(const F& a) {  // half to even; the least int beyond the range and for NaN
  return each<I>([&](int i) { return a.v[i] >= -2147483648.f && a.v[i] < 2147483648.f ? int32_t(std::nearbyint(a.v[i])) : INT32_MIN; });
}

// Sums wrap around as those of vectors do.
OFQ_INLINE int32_t wrapped(int64_t a) { return int32_t(uint32_t(uint64_t(a))); }
OFQ_INLINE I load(const int32_t* p) { return each<I>([&](int i) { return p[i]; }); }
OFQ_INLINE void store(int32_t* p, const I& a) { std::memcpy(p, a.v, sizeof(a.v)); }
OFQ_INLINE I set(int32_t a) { return each<I>([&](int) { return a; }); }
OFQ_INLINE I add(const I& a, const I& b) { return each<I>([&](int i) { return wrapped(int64_t(a.v[i]) + b.v[i]); }); }
OFQ_INLINE I sub(const I& a, const I& b) { return each<I>([&](int i) { return wrapped(int64_t(a.v[i]) - b.v[i]); }); }
OFQ_INLINE I mul(const I& a, int32_t b) { return each<I>([&](int i) { return wrapped(int64_t(a.v[i]) * b); }); }
OFQ_INLINE I max(const I& a, const I& b) { return each<I>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
OFQ_INLINE I min(const I& a, const I& b) { return each<I>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
template <int N>
OFQ_INLINE I shift_right(const I& a) { return each<I>([&](int i) { return int32_t(uint32_t(a.v[i]) >> N); }); }

// v * 2^n for whole n in [-120, 0]
OFQ_INLINE F scale_by_power(const F& v, const F& n) {
  return each<F>([&](int i) {
    const uint32_t bits = uint32_t(int32_t(n.v[i]) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof(power));
    return v.v[i] * power;
  });
}

// Tables of 32 and 16 floats by the low bits of an index.
struct Table32 {
  const float* values;
  explicit Table32(const float* p) : values(p) {}
};
struct Table16 {
  const float* values;
  explicit Table16(const float* p) : values(p) {}
};
OFQ_INLINE F look_up(const Table32& t, const I& index) { return each<F>([&](int i) { return t.values[index.v[i] & 31]; }); }
OFQ_INLINE F look_up(const Table16& t, const I& index) { return each<F>([&](int i) { return t.values[index.v[i] & 15]; }); }

OFQ_INLINE int saturated16(int a) { return a < -32768 ? -32768 : a > 32767 ? 32767 : a; }
OFQ_INLINE uint8_t stored_byte(int32_t code, int zero, int top) {
  const int byte = saturated16(code) + zero;
  return uint8_t(byte < 0 ? 0 : byte > top ? top : byte);
}
// 4 channels x 16 tokens of codes without their offset -> a line of bytes, cut to 0 .. top
OFQ_INLINE void store_line(uint8_t* line, const I& a, const I& b, const I& c, const I& d, int zero, int top) {
  for (int i = 0; i < LANES; i++) {
    line[4 * i] = stored_byte(a.v[i], zero, top);
    line[4 * i + 1] = stored_byte(b.v[i], zero, top);
    line[4 * i + 2] = stored_byte(c.v[i], zero, top);
    line[4 * i + 3] = stored_byte(d.v[i], zero, top);
  }
}
// 16 codes as bytes
OFQ_INLINE void store_bytes(uint8_t* out, const I& a, int zero, int top) {
  for (int i = 0; i < LANES; i++) out[i] = stored_byte(a.v[i], zero, top);
}
// sums[token] + the four bytes of a line
OFQ_INLINE I add_bytes(const I& sums, const uint8_t* line) {
  return each<I>([&](int i) { return sums.v[i] + line[4 * i] + line[4 * i + 1] + line[4 * i + 2] + line[4 * i + 3]; });
}
// The four channels of a line as floats, without their offset.
OFQ_INLINE F channel(const uint8_t* line, int which, int zero) {
  return each<F>([&](int i) { return float(int(line[4 * i + which]) - zero); });
}

// Two tiles of one channel in 16 bits.
OFQ_INLINE W pack16(const I& a, const I& b) {
  return each<W>([&](int i) { return int16_t(saturated16(i < LANES ? a.v[i] : b.v[i - LANES])); });
}
OFQ_INLINE W zero16() { return each<W>([](int) { return int16_t(0); }); }
OFQ_INLINE W cut(const W& x, int most) { return each<W>([&](int i) { return x.v[i] < most ? x.v[i] : int16_t(most); }); }
OFQ_INLINE W count_at_least(const W& count, const W& x, const int16_t* threshold) {
  return each<W>([&](int i) { return int16_t(count.v[i] + (x.v[i] >= *threshold)); });
}
OFQ_INLINE W count_below(const W& count, const W& x, const int16_t* threshold) {
  return each<W>([&](int i) { return int16_t(count.v[i] + (x.v[i] < *threshold)); });
}
constexpr bool HAS_TABLE16 = true;
OFQ_INLINE W by_table(const W& x, const int16_t* table) {  // Thresholds::table
  return each<W>([&](int i) { return int16_t(uint16_t(uint16_t(x.v[i]) + uint16_t(table[uint16_t(x.v[i]) >> 11])) >> 11); });
}
// 4 channels of two tiles -> a line each; the second may be null
OFQ_INLINE void store_lines(uint8_t* first, uint8_t* second, const W& a, const W& b, const W& c, const W& d) {
  for (int i = 0; i < 2 * LANES; i++) {
    uint8_t* line = i < LANES ? first : second;
    if (!line) break;
    uint8_t* four = line + 4 * (i % LANES);
    four[0] = uint8_t(a.v[i]), four[1] = uint8_t(b.v[i]), four[2] = uint8_t(c.v[i]), four[3] = uint8_t(d.v[i]);
  }
}

// `lines` (at most 16) lines of 16 tokens -> 16 rows of 64 bytes, a token each, minus the offset; what is missing is 0.
OFQ_INLINE void transpose_lines(const uint8_t* x, int lines, int zero, int8_t* out) {
  for (int token = 0; token < LANES; token++)
    for (int k = 0; k < BLOCK; k++)
      out[token * BLOCK + k] = k / 4 < lines ? int8_t(int(x[k / 4 * LINE + 4 * token + k % 4]) - zero) : int8_t(0);
}
// A line of 4 channels -> 16 bytes of each in rows that lie BLOCK apart, minus the offset.
OFQ_INLINE void split_line(const uint8_t* line, int zero, int8_t* out) {
  for (int i = 0; i < LINE; i++) out[i % 4 * BLOCK + i / 4] = int8_t(int(line[i]) - zero);
}
