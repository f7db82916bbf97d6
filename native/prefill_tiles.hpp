// The same product in tiles: a packed column of pairs is as it lies the second factor of a tile's product.
#pragma once

#include "prefill_multiply.hpp"
#include "tiles.hpp"

#if defined(HW_TILES)

namespace hw {

// Bfloat16 pairs in tiles: 16 rows by 32 channels (or keys) by 16 columns. An instruction takes its time however few
// channels it sums, so tiles are always whole: zeros are added to keys, and values taken two blocks at once.
struct Tiles {
  using Element = uint16_t;
  using Ready = tiles::Ready;
  static constexpr int step = 2, rows = 16, channels = 32, blocks = 2;
  static constexpr Kind kind = BF16;
  static constexpr bool rough = true;
  static Element from(float x) { return to_bf16(x); }
  static void put(Element* to, const vf (&x)[step]) { put_bf16(to, x[0], x[1]); }
};

// Rs * 16 rows by Cs * 16 columns: tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 columns.
template <bool Add, int Rs, int Cs, class Column>
inline void multiply_tiles(const Left<Tiles>& left, int64_t r0, float* sums, int64_t stride, int64_t pieces,
                           Column column) {
  const auto each = [&](auto f) {  // f(tile, its place) of every sum
    f(std::integral_constant<int, 0>{}, sums);
    if constexpr (Cs == 2) f(std::integral_constant<int, 1>{}, sums + 16);
    if constexpr (Rs == 2) f(std::integral_constant<int, 2>{}, sums + 16 * stride);
    if constexpr (Rs == 2 && Cs == 2) f(std::integral_constant<int, 3>{}, sums + 16 * stride + 16);
  };
  each([&](auto tile, float* at) {
    if constexpr (Add)
      tiles::load<tile()>(at, stride * sizeof(float));
    else
      tiles::zero<tile()>();
  });
  const int64_t row = left.stride * sizeof(uint16_t), line = 2 * W * sizeof(uint16_t);
  for (int64_t s = 0; s < pieces; s++) {
    const uint16_t* a = left.from + r0 * left.stride + s * left.depth;
    const uint16_t* b[Cs];
    for (int c = 0; c < Cs; c++) b[c] = column(c, s);
    for (int64_t k = 0; k < left.depth; k += Tiles::channels) {
      tiles::load<4>(a + k, row);
      if constexpr (Rs == 2) tiles::load<5>(a + k + 16 * left.stride, row);
      tiles::load<6>(b[0] + k * W, line);
      if constexpr (Cs == 2) tiles::load<7>(b[1] + k * W, line);
      tiles::multiply<0, 4, 6>();
      if constexpr (Cs == 2) tiles::multiply<1, 4, 7>();
      if constexpr (Rs == 2) tiles::multiply<2, 5, 6>();
      if constexpr (Rs == 2 && Cs == 2) tiles::multiply<3, 5, 7>();
    }
  }
  each([&](auto tile, float* at) { tiles::store<tile()>(at, stride * sizeof(float)); });
}

// Two by two sums, where there are as many: a load (8 cycles) then serves two products (16 each).
template <bool Add, class Column>
inline void multiply(const Left<Tiles>& left, float* to, int64_t stride, int64_t columns, int64_t pieces,
                     Column column) {
  stretches<2>(columns, [&](int64_t first, auto width) {
    stretches<2>(left.rows / Tiles::rows, [&](int64_t r, auto height) {
      const int64_t r0 = r * Tiles::rows;
      multiply_tiles<Add, height(), width()>(left, r0, to + r0 * stride + first * W, stride, pieces,
                                             [&](int64_t c, int64_t s) { return column(first + c, s); });
    });
  });
}

}  // namespace hw

#endif
