// Which instruction sets were built, which can run here, and the choice of one.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "operators.h"

#if defined(__x86_64__) || defined(_M_X64)
#define OFQ_X86
#elif defined(__aarch64__) || defined(_M_ARM64)
#define OFQ_ARM
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#endif
#if defined(OFQ_ARM) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(OFQ_ARM) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace ofq {

// Each is defined by its isa_*.cpp where CMakeLists.txt builds it.
extern const Kernels kernels_plain, kernels_avx2, kernels_avxvnni, kernels_avx512vnni, kernels_amx, kernels_amx_emulated, kernels_neon,
    kernels_neon_i8mm;

namespace {

#ifdef OFQ_X86
struct Registers {
  uint32_t a, b, c, d;
};
Registers cpuid(uint32_t leaf, uint32_t part) {
  Registers r{leaf, 0, part, 0};
  asm volatile("cpuid" : "+a"(r.a), "=b"(r.b), "+c"(r.c), "=d"(r.d));
  return r;
}
constexpr bool bit(uint64_t value, int which) { return value >> which & 1; }

// What the processor has; `saved`: the registers that the system keeps for a thread (XCR0), 0 where it tells nothing.
struct Processor {
  Registers basic{}, extended{}, more{};
  uint64_t saved = 0;
  Processor() {
    const uint32_t leaves = cpuid(0, 0).a;
    basic = cpuid(1, 0);
    if (leaves >= 7) {
      extended = cpuid(7, 0);
      if (extended.a >= 1) more = cpuid(7, 1);
    }
    if (bit(basic.c, 27)) {
      uint32_t low, high;
      asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
      saved = uint64_t(high) << 32 | low;
    }
  }
  bool saves(uint64_t mask) const { return (saved & mask) == mask; }
};
const Processor& processor() {
  static const Processor one;
  return one;
}
constexpr uint64_t SSE_AVX = 0x6, AVX512_STATE = 0xe6, TILE_STATE = 0x60000;

[[maybe_unused]] const char* fault_avx2() {
  const Processor& p = processor();
  if (!bit(p.basic.c, 28) || !bit(p.basic.c, 12) || !bit(p.extended.b, 5)) return "the processor has no AVX2 with FMA";
  return p.saves(SSE_AVX) ? nullptr : "the system does not save AVX registers";
}
[[maybe_unused]] const char* fault_avxvnni() {
  if (const char* fault = fault_avx2()) return fault;
  return bit(processor().more.a, 4) ? nullptr : "the processor has no AVX-VNNI";
}
[[maybe_unused]] const char* fault_avx512() {  // F, DQ, BW, VL
  const uint32_t b = processor().extended.b;
  if (const char* fault = fault_avx2()) return fault;
  if (!bit(b, 16) || !bit(b, 17) || !bit(b, 30) || !bit(b, 31)) return "the processor has no AVX-512 (F, DQ, BW and VL)";
  return processor().saves(AVX512_STATE) ? nullptr : "the system does not save AVX-512 registers";
}
[[maybe_unused]] const char* fault_avx512vnni() {
  if (const char* fault = fault_avx512()) return fault;
  return bit(processor().extended.c, 11) ? nullptr : "the processor has no AVX512-VNNI";
}

// Linux gives tile registers to a process that asks for them. It refuses where an alternate signal stack has no room to save
// them; a later sigaltstack that small fails in turn, which is why nobody asks whose processor has none.
const char* ask_for_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  if (syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0) return nullptr;
  if (errno == ENOSPC) return "the alternate signal stack of a thread is too small for tile registers (errno 28)";
  if (errno == EINVAL || errno == EOPNOTSUPP) return "the system does not give tile registers (Linux does from 5.16 on)";
  return "the system refuses tile registers to this process";
#else
  return "tile registers are used on Linux only";
#endif
}
[[maybe_unused]] const char* fault_amx() {
  if (const char* fault = fault_avx512vnni()) return fault;
  if (!bit(processor().extended.d, 24) || !bit(processor().extended.d, 25)) return "the processor has no AMX (tile and int8)";
  if (!processor().saves(TILE_STATE)) return "the system does not save tile registers";
  return ask_for_tiles();
}
#endif

#ifdef OFQ_ARM
#ifdef __APPLE__
bool has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value;
}
bool has_dot_product() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_feature("hw.optional.arm.FEAT_I8MM"); }
#elif defined(__linux__)
bool has_dot_product() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }
#else
bool has_dot_product() { return false; }
bool has_i8mm() { return false; }
#endif
[[maybe_unused]] const char* fault_neon() { return has_dot_product() ? nullptr : "the processor has no dot products (Armv8.2)"; }
[[maybe_unused]] const char* fault_neon_i8mm() {
  if (const char* fault = fault_neon()) return fault;
  return has_i8mm() ? nullptr : "the processor has no I8MM";
}
#endif

[[maybe_unused]] const char* no_fault() { return nullptr; }
[[maybe_unused]] const char* fault_not_built() { return "this build of the library does not have it"; }

struct Candidate {
  const char* name;
  const Kernels* kernels;       // null where it was not built
  const char* (*find_fault)();  // null where it can run, or why it cannot
  bool is_automatic;            // whether it may be chosen without being asked for
};

// Fastest first.
const Candidate CANDIDATES[] = {
#define OFQ_BUILT(name, symbol, fault, automatic) {name, &symbol, fault, automatic},
#define OFQ_MISSING(name) {name, nullptr, fault_not_built, false},
#ifdef OFQ_HAVE_AMX
    OFQ_BUILT("amx", kernels_amx, fault_amx, true)
#elif defined(OFQ_X86)
    OFQ_MISSING("amx")
#endif
#ifdef OFQ_HAVE_AVX512VNNI
    OFQ_BUILT("avx512vnni", kernels_avx512vnni, fault_avx512vnni, true)
#elif defined(OFQ_X86)
    OFQ_MISSING("avx512vnni")
#endif
#ifdef OFQ_HAVE_AVXVNNI
    OFQ_BUILT("avxvnni", kernels_avxvnni, fault_avxvnni, true)
#elif defined(OFQ_X86)
    OFQ_MISSING("avxvnni")
#endif
#ifdef OFQ_HAVE_AVX2
    OFQ_BUILT("avx2", kernels_avx2, fault_avx2, true)
#elif defined(OFQ_X86)
    OFQ_MISSING("avx2")
#endif
#ifdef OFQ_HAVE_NEON_I8MM
    OFQ_BUILT("neon-i8mm", kernels_neon_i8mm, fault_neon_i8mm, true)
#elif defined(OFQ_ARM)
    OFQ_MISSING("neon-i8mm")
#endif
#ifdef OFQ_HAVE_NEON
    OFQ_BUILT("neon", kernels_neon, fault_neon, true)
#elif defined(OFQ_ARM)
    OFQ_MISSING("neon")
#endif
    OFQ_BUILT("plain", kernels_plain, no_fault, true)
#ifdef OFQ_HAVE_AMX_EMULATED
    OFQ_BUILT("amx-emulated", kernels_amx_emulated, no_fault, false)
#else
    OFQ_MISSING("amx-emulated")
#endif
#undef OFQ_BUILT
#undef OFQ_MISSING
};

const Kernels& choose() {
  const char* forced = std::getenv("OFQ_KERNELS");
  if (!forced || !*forced) {
    for (const Candidate& one : CANDIDATES)
      if (one.is_automatic && !one.find_fault()) return *one.kernels;
    throw std::runtime_error("no kernels can run here");  // not reached: plain always can
  }
  std::string names;
  for (const Candidate& one : CANDIDATES) {
    if (one.name == std::string(forced)) {
      if (const char* fault = one.find_fault())
        throw std::runtime_error(std::string("OFQ_KERNELS=") + forced + " cannot run here: " + fault);
      return *one.kernels;
    }
    names += std::string(names.empty() ? "" : ", ") + one.name;
  }
  throw std::runtime_error(std::string("OFQ_KERNELS=") + forced + " is unknown, expected one of " + names);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

const Kernels* find_kernels(const char* name) {
  for (const Candidate& one : CANDIDATES)
    if (one.name == std::string(name)) return one.find_fault() ? nullptr : one.kernels;
  return nullptr;
}

const std::vector<Choice>& choices() {
  static const std::vector<Choice> all = [] {
    std::vector<Choice> made;
    for (const Candidate& one : CANDIDATES) {
      const char* fault = one.find_fault();
      made.push_back({one.name, fault == nullptr, fault ? fault : "can run here"});
    }
    return made;
  }();
  return all;
}

}  // namespace ofq
