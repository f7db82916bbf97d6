// Linear layers for a few rows: out = x W^T + bias, reading the weights once at the speed of memory.
#include <omp.h>

#include <algorithm>

#include "simd.hpp"

namespace hw {

struct Linear {
  const uint8_t* x;       // [rows, inner], rows end to end
  const uint8_t* weight;  // [outer, inner]
  const uint8_t* bias;    // [outer] or null
  uint8_t* out;           // [rows, outer]
  int64_t rows, inner, outer;
  int32_t kind;           // bfloat16 or float32, the same for all
  int32_t threads;
};

namespace {

// R rows are multiplied with OUT outputs at once, each a stream of weights. With one row a single stream is read fastest;
// narrow vectors would wait for its sums. Sums go along a row in one order, whatever the number of rows.
constexpr int ROWS = 4, OUTS = 4;
constexpr int ALONE = W == 16 ? 1 : OUTS;  // outputs beside a single row
template <int OUT>
constexpr int AHEAD = 4096 / OUT;  // bytes that a stream is fetched ahead

#if defined(__AVX512BF16__)
template <int R, int OUT>
void outputs_bf16(const Linear& call, int64_t r0, int64_t o0, int count, float* sums) {
  __m512 s[R][OUT];
  for (auto& line : s)
    for (__m512& one : line) one = _mm512_setzero_ps();
  const uint16_t* x = (const uint16_t*)call.x + r0 * call.inner;
  const uint16_t* w[OUT];
  for (int o = 0; o < OUT; o++) w[o] = (const uint16_t*)call.weight + (o0 + std::min(o, count - 1)) * call.inner;
  for (int64_t c = 0; c < call.inner; c += 32) {
    const __mmask32 there = call.inner - c >= 32 ? 0xffffffffu : (1u << (call.inner - c)) - 1;
    __m512bh a[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) a[r] = (__m512bh)_mm512_maskz_loadu_epi16(there, x + r * call.inner + c);
#pragma GCC unroll 4
    for (int o = 0; o < OUT; o++) {
      __builtin_prefetch((const uint8_t*)(w[o] + c) + AHEAD<OUT>);
      const __m512bh b = (__m512bh)_mm512_maskz_loadu_epi16(there, w[o] + c);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) s[r][o] = _mm512_dpbf16_ps(s[r][o], a[r], b);
    }
  }
  for (int r = 0; r < R; r++)
    for (int o = 0; o < OUT; o++) sums[r * OUT + o] = _mm512_reduce_add_ps(s[r][o]);
}
#else
template <int R, int OUT>
void outputs_bf16(const Linear& call, int64_t r0, int64_t o0, int count, float* sums) {
  vf s[R][OUT] = {};
  const uint8_t* x = call.x + r0 * call.inner * 2;
  const uint8_t* w[OUT];
  for (int o = 0; o < OUT; o++) w[o] = call.weight + (o0 + std::min(o, count - 1)) * call.inner * 2;
  int64_t c = 0;
  for (; c + W <= call.inner; c += W)
    for (int o = 0; o < OUT; o++) {
      const vf b = from_bf16(load<vh>(w[o] + 2 * c));
      for (int r = 0; r < R; r++) s[r][o] += from_bf16(load<vh>(x + 2 * (r * call.inner + c))) * b;
    }
  for (int r = 0; r < R; r++)
    for (int o = 0; o < OUT; o++) {
      sums[r * OUT + o] = sum(s[r][o]);
      for (int64_t i = c; i < call.inner; i++)
        sums[r * OUT + o] += from_bf16(load<uint16_t>(x + 2 * (r * call.inner + i))) * from_bf16(load<uint16_t>(w[o] + 2 * i));
    }
}
#endif

template <int R, int OUT>
void outputs_f32(const Linear& call, int64_t r0, int64_t o0, int count, float* sums) {
  vf s[R][OUT] = {};
  const float* x = (const float*)call.x + r0 * call.inner;
  const float* w[OUT];
  for (int o = 0; o < OUT; o++) w[o] = (const float*)call.weight + (o0 + std::min(o, count - 1)) * call.inner;
  int64_t c = 0;
  for (; c + W <= call.inner; c += W)
    for (int o = 0; o < OUT; o++) {
      __builtin_prefetch((const uint8_t*)(w[o] + c) + AHEAD<OUT>);
      const vf b = load<vf>(w[o] + c);
      for (int r = 0; r < R; r++) s[r][o] += load<vf>(x + r * call.inner + c) * b;
    }
  for (int r = 0; r < R; r++)
    for (int o = 0; o < OUT; o++) {
      sums[r * OUT + o] = sum(s[r][o]);
      for (int64_t i = c; i < call.inner; i++) sums[r * OUT + o] += x[r * call.inner + i] * w[o][i];
    }
}

template <int R, int OUT>
void rows_of(const Linear& call, int64_t r0, int64_t o0, int count) {
  const Kind kind = (Kind)call.kind;
  float sums[R * OUT];
  if (kind == F32)
    outputs_f32<R, OUT>(call, r0, o0, count, sums);
  else
    outputs_bf16<R, OUT>(call, r0, o0, count, sums);
  if (call.bias) {
    float bias[OUT];
    widen(kind, call.bias + bytes_of(kind, o0), count, bias);
    for (int r = 0; r < R; r++)
      for (int o = 0; o < count; o++) sums[r * OUT + o] += bias[o];
  }
  for (int r = 0; r < R; r++)
    narrow(kind, sums + r * OUT, count, call.out + bytes_of(kind, (r0 + r) * call.outer + o0));
}

}  // namespace
}  // namespace hw

extern "C" void headwise_linear(const hw::Linear* given) {
  using namespace hw;
  const Linear& call = *given;
#pragma omp parallel for schedule(static) num_threads(call.threads)
  for (int64_t o = 0; o < call.outer; o += OUTS) {
    const int count = (int)std::min<int64_t>(OUTS, call.outer - o);
    int64_t r = 0;
    for (; r + ROWS <= call.rows; r += ROWS) rows_of<ROWS, OUTS>(call, r, o, count);
    for (; r < call.rows; r++)
      for (int i = 0; i < count; i += ALONE) rows_of<1, ALONE>(call, r, o + i, std::min(ALONE, count - i));
  }
}
