// What a linear layer for a few rows is given.
#pragma once

#include <vector>

#include "simd.hpp"

namespace hw {

struct Matrix {
  const uint8_t* weight;  // [outer, inner]
  const uint8_t* bias;    // [outer] or null
  int64_t outer;
};

// Rows end to end, of the weights' type: bfloat16 or float32. pairs: the same as tiles take it, or null.
struct Inputs {
  const uint8_t* x;  // [rows, inner]
  int64_t rows, inner;
  Kind kind;
  const uint32_t* pairs;
};

using Floats = std::vector<float>;
using Bytes = std::vector<uint8_t>;
using Words = std::vector<uint32_t>;

// Room that grows to what was ever asked of it.
template <class T>
T* room(std::vector<T>& held, int64_t count) {
  if ((int64_t)held.size() < count) held.resize(count);
  return held.data();
}

}  // namespace hw
