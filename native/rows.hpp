// Products of a few rows with a matrix of weights, which is read once, at the speed of memory.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "packed.hpp"
#include "rows_tiles.hpp"

namespace hw {

// R rows are multiplied with OUT outputs at once, each a stream of weights. With one row a single stream is read fastest;
// narrow vectors would wait for its sums. Sums go along a row in one order, whatever the number of rows.
constexpr int ROWS = 4, OUTS = 4;
constexpr int ALONE = W == 16 ? 1 : OUTS;  // outputs beside a single row

#if defined(__AVX512BF16__)
template <int R, int OUT>
void outputs_bf16(const Inputs& in, const uint8_t* weight, int64_t r0, int64_t o0, int count, float* sums) {
  __m512 s[R][OUT];
  for (auto& line : s)
    for (__m512& one : line) one = _mm512_setzero_ps();
  const uint16_t* x = (const uint16_t*)in.x + r0 * in.inner;
  const uint16_t* w[OUT];
  for (int o = 0; o < OUT; o++) w[o] = (const uint16_t*)weight + (o0 + std::min(o, count - 1)) * in.inner;
  const int64_t further = ahead<OUT>(in.inner * 2);
  const auto take = [&](int64_t c, auto read) {  // 32 channels, or what is left of them
    __m512bh a[R];
    UNROLL for (int r = 0; r < R; r++) a[r] = (__m512bh)read(x + r * in.inner + c);
    UNROLL for (int o = 0; o < OUT; o++) {
      __builtin_prefetch((const uint8_t*)(w[o] + c) + further);
      const __m512bh b = (__m512bh)read(w[o] + c);
      UNROLL for (int r = 0; r < R; r++) s[r][o] = _mm512_dpbf16_ps(s[r][o], a[r], b);
    }
  };
  int64_t c = 0;
  for (; c + 32 <= in.inner; c += 32) take(c, [](const uint16_t* p) { return _mm512_loadu_si512(p); });
  const __mmask32 there = (1u << (in.inner - c)) - 1;
  if (there) take(c, [there](const uint16_t* p) { return _mm512_maskz_loadu_epi16(there, p); });
  for (int r = 0; r < R; r++)
    for (int o = 0; o < OUT; o++) sums[r * OUT + o] = _mm512_reduce_add_ps(s[r][o]);
}
#else
template <int R, int OUT>
void outputs_bf16(const Inputs& in, const uint8_t* weight, int64_t r0, int64_t o0, int count, float* sums) {
  vf s[R][OUT] = {};
  const uint8_t* x = in.x + r0 * in.inner * 2;
  const uint8_t* w[OUT];
  for (int o = 0; o < OUT; o++) w[o] = weight + (o0 + std::min(o, count - 1)) * in.inner * 2;
  int64_t c = 0;
  for (; c + W <= in.inner; c += W)
    for (int o = 0; o < OUT; o++) {
      const vf b = from_bf16(load<vh>(w[o] + 2 * c));
      for (int r = 0; r < R; r++) s[r][o] += from_bf16(load<vh>(x + 2 * (r * in.inner + c))) * b;
    }
  for (int r = 0; r < R; r++)
    for (int o = 0; o < OUT; o++) {
      sums[r * OUT + o] = sum(s[r][o]);
      for (int64_t i = c; i < in.inner; i++)
        sums[r * OUT + o] += from_bf16(load<uint16_t>(x + 2 * (r * in.inner + i))) * from_bf16(load<uint16_t>(w[o] + 2 * i));
    }
}
#endif

template <int R, int OUT>
void outputs_f32(const Inputs& in, const uint8_t* weight, int64_t r0, int64_t o0, int count, float* sums) {
  vf s[R][OUT] = {};
  const float* x = (const float*)in.x + r0 * in.inner;
  const float* w[OUT];
  for (int o = 0; o < OUT; o++) w[o] = (const float*)weight + (o0 + std::min(o, count - 1)) * in.inner;
  const int64_t further = ahead<OUT>(in.inner * 4);
  int64_t c = 0;
  for (; c + W <= in.inner; c += W)
    for (int o = 0; o < OUT; o++) {
      __builtin_prefetch((const uint8_t*)(w[o] + c) + further);
      const vf b = load<vf>(w[o] + c);
      for (int r = 0; r < R; r++) s[r][o] += load<vf>(x + r * in.inner + c) * b;
    }
  for (int r = 0; r < R; r++)
    for (int o = 0; o < OUT; o++) {
      sums[r * OUT + o] = sum(s[r][o]);
      for (int64_t i = c; i < in.inner; i++) sums[r * OUT + o] += x[r * in.inner + i] * w[o][i];
    }
}

// R rows from r0 on by `count` outputs, at most OUT of them, from o0 on. take(row, output, sums [count], count).
template <int R, int OUT, class Take>
void block_of(const Inputs& in, const Matrix& by, int64_t r0, int64_t o0, int count, const Take& take) {
  float sums[R * OUT];
  if (by.packing == CODES8)
    outputs_packed<CODES8, R, OUT>(in, by, r0, o0, count, sums);
  else if (by.packing == CODES4)
    outputs_packed<CODES4, R, OUT>(in, by, r0, o0, count, sums);
  else if (in.kind == F32)
    outputs_f32<R, OUT>(in, by.weight, r0, o0, count, sums);
  else
    outputs_bf16<R, OUT>(in, by.weight, r0, o0, count, sums);
  if (by.bias) {
    float bias[OUT];
    widen(in.kind, by.bias + bytes_of(in.kind, o0), count, bias);
    for (int r = 0; r < R; r++)
      for (int o = 0; o < count; o++) sums[r * OUT + o] += bias[o];
  }
  for (int r = 0; r < R; r++) take(r0 + r, o0, sums + r * OUT, count);
}

// What a thread multiplies rows by: as it is, packed for tiles where there are enough of them, and as floats where some of
// the weights are packed.
inline Inputs inputs(
    const uint8_t* x, int64_t rows, int64_t inner, Kind kind, std::initializer_list<const Matrix*> by, Forms& held) {
  Inputs in{x, rows, inner, kind, nullptr, nullptr, nullptr};
  bool packed = false;
  for (const Matrix* one : by) packed |= one->packing != PLAIN;
  if (packed) widen_rows(in, held);
#if defined(HW_TILES)
  if (kind == BF16 && !packed && rows >= LEAST && rows <= 4 * SIDE) in.pairs = pack(in, held.pairs);
#endif
  return in;
}

// Outputs that one thread takes at a time.
inline int64_t unit_of(const Inputs& in) { return in.pairs ? 16 : OUTS; }
constexpr int MOST = 16;  // outputs that are taken at once

// All rows by the `count` outputs from o0 on: take(row, output, sums [some], some), at most MOST of them.
template <class Take>
void multiply(const Inputs& in, const Matrix& by, int64_t o0, int64_t count, const Take& take) {
#if defined(HW_TILES)
  if (in.pairs) return multiply_tiles(in, by, o0, count, take);
#endif
  for (int64_t o = o0; o < o0 + count; o += OUTS) {
    const int outs = (int)std::min<int64_t>(OUTS, o0 + count - o);
    int64_t r = 0;
    for (; r + ROWS <= in.rows; r += ROWS) block_of<ROWS, OUTS>(in, by, r, o, outs, take);
    for (; r + 2 <= in.rows; r += 2) block_of<2, OUTS>(in, by, r, o, outs, take);
    for (; r < in.rows; r++)
      for (int i = 0; i < outs; i += ALONE) block_of<1, ALONE>(in, by, r, o + i, std::min(ALONE, outs - i), take);
  }
}

}  // namespace hw
