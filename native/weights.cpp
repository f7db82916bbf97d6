// How much attention a few new tokens give to each key of every lane: their scores once, kept for a few lanes at a time
// so that they stay in the caches; then the softmax of all.
#include <omp.h>

#include <memory>

#include "readers.hpp"

namespace hw {

// Queries [lanes, groups, tokens, d] at byte strides, the last `tokens` of the keys; values are not looked at.
struct Weights {
  Held held;  // value: as key
  const uint8_t* q;
  int64_t q_lane, q_group, q_token;
  int64_t groups, tokens;
  int64_t causal;  // token i of t sees up to entry n - t + i; else all n
  int64_t keys;    // n of every lane
  int64_t sums;    // 1: over groups and tokens; `tokens`: one per token, over groups
  float* mass;     // [lanes, sums, keys]: probabilities, summed
  const float* sinks;  // [lanes, groups]: logits that join the softmax of each query head; null: none
  float scale, softcap;  // softcap 0: none
  int32_t q_kind, threads;
};

namespace {

constexpr int64_t PIECE = 16 * BLOCK;  // keys of a piece of work
constexpr int64_t KEPT = 1 << 18;      // scores kept at a time, where a lane has no more

struct Peak {
  std::vector<float> top, total;  // by row: highest score, sum of exp(score - top)
};

// Scores of one piece, into the lane's `kept` [groups * tokens, keys], and what the softmax needs to know of them.
Peak score(const Weights& call, int64_t lane, int64_t begin, float* kept, Scratch& scratch) {
  const int64_t end = std::min(begin + PIECE, call.keys), width = call.held.key.width;
  Rows rows((int)(call.groups * call.tokens), width, 0, 0);
  for (int r = 0; r < rows.count; r++) {
    const int64_t g = r / call.tokens, t = r % call.tokens;
    widen((Kind)call.q_kind, call.q + lane * call.q_lane + g * call.q_group + t * call.q_token, width, &rows.wide[r * width]);
  }
  const KeyReader& reader = key_reader(call.held.key.kind, call.q_kind);
  reader.prepare(rows, call.held.key, call.scale);
  scratch.scores.resize(rows.padded * BLOCK);
  Peak peak{std::vector<float>(rows.count, LOW), std::vector<float>(rows.count, 0.0f)};
  Stream stream(call.held, lane, end - begin, [&](int64_t i, int64_t most) { return call.held.run(lane, begin + i, most); });
  int64_t at = begin;
  for (const Block* block; (block = stream.next()); at += BLOCK) {
    reader.scores(call.held, *block, rows, scratch);
    for (int r = 0; r < rows.count; r++) {
      float* out = kept + r * call.keys + at;
      float* s = &scratch.scores[r * BLOCK];
      for (int j = 0; call.softcap > 0 && j < BLOCK; j += W) store(s + j, call.softcap * tanh(load<vf>(s + j) / call.softcap));
      const int64_t seen = call.causal ? call.keys - call.tokens + 1 + r % call.tokens : call.keys;
      std::fill(s + std::clamp<int64_t>(seen - at, 0, block->count), s + BLOCK, LOW);
      std::copy_n(s, block->count, out);
      vf high = splat(LOW), total{};
      for (int j = 0; j < BLOCK; j += W) high = max(high, load<vf>(s + j));
      const float top = std::max(peak.top[r], max(high)), from = top == LOW ? 0.0f : top;  // NaN scores make a NaN sum
      for (int j = 0; j < BLOCK; j += W) total += exp(load<vf>(s + j) - from);
      peak.total[r] = sum(total) + (peak.top[r] == LOW ? peak.total[r] : peak.total[r] * std::exp(peak.top[r] - top));
      peak.top[r] = top;
    }
  }
  return peak;
}

// log-sum-exp by row, of the pieces of a lane and the sinks of its query heads.
std::vector<float> join(const Weights& call, int64_t lane, const Peak* pieces, int64_t count) {
  std::vector<float> lse(pieces[0].top.size(), LOW);
  for (size_t r = 0; r < lse.size(); r++) {
    float top = LOW, total = 0;
    for (int64_t i = 0; i < count; i++) top = std::max(top, pieces[i].top[r]);
    for (int64_t i = 0; i < count; i++)
      total += pieces[i].total[r] * (pieces[i].top[r] == LOW ? 1.0f : std::exp(pieces[i].top[r] - top));
    if (total != 0) lse[r] = (top == LOW ? 0.0f : top) + std::log(total);
    if (!call.sinks || lse[r] == LOW) continue;
    const float sink = call.sinks[lane * call.groups + (int64_t)r / call.tokens], high = std::max(lse[r], sink);
    lse[r] = high + std::log(std::exp(lse[r] - high) + std::exp(sink - high));
  }
  return lse;
}

void weigh(const Weights& call, int64_t lane, int64_t begin, const float* kept, const std::vector<float>& lse) {
  const int64_t end = std::min(begin + PIECE, call.keys);
  float* of_lane = call.mass + lane * call.sums * call.keys;
  for (int64_t i = 0; i < call.sums; i++) std::fill(of_lane + i * call.keys + begin, of_lane + i * call.keys + end, 0.0f);
  for (size_t r = 0; r < lse.size(); r++) {
    if (lse[r] == LOW) continue;
    const float* s = kept + (int64_t)r * call.keys;
    float* mass = of_lane + (int64_t)r % call.tokens % call.sums * call.keys;
    int64_t j = begin;
    for (; j + W <= end; j += W) store(mass + j, load<vf>(mass + j) + exp(load<vf>(s + j) - lse[r]));
    for (; j < end; j++) mass[j] += std::exp(s[j] - lse[r]);
  }
}

}  // namespace
}  // namespace hw

extern "C" void headwise_weights(const hw::Weights* given) {
  using namespace hw;
  const Weights& call = *given;
  const int64_t pieces = (call.keys + PIECE - 1) / PIECE, of_lane = std::max<int64_t>(1, call.groups * call.tokens * call.keys);
  const int64_t most = std::clamp<int64_t>(KEPT / of_lane, 1, call.held.lanes);  // lanes at a time
  const std::unique_ptr<float[]> kept(new float[most * of_lane]);
  std::vector<Peak> peaks(most * pieces);
  std::vector<std::vector<float>> lse(most);
#pragma omp parallel num_threads(call.threads)
  {
    Scratch scratch;
    for (int64_t first = 0; first < call.held.lanes; first += most) {
      const int64_t lanes = std::min(most, call.held.lanes - first), work = lanes * pieces;
#pragma omp for schedule(dynamic, 4)
      for (int64_t i = 0; i < work; i++) {
        const int64_t own = i / pieces;
        peaks[i] = score(call, first + own, i % pieces * PIECE, &kept[own * of_lane], scratch);
      }
#pragma omp for
      for (int64_t own = 0; own < lanes; own++) lse[own] = join(call, first + own, &peaks[own * pieces], pieces);
#pragma omp for schedule(dynamic, 4)
      for (int64_t i = 0; i < work; i++) {
        const int64_t own = i / pieces;
        weigh(call, first + own, i % pieces * PIECE, &kept[own * of_lane], lse[own]);
      }
    }
  }
}
