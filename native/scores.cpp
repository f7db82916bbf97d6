// What attention scores tell without their values: log-sum-exp and entropy of rows, mass and peaks of columns,
// maxima of blocks.
#include <atomic>

#include "prefill_tile.hpp"

namespace hw {

struct Told {
  Ask ask;
  float* lse;      // [lanes, group, tokens]: written by rows, read by columns
  float* entropy;  // [lanes, group, tokens], in nats
  float* mass;     // [lanes, keys], zeros before
  float* peaks;    // [lanes, group, keys], -inf before: logarithms of base 2
  float* maxima;   // [lanes, group, query blocks, key blocks], -inf before
  int64_t keys;
  int64_t block;   // of maxima: a multiple of BLOCK
};

inline int64_t place(const Ask& ask, const Tile& tile, int64_t r) {
  return (tile.lane * ask.group + tile.head(r)) * ask.tokens + tile.query(r);
}

// A thread that scores the tiles it is handed; of the values nothing is read. `told(tile, sight, from, some)` is called
// for every chunk.
template <class M>
struct Scorer {
  static constexpr bool values = false;
  const Told& call;
  Scores<M> scores;

  Scorer(const Told& call, int64_t blocks) : call(call), scores(call.ask, blocks) {}

  template <class F>
  void chunks(const Tile& tile, const Sight& sight, const Packed<M>& packed, F told) {
    scores.open(tile, sight);
    for (int64_t first = 0; first < scores.count; first += CHUNK_BLOCKS) {
      const Entry* from = scores.entries.get() + first;
      const int64_t some = std::min(CHUNK_BLOCKS, scores.count - first);
      scores.score(tile, sight, packed, from, some);
      told(from, some);
    }
  }
};

// Log-sum-exp and entropy, online: with x in exponents of 2 below the peak, entropy = ln 2 (log2 sum 2^x - mean x).
template <class M>
struct Rows : Scorer<M> {
  static constexpr bool fixed = false;
  using Scorer<M>::Scorer;

  void operator()(const Tile& tile, const Sight& sight, const Packed<M>& packed) {
    std::fill_n(peak, ROWS, LOW);
    std::fill_n(total, ROWS, 0.0f);
    std::fill_n(moment, ROWS, 0.0f);
    this->chunks(tile, sight, packed, [&](const Entry*, int64_t some) {
      for (int64_t r = 0; r < tile.rows(); r++) add(r, some * BLOCK);
    });
    for (int64_t r = 0; r < tile.rows(); r++) {
      const int64_t at = place(this->call.ask, tile, r);
      const bool none = total[r] == 0.0f;
      this->call.lse[at] = none ? LOW : peak[r] * LN2 + std::log(total[r]);
      this->call.entropy[at] = none ? 0.0f : higher(0.0f, std::log(total[r]) - LN2 * moment[r] / total[r]);
    }
  }

 private:
  float peak[ROWS], total[ROWS], moment[ROWS];  // in exponents of 2; sums of 2^x and of 2^x x

  void add(int64_t r, int64_t keys) {
    const float* s = this->scores.at(r);
    vf high = load<vf>(s);
    for (int64_t i = W; i < keys; i += W) high = max(high, load<vf>(s + i));
    const float now = std::max(peak[r], max(high) * this->scores.base);
    const float zero = now == LOW ? 0.0f : now;
    if (peak[r] != LOW && now != peak[r]) {
      const float shrink = exp2(splat(peak[r] - now))[0];
      moment[r] = shrink * (moment[r] + (peak[r] - now) * total[r]);
      total[r] *= shrink;
    }
    peak[r] = now;
    vf sums{}, moments{};
    for (int64_t i = 0; i < keys; i += W) {
      const vf x = load<vf>(s + i) * this->scores.base - zero;
      const vf p = exp2(x);
      sums = sums + p;
      moments = moments + p * max(x, splat(-200.0f));  // 2^-200 is 0, and 0 times infinity is not
    }
    total[r] += sum(sums);
    moment[r] += sum(moments);
  }
};

// What is taken off the scores of each row of a tile, in exponents of 2, so that probabilities are left; of a row
// without keys, everything.
inline void normalisers(const Told& call, const Tile& tile, float* under) {
  for (int64_t r = 0; r < tile.rows(); r++) {
    const float lse = call.lse[place(call.ask, tile, r)];
    under[r] = lse == LOW ? -LOW : lse * LOG2E;
  }
}

// Mass that each key gets, given every row's log-sum-exp; a thread's own sums, so that results do not vary.
template <class M>
struct Columns : Scorer<M> {
  static constexpr bool fixed = true;
  Buffer<float> mass;

  Columns(const Told& call, int64_t blocks) : Scorer<M>(call, blocks), mass(buffer<float>(size())) {
    std::fill_n(mass.get(), size(), 0.0f);
  }

  int64_t size() const { return this->call.ask.held.lanes * this->call.keys; }

  void operator()(const Tile& tile, const Sight& sight, const Packed<M>& packed) {
    float under[ROWS];
    normalisers(this->call, tile, under);
    float* to = mass.get() + tile.lane * this->call.keys;
    this->chunks(tile, sight, packed, [&](const Entry* from, int64_t some) {
      for (int64_t i = 0; i < some * BLOCK; i += W) {
        vf sums{};
        for (int64_t r = 0; r < tile.rows(); r++)
          sums = sums + exp2(load<vf>(this->scores.at(r) + i) * this->scores.base - under[r]);
        for (int64_t j = 0; j < W; j++) {
          const int64_t token = sight.token(from[i / BLOCK].block, i % BLOCK + j);
          if (token >= 0) to[token] += sums[j];
        }
      }
    });
  }
};

// Highest probability that a query of each head gives each key, given every row's log-sum-exp; no exponential is needed.
template <class M>
struct Peaks : Scorer<M> {
  static constexpr bool fixed = false;
  Buffer<float> peaks;

  Peaks(const Told& call, int64_t blocks) : Scorer<M>(call, blocks), peaks(buffer<float>(size())) {
    std::fill_n(peaks.get(), size(), LOW);
  }

  int64_t size() const { return this->call.ask.held.lanes * this->call.ask.group * this->call.keys; }

  void operator()(const Tile& tile, const Sight& sight, const Packed<M>& packed) {
    float under[ROWS];
    normalisers(this->call, tile, under);
    float* lane = peaks.get() + tile.lane * this->call.ask.group * this->call.keys;
    this->chunks(tile, sight, packed, [&](const Entry* from, int64_t some) {
      for (int64_t h = 0; h < tile.heads; h++)
        for (int64_t i = 0; i < some * BLOCK; i += W) {
          vf high = splat(LOW);
          for (int64_t r = h * tile.queries(); r < (h + 1) * tile.queries(); r++)
            high = higher(high, load<vf>(this->scores.at(r) + i) * this->scores.base - under[r]);
          float* to = lane + (tile.first + h) * this->call.keys;
          for (int64_t j = 0; j < W; j++) {
            const int64_t token = sight.token(from[i / BLOCK].block, i % BLOCK + j);
            if (token >= 0) to[token] = higher(to[token], high[j]);
          }
        }
    });
  }
};

// Highest score of each block of queries on each block of keys.
template <class M>
struct Maxima : Scorer<M> {
  static constexpr bool fixed = false;
  using Scorer<M>::Scorer;

  void operator()(const Tile& tile, const Sight& sight, const Packed<M>& packed) {
    this->chunks(tile, sight, packed, [&](const Entry* from, int64_t some) {
      for (int64_t r = 0, end; r < tile.rows(); r = end) {
        const int64_t left = std::min(this->call.block - tile.query(r) % this->call.block, tile.q1 - tile.query(r));
        end = r + left;
        for (int64_t b = 0; b < some; b++) raise(tile, r, end, b, from[b].block);
      }
    });
  }

 private:
  void raise(const Tile& tile, int64_t r0, int64_t r1, int64_t b, int64_t key_block) {
    vf high = splat(LOW);
    for (int64_t r = r0; r < r1; r++)
      for (int64_t i = 0; i < BLOCK; i += W) high = higher(high, load<vf>(this->scores.at(r) + b * BLOCK + i));
    const float spoiled = sum((vf)(high != high));  // all bits set: NaN
    const float found = max(high) * (this->scores.base / LOG2E) + spoiled;
    const int64_t block = this->call.block, wide = (this->call.keys + block - 1) / block;
    const int64_t tall = (this->call.ask.tokens + block - 1) / block;
    const int64_t row = (tile.lane * this->call.ask.group + tile.head(r0)) * tall + tile.query(r0) / block;
    std::atomic_ref<float> best(this->call.maxima[row * wide + key_block * BLOCK / block]);
    for (float old = best.load(); higher(old, found) != old && old == old && !best.compare_exchange_weak(old, found);) {
    }
  }
};

}  // namespace hw

// Each returns 0, or 1 where memory does not suffice.

extern "C" int headwise_rows(const hw::Told* call) {
  return hw::with_multiply(call->ask, [&](auto m) { hw::visit<decltype(m), hw::Rows<decltype(m)>>(*call); });
}

extern "C" int headwise_columns(const hw::Told* call) {
  return hw::with_multiply(call->ask, [&](auto m) {
    for (const auto& worker : hw::visit<decltype(m), hw::Columns<decltype(m)>>(*call))
      for (int64_t i = 0; i < worker->size(); i++) call->mass[i] += worker->mass[i];
  });
}

extern "C" int headwise_peaks(const hw::Told* call) {
  return hw::with_multiply(call->ask, [&](auto m) {
    for (const auto& worker : hw::visit<decltype(m), hw::Peaks<decltype(m)>>(*call))
      for (int64_t i = 0; i < worker->size(); i++) call->peaks[i] = hw::higher(call->peaks[i], worker->peaks[i]);
  });
}

extern "C" int headwise_maxima(const hw::Told* call) {
  return hw::with_multiply(call->ask, [&](auto m) { hw::visit<decltype(m), hw::Maxima<decltype(m)>>(*call); });
}
