// Root-mean-square norms of a row, in the manners that models have.
#pragma once

#include "simd.hpp"

namespace hw {

enum Manner : int32_t {
  ROUNDED = 0,   // the normalised row, rounded, times the weight
  AT_ONCE = 1,   // both multiplied before they are rounded
  PLUS_ONE = 2,  // the same with 1 + weight
};

struct Norm {
  const uint8_t* weight;  // [width] of the row's type; null: there is no norm
  float eps;
  int32_t manner;
};

// What `line [count]` is after it was stored in `kind`.
inline void round_to(Kind kind, float* line, int64_t count) {
  if (kind == F32) return;
  for (int64_t c = 0; c < count; c += W) {
    uint8_t stored[W * 2];
    const int64_t some = count - c < W ? count - c : W;
    narrow(kind, line + c, some, stored);
    widen(kind, stored, some, line + c);
  }
}

// Normalises line [width] in place, as numbers of `kind`. weight: room for [width] floats.
inline void normalise(const Norm& norm, Kind kind, float* line, int64_t width, float* weight) {
  vf squares{};
  int64_t c = 0;
  for (; c + W <= width; c += W) squares += load<vf>(line + c) * load<vf>(line + c);
  float total = sum(squares);
  for (; c < width; c++) total += line[c] * line[c];
  const float scale = 1 / std::sqrt(total / width + norm.eps);
  widen(kind, norm.weight, width, weight);
  for (int64_t i = 0; i < width; i++) line[i] *= scale;
  if (norm.manner == ROUNDED) round_to(kind, line, width);
  const float more = norm.manner == PLUS_ONE ? 1 : 0;
  for (int64_t i = 0; i < width; i++) line[i] *= more + weight[i];
  round_to(kind, line, width);
}

}  // namespace hw
