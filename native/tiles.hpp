// Matrix registers: Intel AMX, palette 1 (Intel SDM, volume 1, chapter 18), or the same in C++ under HW_EMULATE_TILES.
// Eight tiles of 16 rows of 64 bytes, configured per thread. The functions name a tile by number.
#pragma once

#include "simd.hpp"

#if defined(__AMX_BF16__) || defined(HW_EMULATE_TILES)
#define HW_TILES

namespace hw::tiles {

// What ldtilecfg reads: bytes of a row and rows, by tile.
struct alignas(64) Config {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

}  // namespace hw::tiles

#if defined(HW_EMULATE_TILES)
#include "tiles_emulated.hpp"
#else
namespace hw::tiles {

// Instructions are written out, as GCC's intrinsics do not tell the compiler which memory they read.
inline void configure(const Config& config) { asm volatile("ldtilecfg %0" ::"m"(config) : "memory"); }

inline void release() { asm volatile("tilerelease" ::: "memory"); }

template <int T>
inline void zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}

// Row i is at from + i * stride bytes.
template <int T>
inline void load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}

template <int T>
inline void store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}

// Tile To [16, 16 floats] += tile A [16, 16 pairs of bfloat16] times tile B [16 pairs, 16 columns].
template <int To, int A, int B>
inline void multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(To), "i"(A), "i"(B));
}

}  // namespace hw::tiles
#endif

namespace hw::tiles {

constexpr Config WHOLE = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};

// A thread's tiles, all whole, for as long as this lives.
struct Ready {
  Ready() { configure(WHOLE); }
  ~Ready() { release(); }
  Ready(const Ready&) = delete;
};

}  // namespace hw::tiles
#endif
