// The product of rows and packed columns that both halves of attention are made of, in vectors.
#pragma once

#include <type_traits>

#include "simd.hpp"

namespace hw {

// Rows and vectors held in registers at once: R * C sums, C vectors and one broadcast.
constexpr int R = W == 16 ? 8 : 4;
constexpr int C = W == 4 ? 2 : 3;

// What the products in vectors have in common.
struct Vectors {
  struct Ready {};                    // nothing that a thread must set up
  static constexpr int rows = R;      // rows come in multiples of this,
  static constexpr int channels = 1;  // channels of keys in multiples of this,
  static constexpr int blocks = 1;    // and so many blocks of values are taken together
};

// Float32 multiply: one channel a step.
struct Single : Vectors {
  using Element = float;
  using Vector = vf;
  static constexpr int step = 1;
  static constexpr Kind kind = F32;
  static constexpr bool rough = false;
  static Element from(float x) { return x; }
  static Vector each(const Element* a) { return splat(*a); }
  static vf add(vf sum, Vector a, Vector b) { return sum + a * b; }
  static void put(Element* to, const vf (&x)[step]) { store(to, x[0]); }
};

#if defined(__AVX512BF16__)
// Bfloat16 pairs, summed in float32: two channels (or keys) a step.
struct Pairs : Vectors {
  using Element = uint16_t;
  using Vector = __m512bh;
  static constexpr int step = 2;
  static constexpr Kind kind = BF16;
  static constexpr bool rough = true;
  static Element from(float x) { return to_bf16(x); }
  static Vector each(const Element* a) { return (Vector)_mm512_set1_epi32(load<int32_t>(a)); }
  static vf add(vf sum, Vector a, Vector b) { return (vf)_mm512_dpbf16_ps((__m512)sum, a, b); }
  static void put(Element* to, const vf (&x)[step]) { put_bf16(to, x[0], x[1]); }
};
#endif

// Rows of a product. In each, the elements that meet a packed column lie side by side, column after column.
template <class M>
struct Left {
  const typename M::Element* from;
  int64_t stride;  // elements from row to row
  int64_t rows;    // a multiple of M::rows
  int64_t depth;   // elements that meet one packed column
};

// sum[r][c] += rows a + r * stride times packed vectors b[c], `steps` steps of M::step elements each.
template <class M, int Cs>
inline void multiply_registers(vf (&sum)[R][Cs], const typename M::Element* a, int64_t stride, int64_t steps,
                               const typename M::Element* const (&b)[Cs]) {
  for (int64_t s = 0; s < steps; s++) {
    typename M::Vector v[Cs];
#pragma GCC unroll 8
    for (int c = 0; c < Cs; c++) v[c] = load<typename M::Vector>(b[c] + s * M::step * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const typename M::Vector x = M::each(a + r * stride + s * M::step);
#pragma GCC unroll 8
      for (int c = 0; c < Cs; c++) sum[r][c] = M::add(sum[r][c], x, v[c]);
    }
  }
}

// Calls f(first, std::integral_constant<width>) for even stretches of at most `Most` out of `count` vectors.
template <int Most, class F>
inline void stretches(int64_t count, F f) {
  const int64_t parts = (count + Most - 1) / Most;
  for (int64_t i = 0, first = 0; i < parts; i++) {
    const int64_t width = count / parts + (i < count % parts);
    if (width == 1) f(first, std::integral_constant<int, 1>{});
    if (width == 2) f(first, std::integral_constant<int, 2>{});
    if constexpr (Most >= 3)
      if (width == 3) f(first, std::integral_constant<int, 3>{});
    first += width;
  }
}

// to[r * stride + c * W + i] = the product of row r with column i of `columns` packed vectors c, or, with `Add`, that
// much more. A column is in `pieces`: column(c, s) is where the elements lie that piece s of a row meets.
template <bool Add, class M, class Column>
inline void multiply(const Left<M>& left, float* to, int64_t stride, int64_t columns, int64_t pieces, Column column) {
  stretches<C>(columns, [&](int64_t first, auto width) {
    constexpr int Cs = decltype(width)::value;
    for (int64_t r0 = 0; r0 < left.rows; r0 += R) {
      float* sums = to + r0 * stride + first * W;
      vf sum[R][Cs] = {};
      if constexpr (Add)
        for (int r = 0; r < R; r++)
          for (int c = 0; c < Cs; c++) sum[r][c] = load<vf>(sums + r * stride + c * W);
      for (int64_t s = 0; s < pieces; s++) {
        const typename M::Element* packed[Cs];
        for (int c = 0; c < Cs; c++) packed[c] = column(first + c, s);
        const typename M::Element* rows = left.from + r0 * left.stride + s * left.depth;
        multiply_registers<M, Cs>(sum, rows, left.stride, left.depth / M::step, packed);
      }
      for (int r = 0; r < R; r++)
        for (int c = 0; c < Cs; c++) store(sums + r * stride + c * W, sum[r][c]);
    }
  });
}

}  // namespace hw
