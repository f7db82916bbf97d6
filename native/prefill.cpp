// Attention of many queries: flash attention (arXiv 2205.14135) over the blocks that a form shows, in packed tiles.
#include "prefill_tile.hpp"

namespace hw {

struct Prefill {
  Ask ask;
  uint8_t* out;  // [lanes, group, tokens, e], in the type of q
  float* lse;    // [lanes, group, tokens]
};

// A thread's tile: softmax online, weighted sums of values in float32.
template <class M>
class Attend {
 public:
  static constexpr bool values = true, fixed = false;

  Attend(const Prefill& call, int64_t blocks)
      : call(call), scores(call.ask, blocks), sums(buffer<float>(ROWS * call.ask.held.value.width)) {}

  void operator()(const Tile& tile, const Sight& sight, const Packed<M>& packed) {
    scores.open(tile, sight);
    std::fill_n(sums.get(), tile.padded(M::rows) * packed.e, 0.0f);
    std::fill_n(peak, ROWS, LOW);
    std::fill_n(total, ROWS, 0.0f);
    for (int64_t first = 0; first < scores.count; first += CHUNK_BLOCKS) {
      const Entry* from = scores.entries.get() + first;
      const int64_t some = std::min(CHUNK_BLOCKS, scores.count - first);
      scores.score(tile, sight, packed, from, some);
      for (int64_t r = 0; r < tile.rows(); r++) soften(r, some * BLOCK, packed.e);
      weigh(tile, packed, from, some);
    }
    for (int64_t r = 0; r < tile.rows(); r++) finish(tile, r, packed.e);
  }

 private:
  using Element = typename M::Element;
  const Prefill& call;
  Scores<M> scores;
  Buffer<float> sums;
  float peak[ROWS], total[ROWS];

  // A row's scores become weights, in M's element type and in their place; what came before is scaled to the new peak.
  void soften(int64_t r, int64_t keys, int64_t e) {
    float* s = scores.at(r);
    vf high = load<vf>(s);
    for (int64_t i = W; i < keys; i += W) high = max(high, load<vf>(s + i));
    const float before = peak[r], now = std::max(before, max(high));
    const float zero = now == LOW ? 0.0f : now * scores.base;  // exponent of the peak
    if (now != before && before != LOW) {
      const float shrink = exp2(splat(before * scores.base - zero))[0];
      total[r] *= shrink;
      for (int64_t c = 0; c < e; c += W) store(sums.get() + r * e + c, load<vf>(sums.get() + r * e + c) * shrink);
    }
    peak[r] = now;
    vf sum{};
    for (int64_t i = 0; i < keys; i += M::step * W) {
      vf p[M::step];
      for (int j = 0; j < M::step; j++) {
        const bool there = i + j * W < keys;
        p[j] = there ? exp2<M::rough>(load<vf>(s + i + j * W) * scores.base - zero) : vf{};
        sum = sum + p[j];
      }
      M::put(reinterpret_cast<Element*>(s) + i, p);
    }
    total[r] += hw::sum(sum);
  }

  // sums += weights times values.
  void weigh(const Tile& tile, const Packed<M>& packed, const Entry* from, int64_t some) {
    constexpr int64_t stride = CHUNK * sizeof(float) / sizeof(Element);
    const auto* from_scores = reinterpret_cast<const Element*>(scores.at(0));
    const Left<M> weights = {from_scores, stride, tile.padded(M::rows), M::blocks * BLOCK};
    alignas(64) Element room[2][M::blocks * BLOCK * W];  // of two columns at once
    const auto values = [&](int64_t c, int64_t s) {
      return packed.values_of(c, from + s * M::blocks, some - s * M::blocks, room[c % 2]);
    };
    multiply<true>(weights, sums.get(), packed.e, packed.e / W, (some + M::blocks - 1) / M::blocks, values);
  }

  void finish(const Tile& tile, int64_t r, int64_t e) {
    const Ask& ask = call.ask;
    const int64_t at = (tile.lane * ask.group + tile.head(r)) * ask.tokens + tile.query(r);
    float* from = sums.get() + r * e;
    const bool none = total[r] == 0.0f;
    const float share = 1.0f / total[r];
    for (int64_t c = 0; c < e; c += W) store(from + c, none ? vf{} : load<vf>(from + c) * share);
    narrow((Kind)ask.kind, from, e, call.out + at * bytes_of((Kind)ask.kind, e));
    call.lse[at] = none ? LOW : peak[r] * scores.base * LN2 + std::log(total[r]);
  }
};

}  // namespace hw

// Returns 0, or 1 where memory does not suffice.
extern "C" int headwise_prefill(const hw::Prefill* call) {
  return hw::with_multiply(call->ask, [&](auto m) { hw::visit<decltype(m), hw::Attend<decltype(m)>>(*call); });
}

// A small prompt made by a rule, which every level is tried on before it is used: a window behind sinks, so that key
// blocks do not all follow each other, more of them than a chunk, and odd sizes. Writes 40 * 2 * 48 floats, zeros where
// memory does not suffice.
extern "C" void headwise_trial(float* to) {
  constexpr int64_t n = 300, t = 40, group = 2, width = 48;
  uint16_t q[group * t * width], k[n * width], v[n * width], out[group * t * width] = {};
  float lse[group * t];
  uint32_t state = 1;
  const auto draw = [&](uint16_t& x) {
    state = state * 1664525u + 1013904223u;
    x = hw::to_bf16((float)(state >> 8) / (1 << 23) - 1.0f);  // -1 to 1
  };
  std::for_each(std::begin(q), std::end(q), draw);
  std::for_each(std::begin(k), std::end(k), draw);
  std::for_each(std::begin(v), std::end(v), draw);
  const auto side = [](const uint16_t* x) {
    return hw::Side{.data = (const uint8_t*)x, .token = width * 2, .width = width, .kind = hw::BF16};
  };
  const int64_t first = 0;
  const hw::Held held = {.key = side(k), .value = side(v), .length = &n, .first = &first, .page = 1, .lanes = 1};
  const hw::Ask ask = {.held = held, .query = (const uint8_t*)q, .query_lane = 0, .query_head = t * width * 2,
                       .query_token = width * 2, .group = group, .tokens = t, .scale = 0.5f, .softcap = 0.0f,
                       .kind = hw::BF16, .threads = 1, .form = {.shape = hw::WINDOW, .left = 210, .sinks = 5}};
  const hw::Prefill call = {ask, (uint8_t*)out, lse};
  headwise_prefill(&call);
  hw::widen(hw::BF16, (const uint8_t*)out, group * t * width, to);
}
