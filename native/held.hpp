// Keys and values where they lie: a tensor with strides, or pages named by a table; element types read in place.
#pragma once

#include <algorithm>

#include "frame.hpp"
#include "simd.hpp"

namespace hw {

// One of keys and values. Token at slot s of lane l: data + l * lane + s * token, its scales: scale + s * scale_token.
struct Side {
  const uint8_t* data;
  const uint8_t* scale;    // float16 per group of channels, or null
  const uint8_t* minimum;  // the same, of int4 and int2: a channel is minimum + scale * code; null for the others
  int64_t lane;          // bytes between lanes (0: slots count through all lanes)
  int64_t token;         // bytes between slots
  int64_t scale_token;   // bytes between the scales of slots
  int64_t width;         // channels
  int32_t kind;
  int32_t group;         // channels that share a scale
  const float* frames;   // by lane, see frame_of; null: vectors lie as they are

  Frame frame(int64_t lane) const { return frame_of(frames, lane, width); }
};

struct Held {
  Side key, value;
  const int64_t* length;  // tokens, by lane
  const int64_t* first;   // slot of token 0, by lane; with a table: its first entry, by lane
  const int32_t* table;   // physical page by logical page, or null where a lane's slots follow each other
  int64_t page;           // tokens of a page
  int64_t lanes;

  // Slot of token i of a lane, and how many tokens from it on, at most `most`, lie in slots that follow.
  struct Run {
    int64_t slot, count;
  };
  Run run(int64_t l, int64_t i, int64_t most) const { return {slot(l, i), table ? std::min(most, page - i % page) : most}; }

  // Slot of token i of a lane.
  int64_t slot(int64_t l, int64_t i) const {
    return table ? (int64_t)table[first[l] + i / page] * page + i % page : first[l] + i;
  }
};

inline const uint8_t* row(const Side& side, int64_t lane, int64_t slot) {
  return side.data + lane * side.lane + slot * side.token;
}

// One of a token's float16 numbers by group: `plane` is side.scale or side.minimum.
inline float number_of(const Side& side, const uint8_t* plane, int64_t slot, int64_t group) {
  return from_f16(load<uint16_t>(plane + slot * side.scale_token + 2 * group));
}

// A token's channels as floats, scales and minima applied; in their frame where there is one.
template <Kind K>
inline void dequantise(const Side& side, int64_t lane, int64_t slot, float* out) {
  widen<K>(row(side, lane, slot), side.width, out);
  if (!side.scale) return;
  for (int64_t g = 0; g * side.group < side.width; g++) {
    const float scale = number_of(side, side.scale, slot, g);
    const float minimum = side.minimum ? number_of(side, side.minimum, slot, g) : 0.0f;
    for (int64_t c = g * side.group; c < std::min((g + 1) * side.group, side.width); c++) out[c] = minimum + scale * out[c];
  }
}

}  // namespace hw
