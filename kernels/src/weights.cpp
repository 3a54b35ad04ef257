// From what a file holds of weights and thresholds to what the kernels read.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "operators.h"

namespace ofq {

namespace {

// The eight bits of a byte as eight bytes of 0 or 1, lowest first.
struct Spread {
  std::array<uint64_t, 256> of;
  Spread() {
    for (int byte = 0; byte < 256; byte++) {
      of[byte] = 0;
      for (int bit = 0; bit < 8; bit++) of[byte] |= uint64_t(byte >> bit & 1) << (8 * bit);
    }
  }
};

// Codes with their offset, from bit planes: `count` codes in all, `size` bytes.
class Planes {
 public:
  Planes(const uint8_t* planes, int bits, int64_t count) : planes_(planes), bits_(bits), count_(count), size_(ceil_div(bits * count, 8)) {}

  // Eight codes from number `first` on, a byte each; those beyond the last one are anything.
  uint64_t eight(int64_t first) const {
    static const Spread spread;
    uint64_t codes = 0;
    for (int plane = 0; plane < bits_; plane++) codes |= spread.of[window(plane * count_ + first)] << plane;
    return codes;
  }

 private:
  uint8_t window(int64_t bit) const {  // the eight bits from there on, which may begin inside a byte
    const int64_t at = bit / 8;
    const int next = at + 1 < size_ ? planes_[at + 1] : 0;
    return at < size_ ? uint8_t((planes_[at] | next << 8) >> (bit % 8)) : 0;
  }

  const uint8_t* planes_;
  int bits_;
  int64_t count_, size_;
};

}  // namespace

Weights decode_weights(const uint8_t* planes, int bits, bool half, int outputs, int inputs, int parts, Grid in) {
  Weights w;
  w.outputs = outputs, w.inputs = inputs, w.parts = parts;
  w.panels = int(ceil_div(outputs, PANEL)), w.blocks = int(ceil_div(inputs, BLOCK));
  w.wide = half && bits == 8;
  w.tiles = Aligned<int8_t>(size_t(w.panels) * parts * w.blocks * PANEL * BLOCK);
  w.start = Aligned<int32_t>(size_t(parts) * w.panels * PANEL);
  const Planes codes(planes, bits, int64_t(outputs) * parts * inputs);
  const int zero = 1 << (bits - 1);
  for (int output = 0; output < outputs; output++)
    for (int part = 0; part < parts; part++) {
      const int panel = output / PANEL, channel = output % PANEL;
      int8_t* row = w.tiles.data() + ((int64_t(panel) * parts + part) * w.blocks * PANEL + channel) * BLOCK;
      int32_t sum = 0;
      for (int k = 0; k < inputs; k += 8) {
        const uint64_t eight = codes.eight((int64_t(output) * parts + part) * inputs + k);
        uint8_t bytes[8];
        std::memcpy(bytes, &eight, sizeof(bytes));
        int8_t* to = row + k / BLOCK * PANEL * BLOCK + k % BLOCK;
        for (int i = 0; i < std::min(8, inputs - k); i++) {
          const int code = bytes[i] - zero, integer = half ? 2 * code + 1 : code;
          to[i] = int8_t(w.wide ? code : integer);
          w.largest = std::max(w.largest, std::abs(int(to[i])));
          sum += integer;
        }
      }
      w.start[(int64_t(part) * w.panels + panel) * PANEL + channel] = -in.zero() * sum;
    }
  return w;
}

void pack_weights(Weights& w, int bits, bool half) {
  constexpr int SIZE = PANEL * BLOCK, HALF = SIZE / 2;
  if (bits > 4 || w.inputs % BLOCK) return;  // padded inputs are 0, which odd integers have no field for
  w.unit = half ? 2 : 1, w.offset = half ? (1 << bits) - 1 : 1 << (bits - 1);
  const auto field = [&](int8_t value) { return (value + w.offset) / w.unit; };
  w.packed = Aligned<uint8_t>(w.tiles.size() / 2);
  for (size_t block = 0; block < w.tiles.size() / SIZE; block++)
    for (int i = 0; i < HALF; i++) {
      const int8_t* values = w.tiles.data() + block * SIZE + i;
      w.packed[block * HALF + i] = uint8_t(field(values[0]) | field(values[HALF]) << 4);
    }
  w.tiles = {};
}

namespace {

constexpr int MAX_TABLE = 15;  // thresholds of a channel in the table form
constexpr int BINS = 32, BIN = 65536 / BINS;

// As vectors do: to_int gives the least int beyond the range, pack16 saturates.
int to_int16(float x) {
  if (!(x < 2147483648.f)) return -32768;
  return x <= -32768.f ? -32768 : x >= 32767.f ? 32767 : int(std::nearbyint(x));
}

// One channel's table form, and what it computes.
struct Table {
  float scale = 0.f, offset = 0.f;
  std::array<int16_t, BINS> bins{};

  int place(int32_t acc) const { return to_int16(std::fma(float(acc), scale, offset)); }
  int count(int32_t acc) const {
    const int x = place(acc);
    return uint16_t(x + bins[(x >> 11) & (BINS - 1)]) >> 11;
  }
};

// Fills the bins for a scale and offset; false where the form does not count as the thresholds do, of which `below` always count and
// those from `last` on never; no accumulator is larger than `reach` in magnitude.
bool fill(Table& table, const int16_t* rising, int below, int last, int32_t reach) {
  int reached = below;
  for (int bin = 0; bin < BINS; bin++) {  // from the lowest x up; `bin` counts them from there
    const int start = -32768 + bin * BIN, end = start + BIN;
    int place = start;
    if (reached < last && table.place(rising[reached]) < end) place = table.place(rising[reached++]);
    if (reached < last && table.place(rising[reached]) < end) return false;  // two in one bin
    table.bins[(start >> 11) & (BINS - 1)] = int16_t(reached * BIN - place);
  }
  // Both sides are monotone in the accumulator, so equality at every step and at the ends is equality everywhere.
  const auto holds = [&](int32_t acc) { return table.count(acc) == below + (std::upper_bound(rising + below, rising + last, acc) - (rising + below)); };
  for (int j = below; j < last; j++)
    if (!holds(rising[j]) || !holds(rising[j] - 1)) return false;
  return holds(-reach) && holds(reach);
}

// Spreads the thresholds of a channel over the range of int16.
bool make_table(Table& table, const int16_t* rising, int count, int32_t reach) {
  const int below = int(std::upper_bound(rising, rising + count, Thresholds::ALWAYS) - rising);
  const int last = int(std::lower_bound(rising, rising + count, Thresholds::NEVER) - rising);
  if (below == last) return fill(table, rising, below, last, reach);  // a constant
  const double span = double(rising[last - 1]) - rising[below], middle = rising[below] + span / 2 - .5;
  const double largest = std::min(1024., 2.1e9 / (reach + std::abs(middle)));  // beyond it places leave int32
  for (const double end : {31000., 30000., 32000., 28000.}) {
    const double scale = span > 0 ? std::min(2 * end / span, largest) : largest;
    table.scale = float(scale), table.offset = float(-middle * scale);
    if (fill(table, rising, below, last, reach)) return true;
  }
  return false;
}

}  // namespace

Thresholds make_thresholds(const int16_t* rising, int count, const int16_t* falling, int falling_count, int channels, int32_t reach) {
  Thresholds th;
  th.rising = count, th.falling = falling_count;
  const int64_t padded = round_up(channels, PANEL), each = count + falling_count;
  th.values = Aligned<int16_t>(size_t(padded * each));
  for (int64_t c = 0; c < padded; c++)
    for (int64_t j = 0; j < each; j++) {
      const bool rises = j < count;
      const int none = rises ? Thresholds::NEVER : Thresholds::ALWAYS;  // padded channels have code 0
      th.values[c * each + j] = int16_t(c >= channels ? none : rises ? rising[c * count + j] : falling[c * falling_count + j - count]);
    }

  th.has_table = count <= MAX_TABLE;
  if (!th.has_table) return th;
  th.scale = Aligned<float>(size_t(padded)), th.offset = Aligned<float>(size_t(padded));
  th.table = Aligned<int16_t>(size_t(padded * BINS));
  for (int64_t c = 0; c < padded && th.has_table; c++) {
    Table table;
    th.has_table = make_table(table, th.values.data() + c * each, count, reach);
    th.scale[c] = table.scale, th.offset[c] = table.offset;
    std::copy(table.bins.begin(), table.bins.end(), th.table.data() + c * BINS);
  }
  if (!th.has_table) th.scale = {}, th.offset = {}, th.table = {};
  return th;
}

}  // namespace ofq
