// Decoding works on blocks of tokens: their keys give scores, their values are weighed. Here for any element type and
// vector width, by widening to float; keys_avx512.hpp and values_avx512.hpp read the stored types.
#pragma once

#include <algorithm>
#include <new>
#include <type_traits>
#include <vector>

#include "held.hpp"

namespace hw {

constexpr int BLOCK = 64;   // tokens a block
constexpr int TILE = 16;    // tokens widened at a time

// Up to BLOCK tokens of a lane: their slots, and where their keys and values are. The last token stands again up to a
// whole tile. `ahead` is the block after, to be fetched meanwhile: near enough for the cache.
struct Block {
  int64_t lane;
  int count = 0;
  int64_t slot[BLOCK];
  const uint8_t *key[BLOCK], *value[BLOCK];
  const Block* ahead;
};

// Asks for the lines of a token before they are needed. Always inlined: GCC drops calls of a function that only prefetches.
[[gnu::always_inline]] inline void fetch(const uint8_t* at, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(at + b, 0, 2);
}

// Asks for a line of each of the machine's pages: fetches wait in line behind one whose address must still be looked up.
[[gnu::always_inline]] inline void touch(const uint8_t* at, int64_t bytes) {
  for (int64_t b = 0; b < bytes; b += 4096) __builtin_prefetch(at + b, 0, 2);
}

// The tokens of a piece of work in order, each block known one block before it is needed.
template <class Runs>
class Stream {
 public:
  // run_at(i, most): the slot of the piece's token i of `count`, and how many from there on, at most `most`, follow it.
  Stream(const Held& held, int64_t lane, int64_t count, Runs run_at) : held(held), count(count), run_at(run_at) {
    for (Block& block : blocks) block.lane = lane;
    blocks[0].ahead = &blocks[1];
    blocks[1].ahead = &blocks[0];
    look(blocks[0]);
  }

  // The next block; null at the end.
  const Block* next() {
    const Block& block = blocks[at];
    at = 1 - at;
    look(blocks[at]);
    return block.count ? &block : nullptr;
  }

 private:
  void look(Block& block) {
    block.count = (int)std::min<int64_t>(BLOCK, count - seen);
    for (int j = 0; j < block.count;) {
      const auto [slot, run] = run_at(seen + j, block.count - j);
      lay(block, j, slot, run);
      j += (int)run;
    }
    seen += block.count;
    if (block.count % TILE) lay<0>(block, block.count, block.slot[block.count - 1], TILE - block.count % TILE);
  }

  // `run` tokens from place j on, each STEP slots after the one before.
  template <int STEP = 1>
  void lay(Block& block, int j, int64_t slot, int64_t run) {
    const uint8_t *key = row(held.key, block.lane, slot), *value = row(held.value, block.lane, slot);
    touch(key, run * STEP * held.key.token);
    touch(value, run * STEP * held.value.token);
    for (int64_t i = 0; i < run; i++) {
      block.slot[j + i] = slot + i * STEP;
      block.key[j + i] = key + i * STEP * held.key.token;
      block.value[j + i] = value + i * STEP * held.value.token;
    }
    for (const Side* side : {&held.key, &held.value})
      for (const uint8_t* plane : {side->scale, side->minimum})
        if (plane) fetch(plane + slot * side->scale_token, run * side->scale_token);
  }

  const Held& held;
  int64_t count, seen = 0;
  int at = 0;
  Runs run_at;
  Block blocks[2];
};

// A vector on cache lines, so that no load crosses one.
template <class T>
struct OnLines {
  using value_type = T;
  OnLines() = default;
  template <class U>
  OnLines(const OnLines<U>&) {}
  T* allocate(size_t n) { return (T*)::operator new(n * sizeof(T), std::align_val_t{64}); }
  void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t{64}); }
  bool operator==(const OnLines&) const = default;
};
template <class T>
using Lined = std::vector<T, OnLines<T>>;

// The query rows of a lane, and the sums of values so far. Rows are padded to 1, 2 or a multiple of 4.
struct Rows {
  int count, padded;
  int64_t d, e;
  std::vector<float> wide;     // [padded, d]
  Lined<int32_t> packed;       // as the key type wants them
  Lined<float> query_sums;     // for keys with offsets: [padded / rows of a vector][group][W], for each key of a quad
  std::vector<float> factor;   // [padded]: what a raw score is multiplied with
  std::vector<float> centre;   // [padded]: what all scores of a row are short of, as their keys lie about a centre
  Lined<float> sums;           // [padded][stride]: channels, e rounded up to 32, in the value type's own order; then by
                               // group of channels W parts of what all its channels have in common
  int64_t e_padded, stride;

  Rows(int rows, int64_t d, int64_t e, int64_t groups)
      : count(rows), padded(rows < 3 ? rows : (rows + 3) / 4 * 4), d(d), e(e), wide(padded * d), factor(padded), centre(padded),
        e_padded((e + 31) / 32 * 32), stride(e_padded + groups * W) {
    sums.assign(padded * stride, 0.0f);
  }
  float* shared(int r, int64_t group) { return &sums[r * stride + e_padded + group * W]; }
};

// Scratch of one thread.
struct Scratch {
  Lined<float> scores = Lined<float>(BLOCK * 4);  // [rows, BLOCK]
  Lined<float> tile;                              // widened tokens
  Lined<float> scales, offsets;                   // of the tokens, [group, BLOCK]
  Lined<int32_t> weights;                         // probabilities as the value type wants them
  std::vector<float> back;                        // by row: what weighed sums are multiplied with
};

// A way to read keys of one type: scores [rows, BLOCK] = factor * (query . key).
struct KeyReader {
  void (*prepare)(Rows& rows, const Side& keys, float scale);
  void (*scores)(const Held& held, const Block& block, const Rows& rows, Scratch& scratch);
};

// A way to read values of one type: sums += scores [rows, BLOCK] times values. channel(i): the channel of sums' place i.
struct ValueReader {
  void (*weigh)(const Held& held, const Block& block, Rows& rows, Scratch& scratch);
  int64_t (*channel)(int64_t place);
};

inline void prepare_wide(Rows& rows, const Side&, float scale) { std::fill(rows.factor.begin(), rows.factor.end(), scale); }

inline int64_t same_channel(int64_t place) { return place; }

inline float dot(const float* a, const float* b, int64_t n) {
  vf s0{}, s1{};
  int64_t i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    s0 += load<vf>(a + i) * load<vf>(b + i);
    s1 += load<vf>(a + i + W) * load<vf>(b + i + W);
  }
  for (; i < n; i += W) s0 += load<vf>(a + i) * load<vf>(b + i);
  return sum(s0 + s1);
}

// Widths are multiples of 16, so of W.
template <Kind K>
void scores_wide(const Held& held, const Block& block, const Rows& rows, Scratch& scratch) {
  const Side& keys = held.key;
  scratch.tile.resize(rows.d);
  for (int j = 0; j < block.count; j++) {
    if (j < block.ahead->count) fetch(block.ahead->value[j], bytes_of((Kind)held.value.kind, held.value.width));
    const float* key = scratch.tile.data();
    if (K == F32)
      key = (const float*)block.key[j];
    else
      dequantise<K>(keys, block.lane, block.slot[j], scratch.tile.data());
    for (int r = 0; r < rows.count; r++)
      scratch.scores[r * BLOCK + j] = rows.factor[r] * dot(&rows.wide[r * rows.d], key, rows.d);
  }
}

template <Kind K>
void weigh_wide(const Held& held, const Block& block, Rows& rows, Scratch& scratch) {
  const Side& values = held.value;
  constexpr int PART = 8;  // vectors of a sum kept in registers
  scratch.tile.resize(TILE * rows.e);
  for (int j0 = 0; j0 < block.count; j0 += TILE) {
    const int tokens = std::min(TILE, block.count - j0);
    for (int j = j0; j < std::min(block.ahead->count, j0 + TILE); j++)
      fetch(block.ahead->key[j], bytes_of((Kind)held.key.kind, held.key.width));
    for (int j = 0; j < tokens; j++)
      dequantise<K>(values, block.lane, block.slot[j0 + j], &scratch.tile[j * rows.e]);
    for (int r = 0; r < rows.count; r++) {
      const float* p = &scratch.scores[r * BLOCK + j0];
      float* sums = &rows.sums[r * rows.stride];
      for (int64_t c = 0; c < rows.e; c += PART * W) {
        const int parts = (int)std::min<int64_t>(PART, (rows.e - c) / W);
        vf s[PART] = {};
        if (parts == PART) {
          for (int j = 0; j < tokens; j++)
            for (int i = 0; i < PART; i++) s[i] += p[j] * load<vf>(&scratch.tile[j * rows.e + c + i * W]);
        } else {
          for (int j = 0; j < tokens; j++)
            for (int i = 0; i < parts; i++) s[i] += p[j] * load<vf>(&scratch.tile[j * rows.e + c + i * W]);
        }
        for (int i = 0; i < parts; i++) store(sums + c + i * W, load<vf>(sums + c + i * W) + s[i]);
      }
    }
  }
}

}  // namespace hw
