// What tiles_amx.h offers, in plain C++ for any processor.
#pragma once

struct Register {
  alignas(64) uint8_t bytes[16][LINE];
};
static thread_local Register registers[8];

static void configure_tiles() {}

template <int T>
OFQ_INLINE void tile_zero() {
  std::memset(&registers[T], 0, sizeof(Register));
}
template <int T>
OFQ_INLINE void tile_load(const void* from) {
  std::memcpy(&registers[T], from, sizeof(Register));
}
template <int T>
OFQ_INLINE void tile_store(void* to) {
  std::memcpy(to, &registers[T], sizeof(Register));
}
template <class Code>
static void add_products(Register& sums, const Register& weights, const Register& codes) {
  for (int row = 0; row < 16; row++) {
    int32_t own[LANES];
    std::memcpy(own, sums.bytes[row], LINE);
    for (int k = 0; k < LINE; k++)
      for (int i = 0; i < LANES; i++) own[i] += int8_t(weights.bytes[row][k]) * Code(codes.bytes[k / 4][4 * i + k % 4]);
    std::memcpy(sums.bytes[row], own, LINE);
  }
}
// sums += weights (int8) x codes (uint8 or int8)
template <int SUMS, int WEIGHTS, int CODES, class Code = uint8_t>
OFQ_INLINE void tile_product() {
  add_products<Code>(registers[SUMS], registers[WEIGHTS], registers[CODES]);
}
