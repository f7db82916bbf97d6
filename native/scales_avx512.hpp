// The scales of a block's tokens, for keys and values stored as integers.
#pragma once

#include "block.hpp"

#if defined(__AVX512F__)

namespace hw {

// One float16 number per token of the block and group of channels: out [group][BLOCK], 0 after the block's end.
inline void token_numbers(const Side& side, const uint8_t* plane, const Block& block, Lined<float>& out) {
  const int64_t groups = side.width / side.group;
  out.assign(groups * BLOCK, 0.0f);
  for (int64_t g = 0; g < groups; g++)
    for (int j = 0; j < block.count; j += 16) {
      bool together = side.scale_token == 2;  // each of them looked at: chosen tokens have gaps, and a short block ends in
      for (int i = 1; together && i < 16; i++) together = block.slot[j + i] == block.slot[j] + i;  // the same one again
      uint16_t bits[16];
      if (!together)
        for (int i = 0; i < 16; i++) bits[i] = load<uint16_t>(plane + block.slot[j + i] * side.scale_token + 2 * g);
      const uint8_t* from = together ? plane + 2 * block.slot[j] : (const uint8_t*)bits;
      _mm512_storeu_ps(&out[g * BLOCK + j], _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from)));
    }
}

// The scales of a block's tokens, and what their channels count from where the kernel sees them `from` too small:
// minimum + from * scale. No offsets where that is nothing.
inline void take_scales(const Side& side, int from, const Block& block, Scratch& scratch) {
  token_numbers(side, side.scale, block, scratch.scales);
  if (side.minimum) token_numbers(side, side.minimum, block, scratch.offsets);
  if (!from) return;
  if (!side.minimum) scratch.offsets.assign(scratch.scales.size(), 0.0f);
  for (size_t i = 0; i < scratch.offsets.size(); i++) scratch.offsets[i] += from * scratch.scales[i];
}

}  // namespace hw

#endif
