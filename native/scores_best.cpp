// How well the best of a lane's queries matches each of its summary vectors: means of blocks, bounds of pages.
#include <algorithm>

#include "simd.hpp"

namespace hw {

constexpr int64_t ROWS = 4, VECTORS = W / ROWS;  // whose products are added up together
constexpr int64_t PIECE = 256;                   // vectors of a piece of work

struct BestScores {
  const uint8_t* query;   // [lanes, rows, width], contiguous, of `query_kind`
  const uint8_t* vector;  // [lanes, count, width], of `kind`, lanes and vectors at byte strides
  float* out;             // [lanes, count]: the largest product over rows; NaN if any is
  int64_t lane, token;
  int64_t lanes, rows, count, width;  // width: a multiple of 16
  int32_t kind, query_kind, threads;
};

namespace {

template <Kind K>
vf wide(const uint8_t* at) {
  if constexpr (K == F32) return load<vf>(at);
  if constexpr (K == BF16) return from_bf16(load<vh>(at));
  if constexpr (K == F16) return from_f16(load<vh>(at));
}

template <Kind K>
constexpr int64_t BYTES = K == F32 ? 4 : 2;

// W channels at a time, in float32.
template <Kind K, Kind Q>
struct Floats {
  static constexpr int64_t channels = W, vector_bytes = W * BYTES<K>, query_bytes = W * BYTES<Q>;
  typedef vf Loaded;
  static vf vector(const uint8_t* at) { return wide<K>(at); }
  static vf query(const uint8_t* at) { return wide<Q>(at); }
  static vf add(vf total, vf x, vf q) { return total + x * q; }
};

#if defined(__AVX512BF16__)
// Pairs of bfloat16 channels, multiplied exactly.
struct Pairs {
  static constexpr int64_t channels = 32, vector_bytes = 64, query_bytes = 64;
  typedef __m512bh Loaded;
  static __m512bh vector(const uint8_t* at) { return (__m512bh)_mm512_loadu_si512(at); }
  static __m512bh query(const uint8_t* at) { return vector(at); }
  static vf add(vf total, __m512bh x, __m512bh q) { return (vf)_mm512_dpbf16_ps((__m512)total, x, q); }
};
#endif

template <class Reader>
void score(const BestScores& call, int64_t lane, int64_t begin) {
  const int64_t query_row = call.width / Reader::channels * Reader::query_bytes;
  const int64_t end = std::min(begin + PIECE, call.count);
  for (int64_t at = begin; at < end; at += VECTORS) {
    const uint8_t* x[VECTORS];
    for (int64_t j = 0; j < VECTORS; j++)  // the last one again, where there are no more
      x[j] = call.vector + lane * call.lane + std::min(at + j, end - 1) * call.token;
    vf best = splat(LOW);  // by row, then by vector
    for (int64_t r = 0; r < call.rows; r += ROWS) {
      const uint8_t* q[ROWS];
      for (int64_t i = 0; i < ROWS; i++) q[i] = call.query + (lane * call.rows + std::min(r + i, call.rows - 1)) * query_row;
      vf total[W] = {};
      for (int64_t c = 0; c < call.width / Reader::channels; c++) {
        typename Reader::Loaded own[ROWS];
#pragma GCC unroll 4
        for (int64_t i = 0; i < ROWS; i++) own[i] = Reader::query(q[i] + c * Reader::query_bytes);
#pragma GCC unroll 4
        for (int64_t j = 0; j < VECTORS; j++) {
          const typename Reader::Loaded one = Reader::vector(x[j] + c * Reader::vector_bytes);
#pragma GCC unroll 4
          for (int64_t i = 0; i < ROWS; i++) total[VECTORS * i + j] = Reader::add(total[VECTORS * i + j], one, own[i]);
        }
      }
      best = higher(best, sums(total));
    }
    typedef float Line __attribute__((vector_size(VECTORS * 4)));
    Line row[ROWS];
    std::memcpy(row, &best, sizeof best);
    const Line found = higher(higher(row[0], row[1]), higher(row[2], row[3]));
    std::memcpy(call.out + lane * call.count + at, &found, std::min(VECTORS, end - at) * sizeof(float));
  }
}

typedef void (*Score)(const BestScores&, int64_t lane, int64_t begin);

Score score_of(const BestScores& call) {
  const bool both = call.kind == BF16 && call.query_kind == BF16;
#if defined(__AVX512BF16__)
  if (both && call.width % Pairs::channels == 0) return score<Pairs>;
#endif
  if (both) return score<Floats<BF16, BF16>>;
  return call.kind == BF16 ? score<Floats<BF16, F32>> : call.kind == F16 ? score<Floats<F16, F32>> : score<Floats<F32, F32>>;
}

}  // namespace
}  // namespace hw

extern "C" void headwise_best_scores(const hw::BestScores* call) {
  const hw::Score score = hw::score_of(*call);
  const int64_t pieces = (call->count + hw::PIECE - 1) / hw::PIECE;
#pragma omp parallel for schedule(static) num_threads(call->threads)
  for (int64_t i = 0; i < call->lanes * pieces; i++) score(*call, i / pieces, i % pieces * hw::PIECE);
}
