// Vectors of the widest registers that this compilation may use, and the few functions that attention needs of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "transpose.hpp"

namespace hw {

#if defined(__AVX512F__) || defined(HW_EMULATE_TILES)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));
typedef int8_t vb __attribute__((vector_size(W)));

constexpr float LOW = -std::numeric_limits<float>::infinity();

inline vf splat(float x) { return vf{} + x; }

template <class V>
inline V load(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }

inline vf max(vf a, vf b) { return a > b ? a : b; }

// The greater, or NaN if either is.
template <class V>
inline V higher(V a, V b) {
  return (a >= b) | (a != a) ? a : b;
}

inline float sum(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX2__)
  __m128 x = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
#else
  float total = 0;
  for (int i = 0; i < W; i++) total += v[i];
  return total;
#endif
}

// The sum of each of W vectors, in their order.
inline vf sums(const vf (&v)[W]) {
#if defined(__AVX512F__)
  __m512 half[8];  // inside each quarter: two vectors side by side, channels added up two by two
  UNROLL for (int i = 0; i < 8; i++) {
    const __m512 a = (__m512)v[2 * i], b = (__m512)v[2 * i + 1];
    half[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  __m512 four[4];  // quarters of four vectors' sums
  UNROLL for (int i = 0; i < 4; i++) {
    const __m512d a = _mm512_castps_pd(half[2 * i]), b = _mm512_castps_pd(half[2 * i + 1]);
    four[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const auto fold = [](__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return (vf)fold(fold(four[0], four[1]), fold(four[2], four[3]));
#else
  vf out;
  for (int i = 0; i < W; i++) out[i] = sum(v[i]);
  return out;
#endif
}

inline float max(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float best = v[0];
  for (int i = 1; i < W; i++) best = v[i] > best ? v[i] : best;
  return best;
#endif
}

// e^x for x <= 0 or moderate, -inf gives 0; relative error below 2e-7 (Cody-Waite reduction, degree 6).
inline vf exp(vf x) {
  x = x < -87.0f ? splat(-87.5f) : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  vf n = x * 1.44269504f + magic;
  vi k = (vi)n;
  n = n - magic;
  vf r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vf p = splat(1.3981999507e-3f) + r * 1.9875691500e-4f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  vi scaled = (vi)p + (k << 23);
  return x < -87.0f ? vf{} : (vf)scaled;
}

// 2^x for x <= 0 or moderate, -inf gives 0; relative error 1e-7, or 3e-6 where `Short` (enough for half precision).
// 2^x = 2^floor(x) * (1 + f q(f)), f in [0, 1), q a minimax polynomial.
template <bool Short = false>
inline vf exp2(vf x) {
#if defined(__AVX512F__)
  const vf f = (vf)_mm512_reduce_ps((__m512)x, 0x09);  // x - floor(x); 0 for -inf
#else
  x = x < -126.5f ? splat(-126.5f) : x;
  const float magic = 12582912.0f;
  const vf n = (x - 0.5f) + magic;
  const vf f = x - (n - magic);
#endif
  vf p;
  if constexpr (Short)
    p = ((splat(1.342671814539059e-2f) * f + 5.22424198286284e-2f) * f + 2.412802301915638e-1f) * f + 6.930448416897683e-1f;
  else
    p = (((splat(1.8671332950154777e-3f) * f + 9.017023495865351e-3f) * f + 5.5799917980776687e-2f) * f +
         2.4016444881972426e-1f) * f + 6.931513119139886e-1f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
  const vf scaled = (vf)((vi)p + ((vi)n << 23));
  return x <= -126.5f ? vf{} : x == x ? scaled : x;
#endif
}

// Whether any of v is above a limit.
inline bool above(vf v, float limit) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(limit), _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_set1_ps(limit), _CMP_GT_OQ)) != 0;
#else
  return max(v) > limit;
#endif
}

// tanh for soft caps: 1 - 2 / (e^2x + 1), by symmetry for negative x.
inline vf tanh(vf x) {
  vf a = x < 0.0f ? x : -x;
  vf e = exp(a + a);
  vf t = (1.0f - e) / (1.0f + e);
  return x < 0.0f ? -t : t;
}

// The first W words of W rows that begin at from[row] + at, turned: vector i of `out` holds word i of every row.
template <class T>
inline void turn(const T* const* from, int64_t at, vu* out) {
#if defined(__AVX512F__)
  __m512i r[16];
  UNROLL for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from[i] + at);
  transpose16(r);
  UNROLL for (int i = 0; i < 16; i++) out[i] = (vu)r[i];
#else
  for (int i = 0; i < W; i++)
    for (int j = 0; j < W; j++) out[i][j] = load<uint32_t>((const uint8_t*)(from[j] + at) + 4 * i);
#endif
}

// ---- element types ------------------------------------------------------------------------------------------------

enum Kind : int32_t { F32 = 0, BF16 = 1, F16 = 2, I8 = 3, I4 = 4, I2 = 5 };

inline vf from_bf16(vh x) { return (vf)(__builtin_convertvector(x, vu) << 16); }

inline vf from_f16(vh x) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps((__m256i)x);
#elif defined(__F16C__)
  return (vf)_mm256_cvtph_ps((__m128i)x);
#else
  vu h = __builtin_convertvector(x, vu);
  vu m = (h & 0x7fff) << 13;
  vf f = (vf)m * 5.192296858534828e33f;  // 2^112 moves the exponent's bias, and makes subnormals normal
  vu special = (vu)(m >= 0x0f800000u);
  return (vf)((vu)f | (special & 0x7f800000u) | ((h & 0x8000) << 16));
#endif
}

inline float from_bf16(uint16_t x) {
  uint32_t u = (uint32_t)x << 16;
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}

inline float from_f16(uint16_t x) {
  vh one{};
  one[0] = x;
  return from_f16(one)[0];
}

inline uint16_t to_bf16(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffff) > 0x7f800000) return (uint16_t)((u >> 16) | 0x40);
  return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

inline vh to_bf16(vf x) {
  const vu u = (vu)x;
  const vu nan = (u >> 16) | 0x40;
  return __builtin_convertvector((u & 0x7fffffff) > 0x7f800000 ? nan : (u + 0x7fff + ((u >> 16) & 1)) >> 16, vh);
}

inline uint16_t to_f16(float x) {
#if defined(__F16C__) || defined(__AVX512F__)
  return (uint16_t)_cvtss_sh(x, 0);
#else
  uint32_t u;
  std::memcpy(&u, &x, 4);
  const uint32_t sign = (u >> 16) & 0x8000;
  u &= 0x7fffffff;
  if (u >= 0x7f800000) return (uint16_t)(sign | 0x7c00 | (u > 0x7f800000 ? 0x200 : 0));
  if (u >= 0x477ff000) return (uint16_t)(sign | 0x7c00);
  if (u < 0x38800000) {  // subnormal: adding 0.5 aligns the bits to a half's
    float f;
    std::memcpy(&f, &u, 4);
    f += 0.5f;
    std::memcpy(&u, &f, 4);
    return (uint16_t)(sign | (u - 0x3f000000));
  }
  u += 0xc8000fff + ((u >> 13) & 1);
  return (uint16_t)(sign | (u >> 13));
#endif
}

// The W codes of BITS bits at `row`, the first of a byte in its lowest bits.
template <int BITS>
inline vf codes(const uint8_t* row) {
  constexpr int EACH = 8 / BITS;
  vi bytes;
  for (int i = 0; i < W; i++) bytes[i] = row[i / EACH];
  vi places;
  for (int i = 0; i < W; i++) places[i] = BITS * (i % EACH);
  return __builtin_convertvector((bytes >> places) & ((1 << BITS) - 1), vf);
}

template <int BITS>
inline float code(const uint8_t* row, int64_t channel) {
  return (float)((row[channel * BITS / 8] >> (channel * BITS % 8)) & ((1 << BITS) - 1));
}

// `count` channels of a row, as floats; integers as they are stored.
template <Kind K>
inline void widen(const uint8_t* row, int64_t count, float* out) {
  int64_t c = 0;
  if constexpr (K == F32) {
    std::memcpy(out, row, count * 4);
    return;
  }
  for (; c + W <= count; c += W) {
    if constexpr (K == BF16) store(out + c, from_bf16(load<vh>(row + 2 * c)));
    if constexpr (K == F16) store(out + c, from_f16(load<vh>(row + 2 * c)));
    if constexpr (K == I8) store(out + c, __builtin_convertvector(load<vb>(row + c), vf));
    if constexpr (K == I4) store(out + c, codes<4>(row + c / 2));
    if constexpr (K == I2) store(out + c, codes<2>(row + c / 4));
  }
  for (; c < count; c++) {
    if constexpr (K == BF16) out[c] = from_bf16(load<uint16_t>(row + 2 * c));
    if constexpr (K == F16) out[c] = from_f16(load<uint16_t>(row + 2 * c));
    if constexpr (K == I8) out[c] = (float)(int8_t)row[c];
    if constexpr (K == I4) out[c] = code<4>(row, c);
    if constexpr (K == I2) out[c] = code<2>(row, c);
  }
}

inline void widen(Kind kind, const uint8_t* row, int64_t count, float* out) {
  switch (kind) {
    case F32: return widen<F32>(row, count, out);
    case BF16: return widen<BF16>(row, count, out);
    case F16: return widen<F16>(row, count, out);
    case I8: return widen<I8>(row, count, out);
    case I4: return widen<I4>(row, count, out);
    case I2: return widen<I2>(row, count, out);
  }
}

// Two vectors as bfloat16, one after the other.
inline void put_bf16(uint16_t* to, vf a, vf b) {
#if defined(__AVX512BF16__)
  const auto both = _mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
  std::memcpy(to, &both, sizeof both);
#else
  const vh first = to_bf16(a), second = to_bf16(b);
  std::memcpy(to, &first, sizeof first);
  std::memcpy(to + W, &second, sizeof second);
#endif
}

// `count` floats, rounded to `kind` (a float type).
inline void narrow(Kind kind, const float* in, int64_t count, uint8_t* out) {
  if (kind == F32) {
    std::memcpy(out, in, count * 4);
    return;
  }
  int64_t c = 0;
  for (; kind == BF16 && c + W <= count; c += W) {
    const vh x = to_bf16(load<vf>(in + c));
    std::memcpy(out + 2 * c, &x, sizeof x);
  }
  for (; c < count; c++) {
    const uint16_t x = kind == BF16 ? to_bf16(in[c]) : to_f16(in[c]);
    std::memcpy(out + 2 * c, &x, 2);
  }
}

inline int64_t bytes_of(Kind kind, int64_t channels) {
  switch (kind) {
    case F32: return 4 * channels;
    case I8: return channels;
    case I4: return channels / 2;
    case I2: return channels / 4;
    default: return 2 * channels;
  }
}

}  // namespace hw
