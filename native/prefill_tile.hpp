// Score tiles: query rows of a few heads times the key blocks that they see, chunk by chunk, never n x n.
#pragma once

#include <omp.h>

#include <memory>
#include <new>
#include <vector>

#include "prefill_pack.hpp"

namespace hw {

constexpr int64_t ROWS = 64;                         // rows of a tile at most: the sharing of a packed key in cache
constexpr int64_t CHUNK_BLOCKS = 12;                 // blocks of a chunk: a multiple of C vectors, scores stay in cache
constexpr int64_t CHUNK = CHUNK_BLOCKS * BLOCK;
constexpr float LOG2E = 1.44269504088896341f, LN2 = 0.69314718055994531f;

// One call: q [lanes, group, tokens, d] over held keys and values, in the caller's layout.
struct Ask {
  Held held;
  const uint8_t* query;
  int64_t query_lane, query_head, query_token;  // bytes
  int64_t group, tokens;
  float scale, softcap;  // softcap 0: none
  int32_t kind;          // of q and of results in its type
  int32_t threads;
  Form form;
};

template <class T>
struct Freed {
  void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
};
template <class T>
using Buffer = std::unique_ptr<T[], Freed<T>>;

// Uninitialised, on cache lines. Throws std::bad_alloc.
template <class T>
inline Buffer<T> buffer(int64_t count) {
  return Buffer<T>(static_cast<T*>(::operator new(std::max<int64_t>(count, 1) * sizeof(T), std::align_val_t(64))));
}

// Queries q0 .. q1 - 1 of heads first .. first + heads - 1; row i is query q0 + i % (q1 - q0).
struct Tile {
  int64_t lane, first, heads, q0, q1;
  int64_t queries() const { return q1 - q0; }
  int64_t rows() const { return heads * queries(); }
  int64_t padded(int64_t unit) const { return whole(rows(), unit); }
  int64_t head(int64_t i) const { return first + i / queries(); }
  int64_t query(int64_t i) const { return q0 + i % queries(); }
};

// Heads of a group share a tile, so that short stretches of queries fill it: less is masked beside diagonals.
struct Tiling {
  int64_t group, tokens, heads, span;

  explicit Tiling(const Ask& ask) : group(ask.group), tokens(ask.tokens) {
    const int64_t sets = (group + 3) / 4;
    heads = (group + sets - 1) / sets;
    span = ROWS / heads / R * R;
    if (ask.form.shape == VERTICAL_SLASH) span = BLOCK;  // a diagonal then meets two blocks, not span / BLOCK + 1
    if (tokens < span) span = tokens, heads = std::min(group, ROWS / span);
    if (ask.form.shape == BLOCKS && tokens > ask.form.size)  // a tile lies in one query block
      for (span = span / R * R; ask.form.size % span;) span -= R;
  }

  int64_t sets() const { return (group + heads - 1) / heads; }
  int64_t count() const { return sets() * ((tokens + span - 1) / span); }

  // Tile i of a lane, from the last queries, which see most, to the first.
  Tile at(int64_t lane, int64_t i) const {
    const int64_t first = i % sets() * heads, q0 = ((tokens - 1) / span - i / sets()) * span;
    return {lane, first, std::min(heads, group - first), q0, std::min(tokens, q0 + span)};
  }
};

// A thread's query rows and scores.
template <class M>
class Scores {
 public:
  using Element = typename M::Element;
  const Ask& ask;
  const float base;  // scores times this are exponents of 2
  Buffer<float> scores;
  Buffer<Entry> entries;
  int64_t count = 0;  // entries

  Scores(const Ask& ask, int64_t blocks)
      : ask(ask),
        base((ask.softcap > 0 ? 1.0f : ask.scale) * LOG2E),
        scores(buffer<float>(ROWS * CHUNK)),
        entries(buffer<Entry>(blocks)),
        depth(whole(ask.held.key.width, M::channels)),
        query(buffer<Element>(ROWS * depth)) {}

  // Takes up a tile: its rows, and the list of blocks that they see.
  void open(const Tile& tile, const Sight& sight) {
    const int64_t d = ask.held.key.width;
    float wide[WIDEST];
    for (int64_t i = 0; i < tile.padded(M::rows); i++) {
      Element* to = query.get() + i * depth;
      const int64_t there = i < tile.rows() ? d : 0;
      std::fill_n(to + there, depth - there, Element{});
      if (!there) continue;
      const uint8_t* from = ask.query + tile.lane * ask.query_lane + tile.head(i) * ask.query_head +
                            tile.query(i) * ask.query_token;
      if (ask.kind == M::kind) {
        std::memcpy(to, from, d * sizeof(Element));
        continue;
      }
      widen((Kind)ask.kind, from, d, wide);
      for (int64_t c = 0; c < d; c++) to[c] = M::from(wide[c]);
    }
    count = sight.entries(tile.q0, tile.q1, entries.get());
  }

  // Scores [rows, CHUNK] of the tile on `some` entries from `from` on: raw, capped if asked, -inf where hidden.
  void score(const Tile& tile, const Sight& sight, const Packed<M>& packed, const Entry* from, int64_t some) {
    constexpr int64_t parts = BLOCK / W;
    const Left<M> queries = {query.get(), depth, tile.padded(M::rows), depth};
    const Element* keys[CHUNK / W];
    for (int64_t c = 0; c < some * parts; c++) keys[c] = packed.key(from[c / parts].block, c % parts);
    multiply<false>(queries, scores.get(), CHUNK, some * parts, 1, [&](int64_t c, int64_t) { return keys[c]; });
    if (ask.softcap > 0)
      for (int64_t r = 0; r < tile.rows(); r++)
        for (int64_t i = 0; i < some * BLOCK; i += W)
          store(at(r) + i, ask.softcap * tanh(load<vf>(at(r) + i) * (ask.scale / ask.softcap)));
    for (int64_t b = 0; b < some; b++)
      if (from[b].rule != ALL)
        for (int64_t r = 0; r < tile.rows(); r++)
          sight.mask(from[b], sight.n - sight.t + tile.query(r), at(r) + b * BLOCK);
  }

  float* at(int64_t r) { return scores.get() + r * CHUNK; }

 private:
  int64_t depth;  // of a query row: whole times M::channels, zeros added
  Buffer<Element> query;
};

// Packs lane after lane and hands every tile to a thread's worker: worker(tile, sight, packed). Threads share the tiles
// as they come free, or evenly where `Worker::fixed`. With `Worker::values` values are packed too.
// Returns the workers, one per thread, built as Worker(call, blocks).
template <class M, class Worker, class Call>
std::vector<std::unique_ptr<Worker>> visit(const Call& call) {
  const Ask& ask = call.ask;
  const int64_t lanes = ask.held.lanes, d = whole(ask.held.key.width, M::channels);
  const int64_t e = Worker::values ? ask.held.value.width : 0;
  std::vector<Sight> sights(lanes);
  int64_t blocks = 1;
  for (int64_t lane = 0; lane < lanes; lane++) {
    sights[lane].prepare(ask.form, lane, ask.tokens, ask.held.length[lane]);
    blocks = std::max(blocks, sights[lane].blocks());
  }
  const Tiling tiling(ask);
  // as many lanes at once as keep every thread busy
  const int64_t batch = std::clamp<int64_t>((2 * ask.threads + tiling.count() - 1) / tiling.count(), 1, lanes);
  const auto room = buffer<typename M::Element>(batch * blocks * BLOCK * (d + e));
  std::vector<Packed<M>> packed(batch);
  for (int64_t i = 0; i < batch; i++) {
    auto* keys = room.get() + i * blocks * BLOCK * (d + e);
    packed[i] = {keys, keys + blocks * BLOCK * d, d, e, blocks};
  }
  std::vector<std::unique_ptr<Worker>> workers;
  for (int i = 0; i < ask.threads; i++) workers.push_back(std::make_unique<Worker>(call, blocks));

#pragma omp parallel num_threads(ask.threads)
  {
    [[maybe_unused]] const typename M::Ready ready{};
    for (int64_t first = 0; first < lanes; first += batch) {
      const int64_t some = std::min(batch, lanes - first), tiles = some * tiling.count();
      Worker& worker = *workers[omp_get_thread_num()];
#pragma omp for schedule(static)
      for (int64_t i = 0; i < some * blocks; i++) {
        const int64_t lane = i / blocks, block = i % blocks;
        if (block < sights[first + lane].blocks())
          Packer<M>(ask.held, sights[first + lane], first + lane, packed[lane]).block(block);
      }
      const auto work = [&](int64_t i) {
        const int64_t lane = i % some;
        worker(tiling.at(first + lane, i / some), sights[first + lane], packed[lane]);
      };
      if constexpr (Worker::fixed) {
#pragma omp for schedule(static, 1)
        for (int64_t i = 0; i < tiles; i++) work(i);
      } else {
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < tiles; i++) work(i);
      }
    }
  }
  return workers;
}

// Calls f(M{}) with the multiply that suits the type of q: tiles or pairs for bfloat16 where the processor has them.
// Returns 0, or 1 where memory does not suffice.
template <class F>
int with_multiply(const Ask& ask, F f) {
  try {
#if defined(HW_TILES)
    if (ask.kind == BF16) {
      f(Tiles{});
      return 0;
    }
#elif defined(__AVX512BF16__)
    if (ask.kind == BF16) {
      f(Pairs{});
      return 0;
    }
#endif
    f(Single{});
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}

}  // namespace hw
