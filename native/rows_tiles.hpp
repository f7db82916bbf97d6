// Products of some rows with a matrix of weights in tiles: weights are the first factor as they lie, rows are packed.
#pragma once

#include <algorithm>

#include "inputs.hpp"
#include "tiles.hpp"

#if defined(HW_TILES)

namespace hw {

constexpr int64_t SIDE = 16, DEPTH = 32;  // rows or outputs of a tile, and channels
constexpr int64_t LEAST = 3;              // rows; fewer are quicker in vectors
constexpr int64_t FETCHED = 1024;         // bytes of each output's weights that are fetched ahead

inline int64_t steps_of(const Inputs& in) { return (in.inner + DEPTH - 1) / DEPTH; }
inline int64_t blocks_of(const Inputs& in) { return (in.rows + SIDE - 1) / SIDE; }

// `some` bytes of each of `count` rows, and zeros after them: a tile's 16 rows of 64 bytes.
inline void fill_up(const uint8_t* from, int64_t stride, int64_t count, int64_t some, uint8_t (&out)[SIDE][64]) {
  std::memset(out, 0, sizeof out);
  for (int64_t i = 0; i < count; i++) std::memcpy(out[i], from + i * stride, some);
}

// Pairs of channels [blocks of rows, steps, 16 pairs, 16 rows]; zeros fill both up.
inline const uint32_t* pack(const Inputs& in, Words& held) {
  uint32_t* out = room(held, blocks_of(in) * steps_of(in) * SIDE * SIDE);
  const int64_t stride = in.inner * 2;
  uint32_t* at = out;
  for (int64_t b = 0; b < blocks_of(in); b++)
    for (int64_t s = 0; s < steps_of(in); s++, at += SIDE * SIDE) {
      const int64_t count = std::min(SIDE, in.rows - b * SIDE), some = std::min(DEPTH, in.inner - s * DEPTH);
      const uint8_t* first = in.x + b * SIDE * stride + s * DEPTH * 2;
      uint8_t whole[SIDE][64];
      const uint8_t* rows[SIDE];
      if (count < SIDE || some < DEPTH) fill_up(first, stride, count, some * 2, whole);
      for (int64_t i = 0; i < SIDE; i++) rows[i] = count < SIDE || some < DEPTH ? whole[i] : first + i * stride;
      vu turned[SIDE];
      turn(rows, 0, turned);
      std::memcpy(at, turned, sizeof turned);
    }
  return out;
}

// Sums [blocks, 16 outputs, 16 rows] of the `count` outputs, at most 16, from o0 on.
template <int Blocks>
inline void sums_in_tiles(const Inputs& in, const Matrix& by, int64_t o0, int64_t count, float* sums) {
  const auto each = [&](auto f) {  // f(tile) of every block's sums
    f(std::integral_constant<int, 0>{});
    if constexpr (Blocks > 1) f(std::integral_constant<int, 1>{});
    if constexpr (Blocks > 2) f(std::integral_constant<int, 2>{});
    if constexpr (Blocks > 3) f(std::integral_constant<int, 3>{});
  };
  const int64_t steps = steps_of(in), stride = in.inner * 2;
  const uint8_t* weight = by.weight + o0 * stride;
  each([](auto tile) { tiles::zero<tile()>(); });
  for (int64_t s = 0; s < steps; s++) {
    const uint8_t* at = weight + s * DEPTH * 2;
    const int64_t some = std::min(DEPTH, in.inner - s * DEPTH);
    if (count == SIDE && some == DEPTH) {
      for (int64_t i = 0; i < SIDE; i++) __builtin_prefetch(at + i * stride + FETCHED);
      tiles::load<4>(at, stride);
    } else {
      uint8_t whole[SIDE][64];
      fill_up(at, stride, count, some * 2, whole);
      tiles::load<4>(whole, 64);
    }
    each([&](auto tile) {
      constexpr int rows = 6 + tile() % 2;
      tiles::load<rows>(in.pairs + (tile() * steps + s) * SIDE * SIDE, 64);
      tiles::multiply<tile(), 4, rows>();
    });
  }
  each([&](auto tile) { tiles::store<tile()>(sums + tile() * SIDE * SIDE, 64); });
}

// All rows, up to 64, by the `count` outputs from o0 on: take(row, output, sums [some], some).
template <class Take>
void multiply_tiles(const Inputs& in, const Matrix& by, int64_t o0, int64_t count, const Take& take) {
  const tiles::Ready ready;
  for (int64_t o = o0; o < o0 + count; o += SIDE) {
    const int64_t some = std::min(SIDE, o0 + count - o);
    alignas(64) float sums[4 * SIDE * SIDE];
    float bias[SIDE] = {};
    switch (blocks_of(in)) {
      case 1: sums_in_tiles<1>(in, by, o, some, sums); break;
      case 2: sums_in_tiles<2>(in, by, o, some, sums); break;
      case 3: sums_in_tiles<3>(in, by, o, some, sums); break;
      default: sums_in_tiles<4>(in, by, o, some, sums);
    }
    if (by.bias) widen(in.kind, by.bias + bytes_of(in.kind, o), some, bias);
    for (int64_t r = 0; r < in.rows; r++) {
      float line[SIDE];
      for (int64_t i = 0; i < some; i++) line[i] = sums[(r / SIDE * SIDE + i) * SIDE + r % SIDE] + bias[i];
      take(r, o, line, (int)some);
    }
  }
}

}  // namespace hw

#endif
