// Products of a few rows with weights in whole numbers, which are turned to floats in registers as they are read.
#pragma once

#include <algorithm>

#include "inputs.hpp"

namespace hw {

constexpr int VECTORS = GROUP / W;  // of a group's weights
typedef uint8_t vub __attribute__((vector_size(W)));

inline float half(uint16_t x) {
#if defined(__F16C__) || defined(__AVX512F__)
  return _cvtsh_ss(x);
#else
  return from_f16(x);
#endif
}

template <Packing P>
constexpr int64_t CODE_BYTES = P == CODES8 ? GROUP : GROUP / 2;  // of a group

inline vf from_bytes(const uint8_t* codes) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)codes)));
#elif defined(__AVX2__)
  return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)codes)));
#else
  return __builtin_convertvector(load<vb>(codes), vf);
#endif
}

inline vi whole_bytes(const uint8_t* codes) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)codes));
#elif defined(__AVX2__)
  return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)codes));
#else
  return __builtin_convertvector(load<vub>(codes), vi);
#endif
}

// The codes of one group, in floats. In CODES4 byte i holds those of weights i and i + GROUP / 2.
template <Packing P>
inline void codes_of(const uint8_t* codes, vf (&out)[VECTORS]) {
  if constexpr (P == CODES8) {
    UNROLL for (int i = 0; i < VECTORS; i++) out[i] = from_bytes(codes + i * W);
  } else {
    UNROLL for (int i = 0; i < VECTORS / 2; i++) {
      const vi both = whole_bytes(codes + i * W);
      out[i] = __builtin_convertvector(both & 15, vf);
      out[i + VECTORS / 2] = __builtin_convertvector(both >> 4, vf);
    }
  }
}

// What `low` of each group adds to one output of a row whose channels sum up to `sums` in each group.
inline float lows(const uint16_t* low, const float* sums, int64_t groups) {
  vf added{};
  int64_t g = 0;
  for (; g + W <= groups; g += W) added += from_f16(load<vh>(low + g)) * load<vf>(sums + g);
  float total = sum(added);
  for (; g < groups; g++) total += half(low[g]) * sums[g];
  return total;
}

// Rows as floats, and the sums of each group of their channels.
inline void widen_rows(Inputs& in, Forms& held) {
  const int64_t groups = in.inner / GROUP;
  float* wide = room(held.wide, in.rows * in.inner);
  float* sums = room(held.sums, in.rows * groups);
  widen(in.kind, in.x, in.rows * in.inner, wide);
  for (int64_t g = 0; g < in.rows * groups; g++) {
    vf whole{};
    for (int i = 0; i < VECTORS; i++) whole += load<vf>(wide + g * GROUP + i * W);
    sums[g] = sum(whole);
  }
  in.wide = wide, in.sums = sums;
}

// R rows from r0 on by `count` outputs, at most OUT of them, from o0 on. Sums go along a row in one order, whatever the
// number of rows.
template <Packing P, int R, int OUT>
void outputs_packed(const Inputs& in, const Matrix& by, int64_t r0, int64_t o0, int count, float* sums) {
  vf s[R][OUT] = {};
  const int64_t groups = in.inner / GROUP;
  const float* x = in.wide + r0 * in.inner;
  const uint8_t* codes[OUT];
  const uint16_t *scale[OUT], *low[OUT];
  for (int o = 0; o < OUT; o++) {
    const int64_t first = (o0 + std::min(o, count - 1)) * groups;
    codes[o] = by.weight + first * CODE_BYTES<P>;
    scale[o] = by.scale + first;
    if constexpr (P == CODES4) low[o] = by.low + first;
  }
  const int64_t further = ahead<OUT>(groups * CODE_BYTES<P>);
  for (int64_t g = 0; g < groups; g++, x += GROUP) {
    vf own[R][VECTORS];
    UNROLL for (int r = 0; r < R; r++)
      UNROLL for (int i = 0; i < VECTORS; i++) own[r][i] = load<vf>(x + r * in.inner + i * W);
    UNROLL for (int o = 0; o < OUT; o++) {
      const uint8_t* at = codes[o] + g * CODE_BYTES<P>;
      __builtin_prefetch(at + further);
      vf w[VECTORS];
      codes_of<P>(at, w);
      const float step = half(scale[o][g]);
      UNROLL for (int r = 0; r < R; r++) {
        vf part = own[r][0] * w[0];
        UNROLL for (int i = 1; i < VECTORS; i++) part += own[r][i] * w[i];
        s[r][o] += part * step;
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int o = 0; o < OUT; o++) {
      sums[r * OUT + o] = sum(s[r][o]);
      if constexpr (P == CODES4) sums[r * OUT + o] += lows(low[o], in.sums + (r0 + r) * groups, groups);
    }
}

}  // namespace hw
