// The highest estimated score of each block of queries on each block of keys, from codes: whole numbers of 8 bits or
// fewer with one step per query and per key. W queries lie side by side, and meet the keys one by one as they are stored.
#include <omp.h>

#include <algorithm>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "simd.hpp"

namespace hw {

constexpr int64_t KEYS = 4, VECTORS = 4;  // whose sums stay in registers: 4 keys by 4 vectors of queries

struct Estimates {
  const uint8_t* query;    // of `kind`, lanes, heads and tokens at strides of bytes
  const float* below;      // [lanes, group, tokens]: what is taken off a query's scores; contiguous as all that follows
  const int8_t* key;       // [lanes, keys, width]: codes of what keys differ from the middle by
  const float* key_step;   // [lanes, keys]
  const float* middle;     // [lanes, width]
  float* maxima;           // [lanes, query blocks, key blocks]: of the whole group; -inf where no query sees a key
  int64_t query_lane, query_head, query_token;
  int64_t lanes, group, tokens, keys, width, block;  // width: a multiple of 16
  float scale, softcap, most;                        // softcap 0: none; codes reach from -most to most
  int32_t kind, threads;

  int64_t tall() const { return (tokens + block - 1) / block; }
  int64_t wide() const { return (keys + block - 1) / block; }
};

namespace {

#if defined(__AVX512VNNI__)
// Four channels a step. Queries are unsigned bytes, BIAS above what they are; a key's sums begin that much lower.
struct Multiply {
  using Sum = vi;
  using Vector = __m512i;
  using Query = uint8_t;
  using Key = int8_t;
  static constexpr int step = 4, BIAS = 128;
  static void put(Query* to, const int8_t* from) {
    const uint32_t codes = load<uint32_t>(from) ^ 0x80808080;
    std::memcpy(to, &codes, 4);
  }
  static const Key* keys(const int8_t* from, int64_t, Key*) { return from; }
  static Vector each(const Key* key) { return _mm512_set1_epi32(load<int32_t>(key)); }
  static Sum add(Sum sum, Vector key, Vector query) { return (Sum)_mm512_dpbusd_epi32((__m512i)sum, query, key); }
  static Sum start(int32_t x) { return Sum{} + x; }
  static vf wide(Sum sum) { return __builtin_convertvector(sum, vf); }
};
#else
// One channel a step, in float32, which holds every sum of products of codes exactly.
struct Multiply {
  using Sum = vf;
  using Vector = vf;
  using Query = float;
  using Key = float;
  static constexpr int step = 1, BIAS = 0;
  static void put(Query* to, const int8_t* from) { *to = *from; }
  static const Key* keys(const int8_t* from, int64_t count, Key* room) {
    widen<I8>((const uint8_t*)from, count, room);
    return room;
  }
  static Vector each(const Key* key) { return splat(*key); }
  static Sum add(Sum sum, Vector key, Vector query) { return sum + key * query; }
  static Sum start(int32_t x) { return splat((float)x); }
  static vf wide(Sum sum) { return sum; }
};
#endif

// What the scores of W queries need beside sums of products. Lanes without a query have infinity taken off theirs.
struct Side {
  float step[W], offset[W], below[W];
  int32_t place[W];  // position among the keys
};

// A thread's tile: the queries of one block, all heads of a group.
class Tile {
 public:
  Tile(const Estimates& call, const std::vector<int32_t>& starts)
      : call(call),
        starts(starts),
        room((call.group * std::min(call.block, call.tokens) + W * VECTORS - 1) / (W * VECTORS) * VECTORS),
        codes(room * W * call.width),
        widened(std::is_same_v<Multiply::Key, float> ? std::min(call.block, call.keys) * call.width : 0),
        sides(room),
        wide(call.width),
        whole(call.width) {}

  // The maxima of query block `at` of a lane.
  void operator()(int64_t lane, int64_t at) {
    const int64_t block = call.block, q0 = at * block, count = std::min(block, call.tokens - q0);
    const int64_t first = call.keys - call.tokens + q0;  // position of the first query
    float* out = call.maxima + (lane * call.tall() + at) * call.wide();
    take(lane, q0, count);
    for (int64_t k0 = 0; k0 < call.keys; k0 += block, out++) {
      const int64_t k1 = std::min({k0 + block, call.keys, first + count});
      *out = k1 <= k0 ? LOW : k1 - 1 <= first ? best<false>(lane, k0, k1) : best<true>(lane, k0, k1);
    }
  }

 private:
  const Estimates& call;
  const std::vector<int32_t>& starts;
  const int64_t room;   // vectors that fit
  int64_t vectors = 0;  // in use, a multiple of VECTORS
  std::vector<Multiply::Query> codes;
  std::vector<Multiply::Key> widened;
  std::vector<Side> sides;
  std::vector<float> wide;     // one query,
  std::vector<int8_t> whole;   // and its codes

  // Rounds a block's queries and lays them out: per vector, `step` channels of its W queries after the other.
  void take(int64_t lane, int64_t q0, int64_t count) {
    const int64_t rows = count * call.group;
    vectors = (rows + W * VECTORS - 1) / (W * VECTORS) * VECTORS;
    for (int64_t i = 0; i < vectors * W; i++) {
      const bool any = i < rows;
      const int64_t head = any ? i / count : 0, q = q0 + (any ? i % count : 0);
      widen((Kind)call.kind, call.query + lane * call.query_lane + head * call.query_head + q * call.query_token,
            call.width, wide.data());
      Side& side = sides[i / W];
      side.step[i % W] = round() * call.scale;
      side.offset[i % W] = beside(call.middle + lane * call.width) * call.scale;
      side.below[i % W] = any ? call.below[(lane * call.group + head) * call.tokens + q] : -LOW;
      side.place[i % W] = (int32_t)(call.keys - call.tokens + q);
      Multiply::Query* to = codes.data() + i / W * W * call.width + i % W * Multiply::step;
      for (int64_t c = 0; c < call.width; c += Multiply::step) Multiply::put(to + c * W, whole.data() + c);
    }
  }

  // Rounds the query to whole multiples of its largest channel's share, which it returns: NaN if a channel is not finite.
  float round() {
    vf most{}, spoiled{};
    for (int64_t c = 0; c < call.width; c += W) {
      const vf x = load<vf>(&wide[c]);
      most = max(most, x < 0.0f ? -x : x);
      spoiled = spoiled + (x - x);
    }
    const float step = max(most) / call.most, magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
    for (int64_t c = 0; c < call.width; c += W) {
      const vi near = (vi)(load<vf>(&wide[c]) / std::max(step, 1e-30f) + magic) - (vi)splat(magic);
      const vb codes = __builtin_convertvector(near, vb);
      std::memcpy(&whole[c], &codes, sizeof codes);
    }
    return step + sum(spoiled);
  }

  // The query's product with the middle of the keys.
  float beside(const float* middle) const {
    vf total{};
    for (int64_t c = 0; c < call.width; c += W) total = total + load<vf>(&wide[c]) * load<vf>(middle + c);
    return sum(total);
  }

  // The highest score on keys k0 .. k1 - 1, each seen by some query. EDGE: but not by all.
  template <bool EDGE>
  float best(int64_t lane, int64_t k0, int64_t k1) {
    const int64_t at = lane * call.keys + k0, count = k1 - k0;
    const auto* keys = Multiply::keys(call.key + at * call.width, count * call.width, widened.data());
    vf spoiled{};  // NaN if a step is, which the greater of two numbers might hide
    int64_t first = 0;
    for (; first + W <= count; first += W) spoiled = spoiled + 0.0f * load<vf>(call.key_step + at + first);
    for (; first < count; first++) spoiled = spoiled + 0.0f * call.key_step[at + first];
    vf top = splat(LOW);
    for (int64_t v = 0; v < vectors; v += VECTORS) {
      vf high[VECTORS];
      for (int i = 0; i < VECTORS; i++) high[i] = splat(LOW);
      int64_t j = 0;
      for (; j + KEYS <= count; j += KEYS) raise<EDGE, KEYS>(high, v, keys + j * call.width, at + j, k0 + j);
      for (; j < count; j++) raise<EDGE, 1>(high, v, keys + j * call.width, at + j, k0 + j);
      for (int i = 0; i < VECTORS; i++) top = higher(top, score(high[i], sides[v + i]));
    }
    return max(top) + sum((vf)(top != top)) + sum(spoiled);  // all bits set: NaN
  }

  // The score of each query whose largest sum is `high`: what comes after the products changes no order.
  vf score(vf high, const Side& side) const {
    vf s = high * load<vf>(side.step) + load<vf>(side.offset);
    if (call.softcap > 0) s = call.softcap * tanh(s / call.softcap);
    return high == LOW ? splat(LOW) : s - load<vf>(side.below);
  }

  // Raises `high` by the sums, times their steps, of N keys, the first of them number `at` of all and at a position.
  template <bool EDGE, int N>
  void raise(vf (&high)[VECTORS], int64_t v, const Multiply::Key* key, int64_t at, int64_t position) const {
    Multiply::Sum sums[N][VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < N; j++)
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; i++) sums[j][i] = Multiply::start(starts[at + j]);
    const Multiply::Query* query = codes.data() + v * W * call.width;
#pragma GCC unroll 4
    for (int64_t c = 0; c < call.width; c += Multiply::step) {
      Multiply::Vector own[VECTORS];
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; i++) own[i] = load<Multiply::Vector>(query + (i * call.width + c) * W);
#pragma GCC unroll 4
      for (int j = 0; j < N; j++) {
        const auto each = Multiply::each(key + j * call.width + c);
#pragma GCC unroll 4
        for (int i = 0; i < VECTORS; i++) sums[j][i] = Multiply::add(sums[j][i], each, own[i]);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < N; j++)
#pragma GCC unroll 4
      for (int i = 0; i < VECTORS; i++) {
        vf s = Multiply::wide(sums[j][i]) * call.key_step[at + j];
        if constexpr (EDGE) s = load<vi>(sides[v + i].place) >= (int32_t)(position + j) ? s : splat(LOW);
        high[i] = max(high[i], s);
      }
  }
};

// Where each key's sums begin.
std::vector<int32_t> starts_of(const Estimates& call) {
  std::vector<int32_t> starts(call.lanes * call.keys);
  if constexpr (Multiply::BIAS != 0) {
#pragma omp parallel for schedule(static) num_threads(call.threads)
    for (int64_t i = 0; i < call.lanes * call.keys; i++) {
      const int8_t* key = call.key + i * call.width;
      int32_t sum = 0;
      for (int64_t c = 0; c < call.width; c++) sum += key[c];
      starts[i] = -Multiply::BIAS * sum;
    }
  }
  return starts;
}

}  // namespace
}  // namespace hw

// Returns 0, or 1 where memory does not suffice.
extern "C" int headwise_estimates(const hw::Estimates* call) {
  try {
    const std::vector<int32_t> starts = hw::starts_of(*call);
    std::vector<std::unique_ptr<hw::Tile>> tiles;
    for (int i = 0; i < call->threads; i++) tiles.push_back(std::make_unique<hw::Tile>(*call, starts));
#pragma omp parallel for schedule(dynamic, 1) num_threads(call->threads)
    for (int64_t i = 0; i < call->lanes * call->tall(); i++)  // from the last queries, which see most
      (*tiles[omp_get_thread_num()])(i % call->lanes, call->tall() - 1 - i / call->lanes);
    return 0;
  } catch (const std::bad_alloc&) {
    return 1;
  }
}
