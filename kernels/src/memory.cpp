// Memory on cache lines, and in huge pages from 1 MiB on: weights are streamed, and every 4 KiB page would cost a look-up.
#include <cstdlib>
#include <cstring>
#include <new>

#include "operators.h"

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef _WIN32
#include <malloc.h>
#endif

namespace ofq {

void* aligned_new(size_t bytes) {
  constexpr size_t HUGE_PAGE = size_t(2) << 20;
  const bool large = bytes >= HUGE_PAGE / 2;
  const size_t alignment = large ? HUGE_PAGE : LINE;
  if (bytes > SIZE_MAX - alignment) throw std::bad_alloc();
  const size_t whole = (bytes + alignment - 1) / alignment * alignment;
#ifdef _WIN32
  void* memory = _aligned_malloc(whole, alignment);
#else
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, whole)) memory = nullptr;
#endif
  if (!memory) throw std::bad_alloc();
#ifdef __linux__
  if (large) madvise(memory, whole, MADV_HUGEPAGE);  // a wish: without huge pages it is slower, not wrong
#endif
  std::memset(memory, 0, bytes);
  return memory;
}

void aligned_delete(void* memory) noexcept {
#ifdef _WIN32
  _aligned_free(memory);
#else
  std::free(memory);
#endif
}

}  // namespace ofq
