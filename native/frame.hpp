// The frame of a lane's vectors: what is stored of x is S H ((x - centre) * stretch), H Hadamard's matrix, S signs.
#pragma once

#include <cmath>

#include "simd.hpp"

namespace hw {

// Of one lane; centre null: vectors are stored as they are.
struct Frame {
  const float* centre;
  const float* stretch;
};

// Frames [lanes, 2, width] at `frames`, or null.
inline Frame frame_of(const float* frames, int64_t lane, int64_t width) {
  if (!frames) return {nullptr, nullptr};
  return {frames + 2 * lane * width, frames + (2 * lane + 1) * width};
}

// x [width] times Hadamard's matrix, not made shorter, of as many channels as a power of two divides the width by, block
// by block. Not inlined, so that its additions stay what they are in torch: fused with a product they would round once less.
[[gnu::noinline]] static void hadamard(float* x, int64_t width) {
  const int64_t span = width & -width;
  for (int64_t half = 1; half < span; half *= 2)
    for (int64_t at = 0; at < width; at += 2 * half)
      for (int64_t i = at; i < at + half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a + b, x[i + half] = a - b;
      }
}

// Makes x [width] as long as it was before `hadamard`, or before it will be, with the signs of Rudin and Shapiro: what
// all stored channels have in common, as codes that count from 0 do, then comes back as a little of every channel.
inline void sign(float* x, int64_t width) {
  const int64_t span = width & -width;
  const float norm = (float)(1 / std::sqrt((double)span));
  for (int64_t c = 0; c < width; c++) {
    const uint64_t i = c % span;
    x[c] *= __builtin_popcountll(i & i >> 1) & 1 ? -norm : norm;
  }
}

// x [width] into the frame.
inline void enter(const Frame& frame, float* x, int64_t width) {
  for (int64_t c = 0; c < width; c++) x[c] = (x[c] - frame.centre[c]) * frame.stretch[c];
  hadamard(x, width);
  sign(x, width);
}

// What lies in the frame as it was.
inline void leave(const Frame& frame, float* x, int64_t width) {
  sign(x, width);
  hadamard(x, width);
  for (int64_t c = 0; c < width; c++) x[c] = x[c] / frame.stretch[c] + frame.centre[c];
}

// A query to meet keys in their frame; returns its product with their centre, by which all its scores are then short.
inline float meet(const Frame& frame, float* q, int64_t width) {
  float centre = 0;
  for (int64_t c = 0; c < width; c++) centre += q[c] * frame.centre[c], q[c] /= frame.stretch[c];
  hadamard(q, width);
  sign(q, width);
  return centre;
}

}  // namespace hw
