// How runs are cut into tasks, and what attention keeps between its phases.
#include "shapes.h"

#include <type_traits>

namespace ofq {

size_t patches_units(const Patches& op, int batch) { return size_t(batch) * (op.size / op.patch); }

size_t layer_norm_units(const LayerNorm& op, int batch) { return size_t(batch) * tiles_of(op.tokens); }

size_t linear_units(const Kernels& kernels, const Linear& op, int batch) {
  if (op.finish == Finish::head) return op.weights.panels;
  return size_t(ceil_div(op.weights.panels, kernels.panels)) * batch * chunks_of(op.tokens);
}

size_t attention_keys_units(const Attention& op, int batch) { return size_t(batch) * op.heads; }

size_t attention_units(const Attention& op, int batch) { return size_t(batch) * op.heads * parts_of(op, batch); }

size_t attention_scratch(const Attention& op, int batch) { return size_t(batch) * op.heads * HeadScratch(op).bytes; }

int8_t* panel_room(int64_t bytes) {
  static thread_local Aligned<int8_t> own;
  if (own.size() < size_t(bytes)) own = Aligned<int8_t>(size_t(bytes));
  return own.data();
}

Workspace& workspace(int64_t tiles, int64_t query_blocks, int64_t key_blocks, int64_t panels) {
  static thread_local Workspace own;
  const auto grow = [](auto& buffer, int64_t count) {
    if (buffer.size() < size_t(count)) buffer = std::decay_t<decltype(buffer)>(count);
  };
  grow(own.room, query_blocks * 16 * LINE);
  grow(own.scores, tiles * PANEL * LANES);
  grow(own.lines, key_blocks * 16 * LINE);
  grow(own.context, panels * PANEL * LANES);
  grow(own.factors, tiles * LANES);
  return own;
}

}  // namespace ofq
