// The tile registers of AMX, of which numbers are literals: here 0 .. 7, all of 16 rows of 64 bytes, read and written without gaps.
//
// The instructions are written out: the compiler's own _tile_loadd tells it nothing of the memory that it reads.
#pragma once

// The only configuration that a thread ever holds here. It stays loaded: MLAS, which uses tiles of the same shape on the same threads, looks
// only at part of what it finds, and would take a configuration of other rows for its own.
struct alignas(64) Configuration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(Configuration) == 64, "the processor reads 64 bytes");

static void configure_tiles() {
  static constexpr Configuration full;
  __asm__ volatile("ldtilecfg %0" ::"m"(full));
}

template <int T>
OFQ_INLINE void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
OFQ_INLINE void tile_load(const void* from) {
  __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" ::"i"(T), "r"(from), "r"(int64_t(LINE)) : "memory");
}
template <int T>
OFQ_INLINE void tile_store(void* to) {
  __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" ::"i"(T), "r"(to), "r"(int64_t(LINE)) : "memory");
}
// sums += weights (int8) x codes (uint8 or int8)
template <int SUMS, int WEIGHTS, int CODES, class Code = uint8_t>
OFQ_INLINE void tile_product() {
  if (Code(-1) < 0) {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(WEIGHTS), "i"(CODES));
  } else {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(WEIGHTS), "i"(CODES));
  }
}
