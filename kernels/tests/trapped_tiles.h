// Runs the tile instructions of AMX on a processor that has none: each of them raises SIGILL, and the handler does its work. So the very
// object code of isa_amx.cpp is compared, with its registers, its operands' order and what the compiler moved around it.
#pragma once

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace trapped {

struct Tile {
  uint8_t bytes[16][64];
};
inline Tile tiles[8];  // the comparison has one thread
inline bool is_configured = false;

[[noreturn]] inline void refuse(const char* why, const uint8_t* code) {
  std::fprintf(stderr, "SIGILL: %s:", why);
  for (int i = 0; i < 8; i++) std::fprintf(stderr, " %02x", code[i]);
  std::fprintf(stderr, "\n");
  std::_Exit(1);
}

// One configuration is allowed: palette 1, all tiles of 16 rows of 64 bytes.
inline bool is_full(const uint8_t* configuration) {
  uint8_t full[64] = {1};
  for (int i = 0; i < 8; i++) full[16 + 2 * i] = 64, full[48 + i] = 16;
  return !std::memcmp(configuration, full, sizeof(full));
}

// Intel 64 manual, volume 2, TDPBSSD/TDPBSUD: signed bytes of `a` times signed or unsigned bytes of `b`.
inline void multiply(Tile& sums, const Tile& a, const Tile& b, bool b_is_signed) {
  for (int m = 0; m < 16; m++)
    for (int k = 0; k < 16; k++)
      for (int n = 0; n < 16; n++) {
        int32_t sum;
        std::memcpy(&sum, &sums.bytes[m][4 * n], 4);
        for (int i = 0; i < 4; i++) {
          const uint8_t byte = b.bytes[k][4 * n + i];
          sum += int8_t(a.bytes[m][4 * k + i]) * (b_is_signed ? int8_t(byte) : int(byte));
        }
        std::memcpy(&sums.bytes[m][4 * n], &sum, 4);
      }
}

inline void emulate(int, siginfo_t*, void* context) {
  greg_t* const registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  constexpr int ORDER[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                             REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  const uint8_t* const code = reinterpret_cast<const uint8_t*>(registers[REG_RIP]);
  // VEX of three bytes, map 0F38, W 0, 128 bits
  if (code[0] != 0xc4 || (code[1] & 31) != 2 || (code[2] & 0x84)) refuse("no tile instruction", code);
  const int prefix = code[2] & 3, third = ~code[2] >> 3 & 15, operation = code[3];  // prefix: 0 none, 1 66, 2 F3, 3 F2
  const int mode = code[4] >> 6, middle = code[4] >> 3 & 7, low = code[4] & 7;
  const uint8_t* next = code + 5;

  if (mode == 3) {
    if (operation == 0x49 && prefix == 3 && low == 0) {
      std::memset(&tiles[middle], 0, sizeof(Tile));
    } else if (operation == 0x5e && prefix >= 2) {
      if (!is_configured) refuse("a product before ldtilecfg", code);
      multiply(tiles[middle], tiles[low], tiles[third & 7], prefix == 3);
    } else {
      refuse("a tile instruction that the kernels must not have", code);
    }
    registers[REG_RIP] = reinterpret_cast<greg_t>(next);
    return;
  }

  int64_t address = 0, stride = 0;
  int base = low | (code[1] & 0x20 ? 0 : 8);
  if (low == 4) {
    const uint8_t sib = *next++;
    const int index = (sib >> 3 & 7) | (code[1] & 0x40 ? 0 : 8);
    base = (sib & 7) | (code[1] & 0x20 ? 0 : 8);
    if (index != 4) stride = registers[ORDER[index]] << (sib >> 6);
  }
  int32_t displacement = 0;
  if (mode == 1) displacement = int8_t(*next++);
  if (mode == 2 || (mode == 0 && (base & 7) == 5)) std::memcpy(&displacement, next, 4), next += 4;
  if (mode == 0 && low == 5) {
    address = reinterpret_cast<int64_t>(next) + displacement;
  } else {
    address = (mode == 0 && (base & 7) == 5 ? 0 : registers[ORDER[base]]) + displacement;
  }
  uint8_t* const memory = reinterpret_cast<uint8_t*>(address);
  if (operation == 0x49 && prefix == 0 && middle == 0) {
    if (!is_full(memory)) refuse("ldtilecfg of another configuration", code);
    is_configured = true;
  } else if (operation == 0x4b && (prefix == 3 || prefix == 2) && low == 4) {
    if (!is_configured) refuse("a tile moves before ldtilecfg", code);
    for (int row = 0; row < 16; row++) {
      uint8_t *own = tiles[middle].bytes[row], *line = memory + row * stride;
      std::memcpy(prefix == 3 ? own : line, prefix == 3 ? line : own, 64);
    }
  } else {
    refuse("a tile instruction that the kernels must not have", code);
  }
  registers[REG_RIP] = reinterpret_cast<greg_t>(next);
}

// False where the processor has AMX: nothing would trap.
inline bool trap_tiles() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 24 & 1)) return false;
  struct sigaction action = {};
  action.sa_sigaction = emulate;
  action.sa_flags = SA_SIGINFO;
  return sigaction(SIGILL, &action, nullptr) == 0;
}

}  // namespace trapped
#else
namespace trapped {
inline bool trap_tiles() { return false; }
}  // namespace trapped
#endif
