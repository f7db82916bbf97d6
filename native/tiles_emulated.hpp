// Tiles in plain C++, for tests on machines that have none: as Intel's SDM defines LDTILECFG, TILELOADD, TILESTORED and
// TDPBF16PS, and an abort with the reason where the processor would fault.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "tiles.hpp"

namespace hw::tiles {

// A thread's.
struct Registers {
  Config config;
  uint8_t data[8][16][64];
};
inline thread_local Registers registers = {};  // palette 0: not configured

inline void need(bool held, const char* rule) {
  if (held) return;
  std::fprintf(stderr, "tiles: a processor would fault: %s\n", rule);
  std::abort();
}

inline void configure(const Config& config) {
  need(config.palette == 1, "palette is 1");
  need(!config.start, "loads begin at row 0 (others are interrupted ones, which are not emulated)");
  for (uint8_t byte : config.reserved) need(!byte, "reserved bytes are 0");
  for (int t = 0; t < 16; t++) {
    need(config.rows[t] <= (t < 8 ? 16 : 0), "at most 16 rows, in 8 tiles");
    need(config.bytes[t] <= (t < 8 ? 64 : 0), "at most 64 bytes a row, in 8 tiles");
    need(!config.rows[t] == !config.bytes[t], "a tile has both rows and bytes, or neither");
  }
  registers = {config, {}};
}

inline void release() { registers = {}; }

// Rows and bytes of a row of a tile that may be used.
template <int T>
inline void usable() {
  static_assert(T >= 0 && T < 8);
  need(registers.config.palette == 1, "tiles are configured");
  need(registers.config.rows[T], "the tile is configured");
  need(registers.config.bytes[T] % 4 == 0, "rows are whole dwords");
}

template <int T>
inline void zero() {
  usable<T>();
  std::memset(registers.data[T], 0, sizeof registers.data[T]);
}

template <int T>
inline void load(const void* from, int64_t stride) {
  zero<T>();  // what lies beyond the rows and bytes configured too
  for (int i = 0; i < registers.config.rows[T]; i++)
    std::memcpy(registers.data[T][i], (const uint8_t*)from + i * stride, registers.config.bytes[T]);
}

template <int T>
inline void store(void* to, int64_t stride) {
  usable<T>();
  for (int i = 0; i < registers.config.rows[T]; i++)
    std::memcpy((uint8_t*)to + i * stride, registers.data[T][i], registers.config.bytes[T]);
}

// Denormals are zeros, read or written.
inline float normal(float x) { return std::fabs(x) < FLT_MIN ? std::copysign(0.0f, x) : x; }

inline float element(int tile, int row, int i) {
  return normal(from_bf16(hw::load<uint16_t>(registers.data[tile][row] + 2 * i)));
}

// Even and odd channels are summed apart, from zero, by fused multiply-add; then their sum is added to the tile.
template <int To, int A, int B>
inline void multiply() {
  usable<To>(), usable<A>(), usable<B>();
  const Config& is = registers.config;
  need(To != A && To != B && A != B, "three different tiles");
  need(is.rows[To] == is.rows[A], "as many rows as the first factor has");
  need(is.bytes[To] == is.bytes[B], "as many columns as the second factor has");
  need(is.bytes[A] == 4 * is.rows[B], "as many pairs in a row of the first factor as the second has rows");
  for (int m = 0; m < is.rows[To]; m++) {
    float sum[2][16] = {};
    for (int k = 0; k < 2 * is.rows[B]; k++) {
      const float a = element(A, m, k);
      for (int n = 0; n < is.bytes[To] / 4; n++) {
        float& at = sum[k % 2][n];
        at = normal(std::fma(a, element(B, k / 2, 2 * n + k % 2), at));
      }
    }
    for (int n = 0; n < is.bytes[To] / 4; n++) {
      uint8_t* at = registers.data[To][m] + 4 * n;
      const float total = normal(normal(hw::load<float>(at)) + normal(sum[0][n] + sum[1][n]));
      std::memcpy(at, &total, sizeof total);
    }
  }
}

}  // namespace hw::tiles
