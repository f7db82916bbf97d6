// Values read in their stored type: two or four tokens interleaved, so that one instruction meets 16 channels.
#pragma once

#include "scales_avx512.hpp"

#if defined(__AVX512F__)

namespace hw {

// Weighs floats: RB rows, 64 channels at a time.
template <int RB>
inline void weigh_floats(const float* const v[], int tokens, int64_t e, const float* p, float* sums, int64_t stride) {
  for (int64_t c = 0; c < e; c += 64) {
    const int parts = (int)std::min<int64_t>(4, (e - c) / 16);
    __m512 s[RB][4];
    UNROLL for (int r = 0; r < RB; r++)
      UNROLL for (int i = 0; i < 4; i++) s[r][i] = i < parts ? _mm512_loadu_ps(sums + r * stride + c + 16 * i) : _mm512_setzero_ps();
    for (int j = 0; j < tokens; j++) {
      __m512 x[4];
      UNROLL for (int i = 0; i < 4; i++) x[i] = i < parts ? _mm512_loadu_ps(v[j] + c + 16 * i) : _mm512_setzero_ps();
      UNROLL for (int r = 0; r < RB; r++) {
        const __m512 w = _mm512_set1_ps(p[r * BLOCK + j]);
        UNROLL for (int i = 0; i < 4; i++) s[r][i] = _mm512_fmadd_ps(w, x[i], s[r][i]);
      }
    }
    UNROLL for (int r = 0; r < RB; r++)
      UNROLL for (int i = 0; i < 4; i++)
        if (i < parts) _mm512_storeu_ps(sums + r * stride + c + 16 * i, s[r][i]);
  }
}

template <Kind K>
void weigh_widened(const Held& held, const Block& block, Rows& rows, Scratch& scratch) {
  const Side& values = held.value;
  scratch.tile.resize(K == F32 ? 0 : TILE * rows.e);
  for (int j0 = 0; j0 < block.count; j0 += TILE) {
    const int tokens = std::min(TILE, block.count - j0);
    for (int j = j0; j < std::min(block.ahead->count, j0 + TILE); j++)
      fetch(block.ahead->key[j], bytes_of((Kind)held.key.kind, held.key.width));
    const float* v[TILE];
    for (int j = 0; j < tokens; j++) {
      v[j] = (const float*)block.value[j0 + j];
      if (K != F32) {
        dequantise<K>(values, block.lane, block.slot[j0 + j], &scratch.tile[j * rows.e]);
        v[j] = &scratch.tile[j * rows.e];
      }
    }
    auto run = [&]<int RB>(int r) {
      weigh_floats<RB>(v, tokens, rows.e, &scratch.scores[r * BLOCK + j0], &rows.sums[r * rows.stride], rows.stride);
    };
    if (rows.padded == 1)
      run.template operator()<1>(0);
    else if (rows.padded == 2)
      run.template operator()<2>(0);
    else
      for (int r = 0; r < rows.padded; r += 4) run.template operator()<4>(r);
  }
}

// Interleaved values of STEP tokens, 32 channels: VECTORS vectors, each met by a dword of weights and added to sum
// `sum(i)` of the two that 32 channels have. They count FROM more than the stored numbers.
#if defined(__AVX512BF16__)
struct BfloatValues {
  using Sum = __m512;
  static constexpr int STEP = 2, VECTORS = 2, FROM = 0;
  static constexpr Kind KIND = BF16;
  static constexpr int sum(int i) { return i; }
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum add(Sum s, __m512i v, __m512i w) { return _mm512_dpbf16_ps(s, (__m512bh)v, (__m512bh)w); }
  static __m512 value(Sum s) { return s; }
  static void take(const uint8_t* const at[], int64_t channels, __m512i out[VECTORS]) {
    const __mmask32 there = channels < 32 ? 0xffffu : 0xffffffffu;
    const __m512i a = _mm512_maskz_loadu_epi16(there, at[0]), b = _mm512_maskz_loadu_epi16(there, at[1]);
    out[0] = _mm512_unpacklo_epi16(a, b);
    out[1] = _mm512_unpackhi_epi16(a, b);
  }
  static int64_t channel(int64_t place) {
    const int64_t i = place % 32 / 16, x = place % 16;
    return place / 32 * 32 + x / 4 * 8 + i * 4 + x % 4;
  }
};
#endif

#if defined(__AVX512VNNI__)
struct ByteValues {
  using Sum = __m512i;
  static constexpr int STEP = 2, VECTORS = 2, FROM = 0;
  static constexpr Kind KIND = I8;
  static constexpr int sum(int i) { return i; }
  static Sum zero() { return _mm512_setzero_si512(); }
  static Sum add(Sum s, __m512i v, __m512i w) { return _mm512_dpwssd_epi32(s, v, w); }
  static __m512 value(Sum s) { return _mm512_cvtepi32_ps(s); }
  static void take(const uint8_t* const at[], int64_t channels, __m512i out[VECTORS]) {
    const __mmask32 there = channels < 32 ? 0xffffu : 0xffffffffu;
    const __m256i a = _mm256_maskz_loadu_epi8(there, at[0]), b = _mm256_maskz_loadu_epi8(there, at[1]);
    out[0] = _mm512_cvtepi8_epi16(_mm256_unpacklo_epi8(a, b));
    out[1] = _mm512_cvtepi8_epi16(_mm256_unpackhi_epi8(a, b));
  }
  static int64_t channel(int64_t place) {
    const int64_t i = place % 32 / 16, x = place % 16;
    return place / 32 * 32 + x / 8 * 16 + i * 8 + x % 8;
  }
};
#endif

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
// Codes as bfloat16: below 0x4300, which is 128, the bits of a code are the number 128 + code. add_shared takes FROM back.
struct NibbleValues {
  using Sum = __m512;
  static constexpr int STEP = 2, VECTORS = 2, FROM = 128;
  static constexpr Kind KIND = I4;
  static constexpr int sum(int i) { return i; }  // even and odd channels
  static Sum zero() { return _mm512_setzero_ps(); }
  static Sum add(Sum s, __m512i v, __m512i w) { return _mm512_dpbf16_ps(s, (__m512bh)v, (__m512bh)w); }
  static __m512 value(Sum s) { return s; }
  static void take(const uint8_t* const at[], int64_t channels, __m512i out[VECTORS]) {
    const __mmask16 there = channels < 32 ? 0xffu : 0xffffu;
    const __m128i a = _mm_maskz_loadu_epi8(there, at[0]), b = _mm_maskz_loadu_epi8(there, at[1]);
    const __m512i both = _mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1));
    // byte j of both tokens, a word each, in dword j
    const vi turns = (vi)(vu{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} * 0x00010001u + 0x00100000u);
    const __m512i x = _mm512_permutexvar_epi8((__m512i)turns, both);
    const __m512i low = _mm512_set1_epi16(0x000f), base = _mm512_set1_epi16(0x4300);
    out[0] = _mm512_ternarylogic_epi32(x, low, base, 0xea);  // x & low | base
    out[1] = _mm512_ternarylogic_epi32(_mm512_srli_epi16(x, 4), low, base, 0xea);
  }
  static int64_t channel(int64_t place) { return place / 32 * 32 + place % 16 * 2 + place % 32 / 16; }
};
#endif

// Adds `weights` [RB rows of BLOCK / 2 dwords, one a pair of tokens] times CG times 32 channels from channel `first` on,
// of which `channels` exist.
template <class V, int RB, int CG>
inline void weigh_group(const Held& held, const Block& block, int64_t first, int64_t channels, const int32_t* weights,
                        const float* back, float* sums, int64_t stride) {
  typename V::Sum s[RB][2 * CG];
  UNROLL for (int r = 0; r < RB; r++) UNROLL for (int i = 0; i < 2 * CG; i++) s[r][i] = V::zero();
  const int64_t offset = bytes_of(V::KIND, first), step = bytes_of(V::KIND, 32);
  const int64_t key_bytes = bytes_of((Kind)held.key.kind, held.key.width);
  for (int j = 0; j < block.count; j += V::STEP) {
    if (first == 0)
      for (int i = j; i < std::min(block.ahead->count, j + V::STEP); i++) fetch(block.ahead->key[i], key_bytes);
    UNROLL for (int c = 0; c < CG; c++) {
      const uint8_t* at[V::STEP];
      UNROLL for (int i = 0; i < V::STEP; i++) at[i] = block.value[j + i] + offset + c * step;
      __m512i v[V::VECTORS];
      V::take(at, channels - 32 * c, v);
      UNROLL for (int r = 0; r < RB; r++)
        UNROLL for (int i = 0; i < V::VECTORS; i++) {
          typename V::Sum& sum = s[r][2 * c + V::sum(i)];
          sum = V::add(sum, v[i], _mm512_set1_epi32(weights[r * (BLOCK / 2) + j / 2]));
        }
    }
  }
  UNROLL for (int r = 0; r < RB; r++)
    UNROLL for (int i = 0; i < 2 * CG; i++) {
      float* at = sums + r * stride + first + 16 * i;
      _mm512_storeu_ps(at, _mm512_fmadd_ps(V::value(s[r][i]), _mm512_set1_ps(back[r]), _mm512_loadu_ps(at)));
    }
}

// Rounds scores [rows, BLOCK] to what multiplies the values: bfloat16, or int16 with a factor a row (scratch.back).
template <class V>
inline void round_weights(const Rows& rows, const float* scale, Scratch& scratch) {
  for (int r = 0; r < rows.padded; r++) {
    const float* p = &scratch.scores[r * BLOCK];
    __m256i* to = (__m256i*)(&scratch.weights[r * BLOCK / 2]);
    vf top{}, w[BLOCK / W];
    UNROLL for (int j = 0; j < BLOCK / W; j++) {
      w[j] = scale ? load<vf>(p + j * W) * load<vf>(scale + j * W) : load<vf>(p + j * W);
      top = max(top, w[j]);
    }
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<typename V::Sum, __m512>) {
      UNROLL for (int j = 0; j < BLOCK / W; j++) _mm256_storeu_si256(to + j, (__m256i)_mm512_cvtneps_pbh((__m512)w[j]));
      scratch.back[r] = 1.0f;
      continue;
    }
#endif
    const float most = max(top), up = most > 0 ? 32767 / most : 0.0f;
    UNROLL for (int j = 0; j < BLOCK / W; j++)
      _mm256_storeu_si256(to + j, _mm512_cvtepi32_epi16(_mm512_cvtps_epi32((__m512)(w[j] * up))));
    scratch.back[r] = most / 32767;
  }
}

#if defined(__AVX512BF16__)
// Adds what all channels of group g have in common: the weighed minima of the tokens, less what values count FROM.
template <class V>
inline void add_shared(const float* minimum, int64_t g, const Scratch& scratch, Rows& rows) {
  const __m512i ones = _mm512_set1_epi32(0x3f803f80);
  for (int r = 0; r < rows.padded; r++) {
    float* shared = rows.shared(r, g);
    vf total = load<vf>(shared);
    __m512 weights = _mm512_setzero_ps();
    UNROLL for (int j = 0; j < BLOCK; j += W) total += load<vf>(&scratch.scores[r * BLOCK + j]) * load<vf>(minimum + j);
    UNROLL for (int j = 0; j < BLOCK / 2; j += W)
      weights = _mm512_dpbf16_ps(weights, (__m512bh)_mm512_loadu_si512(&scratch.weights[r * BLOCK / 2 + j]), (__m512bh)ones);
    store(shared, total - V::FROM * (vf)weights);
  }
}
#endif

template <class V>
void weigh_turned(const Held& held, const Block& block, Rows& rows, Scratch& scratch) {
  const Side& values = held.value;
  const int64_t groups = values.scale ? values.width / values.group : 1, span = rows.e / groups;
  if (values.scale) take_scales(values, 0, block, scratch);
  scratch.weights.resize(rows.padded * BLOCK / 2);
  scratch.back.resize(rows.padded);
  for (int64_t g = 0; g < groups; g++) {
    round_weights<V>(rows, values.scale ? &scratch.scales[g * BLOCK] : nullptr, scratch);
#if defined(__AVX512BF16__)
    if constexpr (V::FROM != 0) add_shared<V>(&scratch.offsets[g * BLOCK], g, scratch, rows);
#endif
    auto run = [&]<int RB>(int r) {
      const int64_t end = (g + 1) * span;
      int64_t c = g * span;
      for (; c + 64 <= end; c += 64)
        weigh_group<V, RB, 2>(held, block, c, 64, &scratch.weights[r * BLOCK / 2], &scratch.back[r],
                              &rows.sums[r * rows.stride], rows.stride);
      for (; c < end; c += 32)
        weigh_group<V, RB, 1>(held, block, c, end - c, &scratch.weights[r * BLOCK / 2], &scratch.back[r],
                              &rows.sums[r * rows.stride], rows.stride);
    };
    if (rows.padded == 1)
      run.template operator()<1>(0);
    else if (rows.padded == 2)
      run.template operator()<2>(0);
    else
      for (int r = 0; r < rows.padded; r += 4) run.template operator()<4>(r);
  }
}

}  // namespace hw

#endif
