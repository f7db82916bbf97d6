// What a linear layer for a few rows is given.
#pragma once

#include <vector>

#include "simd.hpp"

namespace hw {

enum Packing : int32_t { PLAIN = 0, CODES8 = 1, CODES4 = 2 };
constexpr int64_t GROUP = 32;  // weights that share a scale

// Weights as they are; or whole numbers with a scale for each GROUP of a row: code * scale, of signed bytes, or code *
// scale + low, of halves of bytes, the low ones first.
struct Matrix {
  const uint8_t* weight;  // [outer, inner]
  const uint8_t* bias;    // [outer] or null
  const uint16_t* scale;  // [outer, inner / GROUP], float16; null if PLAIN
  const uint16_t* low;    // the same, of CODES4
  int64_t outer;
  int32_t packing;
};

// Rows end to end, bfloat16 or float32, as plain weights are. pairs: the same as tiles take it, or null. For packed
// weights, or null: wide, as floats, and sums [rows, inner / GROUP], of each group of channels.
struct Inputs {
  const uint8_t* x;  // [rows, inner]
  int64_t rows, inner;
  Kind kind;
  const uint32_t* pairs;
  const float *wide, *sums;
};

using Floats = std::vector<float>;
using Bytes = std::vector<uint8_t>;
using Words = std::vector<uint32_t>;

// Bytes that a stream of weights is fetched ahead: to the next OUT outputs where these begin soon, as streams are too short
// there for the processor to see them.
template <int OUT>
constexpr int64_t ahead(int64_t row) {
  return OUT > 1 && row <= 4096 ? OUT * row : 4096 / OUT;
}

// What a thread keeps of its inputs in other forms.
struct Forms {
  Words pairs;
  Floats wide, sums;
};

// Room that grows to what was ever asked of it.
template <class T>
T* room(std::vector<T>& held, int64_t count) {
  if ((int64_t)held.size() < count) held.resize(count);
  return held.data();
}

}  // namespace hw
