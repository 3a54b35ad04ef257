// Sizes that the tasks of all instruction sets share.
#pragma once
#include "operators.h"

namespace ofq {

OFQ_SHARED int64_t chunks_of(int tokens) { return ceil_div(tiles_of(tokens), CHUNK); }

// Into how many tasks the queries of a head are cut: few heads would leave threads without work.
OFQ_SHARED int64_t parts_of(const Attention& op, int batch) {
  const int64_t tiles = tiles_of(op.rows), heads = int64_t(batch) * op.heads;
  const int64_t wanted = heads >= 16 ? 1 : ceil_div(16, heads);
  return wanted < tiles ? wanted : tiles;
}

// Where the first phase of attention leaves what the second needs of a head, in bytes from the head's start.
struct HeadScratch {
  int64_t key_blocks, value_panels, value_blocks;
  size_t keys, values, start, key_terms, bytes;
  explicit OFQ_SHARED HeadScratch(const Attention& op)
      : key_blocks(ceil_div(op.width, BLOCK)),
        value_panels(ceil_div(op.value_width, PANEL)),
        value_blocks(ceil_div(op.tokens, BLOCK)) {
    const int64_t tiles = tiles_of(op.tokens);
    keys = 0;                                                       // int8 [tiles][key_blocks][16 keys][64]
    values = keys + tiles * key_blocks * PANEL * BLOCK;             // int8 [value_panels][value_blocks][16][64 keys]
    start = values + value_panels * value_blocks * PANEL * BLOCK;   // int32 [tiles * 16]
    key_terms = start + tiles * LANES * sizeof(int32_t);            // float [tiles * 16]
    bytes = key_terms + round_up(tiles * LANES * sizeof(float), LINE);
  }
};

}  // namespace ofq
