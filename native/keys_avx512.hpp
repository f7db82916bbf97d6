// Keys read in their stored type and order: the rows of queries lie side by side in a vector, each meets the same bytes
// of a key, and every row's products are added up at the end.
#pragma once

#include "scales_avx512.hpp"

#if defined(__AVX512F__)

namespace hw {

// ROWS (1, 2 or 4) rows share a vector, and so 64 / ROWS bytes of a key meet them at once.
constexpr int chunk_of(int rows) { return 64 / rows; }
inline int rows_together(const Rows& rows) { return std::min(rows.padded, 4); }

// The chunk of a key at `at`, for every row; `bytes` of it exist.
template <int ROWS>
inline __m512i show(const uint8_t* at) {
  if constexpr (ROWS == 4) return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)at));
  if constexpr (ROWS == 2) return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)at));
  return _mm512_loadu_si512(at);
}

template <int ROWS>
inline __m512i show(const uint8_t* at, int64_t bytes) {
  const __m512i x = _mm512_maskz_loadu_epi8(~0ull >> (64 - bytes), at);
  if constexpr (ROWS == 4) return _mm512_broadcast_i32x4(_mm512_castsi512_si128(x));
  if constexpr (ROWS == 2) return _mm512_broadcast_i64x4(_mm512_castsi512_si256(x));
  return x;
}

// Products of a chunk with QUERIES vectors of queries, by key type. SCALED: tokens have scales,
// and count from FROM of them, beside a minimum.
struct FloatKeys {
  using Sum = vf;
  using Line = vf;
  static constexpr int QUERIES = 1, FROM = 0;
  static constexpr bool SCALED = false;
  static void add(Sum& s, __m512i k, const __m512i q[QUERIES]) { s += (vf)k * (vf)q[0]; }
  static Line value(const Sum& s) { return s; }
};

#if defined(__AVX512BF16__)
struct BfloatKeys {
  using Sum = vf;
  using Line = vf;
  static constexpr int QUERIES = 1, FROM = 0;
  static constexpr bool SCALED = false;
  static void add(Sum& s, __m512i k, const __m512i q[QUERIES]) {
    s = (vf)_mm512_dpbf16_ps((__m512)s, (__m512bh)k, (__m512bh)q[0]);
  }
  static Line value(const Sum& s) { return s; }
};
#endif

#if defined(__AVX512VNNI__)
// Integer keys meet queries of 16 bits, finer than bfloat16 ones: their high and low bytes apart, both signed. Stored
// numbers become unsigned first.
struct Parts {
  vi high, low;
};

inline void add_parts(Parts& s, __m512i k, const __m512i q[2]) {
  s.high = (vi)_mm512_dpbusd_epi32((__m512i)s.high, k, q[0]);
  s.low = (vi)_mm512_dpbusd_epi32((__m512i)s.low, k, q[1]);
}

struct ByteKeys {
  using Sum = Parts;
  using Line = vi;
  static constexpr int QUERIES = 2, FROM = -128;
  static constexpr bool SCALED = true;
  static void add(Sum& s, __m512i k, const __m512i q[QUERIES]) {
    add_parts(s, _mm512_xor_si512(k, _mm512_set1_epi32((int)0x80808080)), q);
  }
  static Line value(const Sum& s) { return (s.high << 8) + s.low; }
};

struct NibbleKeys {  // even channels, then odd ones
  using Sum = Parts;
  using Line = vi;
  static constexpr int QUERIES = 4, FROM = 0;
  static constexpr bool SCALED = true;
  static void add(Sum& s, __m512i k, const __m512i q[QUERIES]) {
    const __m512i low = _mm512_set1_epi32(0x0f0f0f0f);
    add_parts(s, _mm512_and_si512(k, low), q);
    add_parts(s, _mm512_and_si512(_mm512_srli_epi16(k, 4), low), q + 2);
  }
  static Line value(const Sum& s) { return (s.high << 8) + s.low; }
};
#endif

// Lanes of 128 bits of two vectors, chosen by a constant.
template <int CHOICE, class V>
inline V lanes(V a, V b) { return (V)_mm512_shuffle_i32x4((__m512i)a, (__m512i)b, CHOICE); }

// Four vectors' sums over every lane of 128 bits: lane L holds those of s[0] .. s[3].
template <class V>
inline V sum_quads(const V s[4]) {
  auto pair = [](V a, V b) {
    return (V)_mm512_unpacklo_epi32((__m512i)a, (__m512i)b) + (V)_mm512_unpackhi_epi32((__m512i)a, (__m512i)b);
  };
  const V a = pair(s[0], s[1]), b = pair(s[2], s[3]);
  return (V)_mm512_unpacklo_epi64((__m512i)a, (__m512i)b) + (V)_mm512_unpackhi_epi64((__m512i)a, (__m512i)b);
}

// Four vectors of quads, of keys 0-3, 4-7, 8-11 and 12-15, to a vector of 16 keys for each row.
template <int ROWS>
inline void sort_rows(const vf quad[4], vf out[ROWS]) {
  const vf a = lanes<0x88>(quad[0], quad[1]), b = lanes<0xdd>(quad[0], quad[1]);
  const vf c = lanes<0x88>(quad[2], quad[3]), d = lanes<0xdd>(quad[2], quad[3]);
  if constexpr (ROWS == 4) {
    out[0] = lanes<0x88>(a, c);
    out[1] = lanes<0x88>(b, d);
    out[2] = lanes<0xdd>(a, c);
    out[3] = lanes<0xdd>(b, d);
  } else {
    const vf first = a + b, second = c + d;
    if constexpr (ROWS == 2) {
      out[0] = lanes<0x88>(first, second);
      out[1] = lanes<0xdd>(first, second);
    } else {
      out[0] = lanes<0x88>(first, second) + lanes<0xdd>(first, second);
    }
  }
}

// Keys of a block as one call reads them: `bytes` of a group of channels, `groups` of them, and by group and token what
// their scores are scaled with and start from.
struct KeyGroups {
  int64_t bytes, groups;
  const float *scale, *offset;
};

// Products of eight keys' chunks of one group with the queries at q, added up within lanes: two quads.
template <class Unit, int ROWS>
[[gnu::always_inline]] inline void score_keys(const uint8_t* const key[8], int64_t first, int64_t bytes, const __m512i* q,
                                              vf out[2]) {
  constexpr int CHUNK = chunk_of(ROWS);
  typename Unit::Sum s[8] = {};
  const int64_t end = first + bytes;
  int64_t at = first;
  for (; at + CHUNK <= end; at += CHUNK, q += Unit::QUERIES)
    UNROLL for (int j = 0; j < 8; j++) Unit::add(s[j], show<ROWS>(key[j] + at), q);
  if (at < end)
    UNROLL for (int j = 0; j < 8; j++) Unit::add(s[j], show<ROWS>(key[j] + at, end - at), q);
  typename Unit::Line line[8];
  UNROLL for (int j = 0; j < 8; j++) line[j] = Unit::value(s[j]);
  out[0] = __builtin_convertvector(sum_quads(line), vf);
  out[1] = __builtin_convertvector(sum_quads(line + 4), vf);
}

// Scores of ROWS rows with 16 keys, the block's from `at` on.
template <class Unit, int ROWS>
[[gnu::noinline]] void score_rows(const uint8_t* const key[16], const KeyGroups& groups, const int32_t* packed,
                                  const float* query_sums, const float* factor, int at, float* out) {
  constexpr int CHUNK = chunk_of(ROWS);
  const int64_t vectors = (groups.bytes + CHUNK - 1) / CHUNK * Unit::QUERIES;
  vf quad[4] = {};
  for (int64_t g = 0; g < groups.groups; g++)
    UNROLL for (int i = 0; i < 4; i += 2) {
      vf sum[2];
      score_keys<Unit, ROWS>(key + 4 * i, g * groups.bytes, groups.bytes, (const __m512i*)packed + g * vectors, sum);
      UNROLL for (int k = 0; k < 2; k++) {
        if constexpr (Unit::SCALED) {
          auto of_tokens = [&](const float* numbers) {
            return (vf)_mm512_broadcast_f32x4(_mm_loadu_ps(numbers + g * BLOCK + at + 4 * (i + k)));
          };
          quad[i + k] += sum[k] * of_tokens(groups.scale) + load<vf>(query_sums + g * W) * of_tokens(groups.offset);
        } else {
          quad[i + k] = sum[k];
        }
      }
    }
  vf rows[ROWS];
  sort_rows<ROWS>(quad, rows);
  UNROLL for (int r = 0; r < ROWS; r++) store(out + r * BLOCK + at, rows[r] * factor[r]);
}

// K: the stored type; a type without a unit of its own is widened to floats first.
template <Kind K, class Unit>
void scores_shown(const Held& held, const Block& block, const Rows& rows, Scratch& scratch) {
  const Side& keys = held.key;
  constexpr bool WIDEN = std::is_same_v<Unit, FloatKeys> && K != F32;
  KeyGroups groups{.bytes = WIDEN ? 4 * rows.d : bytes_of(K, rows.d), .groups = 1, .scale = nullptr, .offset = nullptr};
  if constexpr (Unit::SCALED) {
    take_scales(keys, Unit::FROM, block, scratch);
    groups.groups = keys.width / keys.group;
    groups.bytes /= groups.groups;
    groups.scale = scratch.scales.data();
    groups.offset = scratch.offsets.data();
  }
  scratch.tile.resize(WIDEN ? 16 * rows.d : 0);
  const uint8_t* widened[16];
  const int64_t value_bytes = bytes_of((Kind)held.value.kind, held.value.width);
  auto run = [&]<int ROWS>() {
    const int64_t dwords = (int64_t)rows.packed.size() / (rows.padded / ROWS);  // of the queries of ROWS rows
    for (int at = 0; at < block.count; at += 16) {
      for (int i = at; i < std::min(at + 16, block.ahead->count); i++) fetch(block.ahead->value[i], value_bytes);
      for (int i = 0; WIDEN && i < 16; i++) {
        dequantise<K>(keys, block.lane, block.slot[at + i], &scratch.tile[i * rows.d]);
        widened[i] = (const uint8_t*)&scratch.tile[i * rows.d];
      }
      for (int r = 0; r < rows.padded; r += ROWS)
        score_rows<Unit, ROWS>(WIDEN ? widened : block.key + at, groups, &rows.packed[r / ROWS * dwords],
                               rows.query_sums.data() + r / ROWS * groups.groups * W, &rows.factor[r], at,
                               &scratch.scores[r * BLOCK]);
    }
  };
  switch (rows_together(rows)) {
    case 1: return run.template operator()<1>();
    case 2: return run.template operator()<2>();
    default: return run.template operator()<4>();
  }
}

// Queries as score_rows meets them: [rows / ROWS][group][chunk][vectors] of 64 bytes, each row's part of a vector
// filled by put(row, vector of the chunk, first channel of the group, byte within the group, to).
template <class Put>
inline void pack_queries(Rows& rows, int64_t groups, int64_t bytes, int vectors, Put put) {
  const int some = rows_together(rows), chunk = chunk_of(some);
  const int64_t chunks = (bytes + chunk - 1) / chunk;
  rows.packed.assign(rows.padded / some * groups * chunks * vectors * 16, 0);
  uint8_t* to = (uint8_t*)rows.packed.data();
  for (int r0 = 0; r0 < rows.padded; r0 += some)
    for (int64_t g = 0; g < groups; g++)
      for (int64_t at = 0; at < chunks * chunk; at += chunk)
        for (int v = 0; v < vectors; v++)
          for (int r = r0; r < r0 + some; r++, to += chunk)
            put(r, v, g, at, std::min<int64_t>(chunk, bytes - at), to);
}

inline void prepare_float(Rows& rows, const Side&, float scale) {
  std::fill(rows.factor.begin(), rows.factor.end(), scale);
  pack_queries(rows, 1, 4 * rows.d, 1, [&](int r, int, int64_t, int64_t at, int64_t bytes, uint8_t* to) {
    std::memcpy(to, &rows.wide[r * rows.d + at / 4], bytes);
  });
}

#if defined(__AVX512BF16__)
inline void prepare_bfloat(Rows& rows, const Side&, float scale) {
  std::fill(rows.factor.begin(), rows.factor.end(), scale);
  pack_queries(rows, 1, 2 * rows.d, 1, [&](int r, int, int64_t, int64_t at, int64_t bytes, uint8_t* to) {
    narrow(BF16, &rows.wide[r * rows.d + at / 2], bytes / 2, to);
  });
}
#endif

#if defined(__AVX512VNNI__)
// Queries as int16 with a scale a row, high bytes and low bytes apart; CODES channels a byte of a key.
template <int CODES>
void prepare_integer(Rows& rows, const Side& keys, float scale) {
  constexpr float MOST = 127 * 256 + 127;  // its high byte and its low byte, both signed
  const int64_t groups = keys.width / keys.group, span = keys.group;
  const int some = rows_together(rows);
  std::vector<int> whole(rows.padded * rows.d);
  rows.query_sums.assign(rows.padded / some * groups * W, 0.0f);
  for (int r = 0; r < rows.padded; r++) {
    const float* q = &rows.wide[r * rows.d];
    float top = 0;
    for (int64_t c = 0; c < rows.d; c++) top = std::max(top, std::fabs(q[c]));
    rows.factor[r] = scale * top / MOST;
    for (int64_t c = 0; c < rows.d; c++) {
      const int x = whole[r * rows.d + c] = top > 0 ? (int)std::lrint(q[c] * (MOST / top)) : 0;
      for (int j = 0; j < 4; j++) rows.query_sums[(r / some * groups + c / span) * W + r % some * (W / some) + j] += (float)x;
    }
  }
  pack_queries(rows, groups, span / CODES, 2 * CODES, [&](int r, int v, int64_t g, int64_t at, int64_t bytes, uint8_t* to) {
    for (int64_t b = 0; b < bytes; b++) {
      const int x = whole[r * rows.d + g * span + (at + b) * CODES + v / 2], low = (int8_t)(x & 0xff);
      to[b] = (uint8_t)(v % 2 ? low : (x - low) >> 8);
    }
  });
}
#endif

}  // namespace hw

#endif
