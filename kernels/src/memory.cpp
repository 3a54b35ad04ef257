// Memory on cache lines. What is large shares slabs in huge pages: weights are streamed, and every 4 KiB page would cost a look-up.
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#include "operators.h"

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef _WIN32
#include <malloc.h>
#endif

namespace ofq {

namespace {

constexpr size_t HUGE_PAGE = size_t(2) << 20, SLAB = 2 * HUGE_PAGE;
#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1  // gcc's name
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t LARGE = SIZE_MAX;  // every buffer by itself, so that a step beyond it is seen
#else
constexpr size_t LARGE = size_t(8) << 10;
#endif

void* aligned_memory(size_t bytes, size_t alignment) {
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
  if (alignment == HUGE_PAGE) madvise(memory, whole, MADV_HUGEPAGE);  // a wish: without huge pages it is slower, not wrong
#endif
  std::memset(memory, 0, whole);
  return memory;
}

void free_memory(void* memory) noexcept {
#ifdef _WIN32
  _aligned_free(memory);
#else
  std::free(memory);
#endif
}

// Slabs are filled from the front and given back when the last piece of them is: kernels come and go together.
class Slabs {
 public:
  void* take(size_t bytes) {
    bytes = size_t(round_up(int64_t(bytes), LINE));
    const std::lock_guard<std::mutex> lock(mutex_);
    if (slabs_.empty() || bytes > slabs_.back().size - slabs_.back().used) {
      slabs_.reserve(slabs_.size() + 1);
      const size_t size = bytes > SLAB / 2 ? size_t(round_up(int64_t(bytes), HUGE_PAGE)) : SLAB;
      slabs_.push_back({static_cast<char*>(aligned_memory(size, HUGE_PAGE)), size, 0, 0});
    }
    Slab& slab = slabs_.back();
    void* piece = slab.memory + slab.used;
    slab.used += bytes, slab.pieces++;
    return piece;
  }

  // Whether the piece came from here.
  bool give_back(void* piece) noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < slabs_.size(); i++) {
      Slab& slab = slabs_[i];
      if (piece < slab.memory || piece >= slab.memory + slab.size) continue;
      if (--slab.pieces == 0) {
        free_memory(slab.memory);
        slabs_.erase(slabs_.begin() + i);
      }
      return true;
    }
    return false;
  }

 private:
  struct Slab {
    char* memory;
    size_t size, used, pieces;
  };
  std::mutex mutex_;
  std::vector<Slab> slabs_;
};

Slabs& slabs() {
  static Slabs* const all = new Slabs;  // never destroyed: buffers of threads outlive statics
  return *all;
}

}  // namespace

void* aligned_new(size_t bytes) {
  if (bytes > SIZE_MAX / 4) throw std::bad_alloc();
  return bytes < LARGE ? aligned_memory(bytes, LINE) : slabs().take(bytes);
}

void aligned_delete(void* memory) noexcept {
  if (memory && !slabs().give_back(memory)) free_memory(memory);
}

}  // namespace ofq
