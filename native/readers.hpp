// Which way keys and values of a stored type are read for queries of a type, at this level of instructions.
#pragma once

#include "keys_avx512.hpp"
#include "values_avx512.hpp"

namespace hw {

#if defined(__AVX512F__)
#define EXACT_KEYS(K) {prepare_float, scores_shown<K, FloatKeys>}
#define EXACT_VALUES(K) {weigh_widened<K>, same_channel}
#else
#define EXACT_KEYS(K) {prepare_wide, scores_wide<K>}
#define EXACT_VALUES(K) {weigh_wide<K>, same_channel}
#endif

// All of this file is a library's own (no `inline` variable, nor a static one in an inline function): the loader merges
// such objects over all open libraries, and the level opened first would answer for the others.

// By stored type, in float32 throughout: for float32 queries, and where the processor has nothing quicker.
const KeyReader EXACT_KEY[] = {EXACT_KEYS(F32), EXACT_KEYS(BF16), EXACT_KEYS(F16), EXACT_KEYS(I8), EXACT_KEYS(I4),
                              EXACT_KEYS(I2)};
const ValueReader EXACT_VALUE[] = {EXACT_VALUES(F32), EXACT_VALUES(BF16), EXACT_VALUES(F16), EXACT_VALUES(I8),
                                   EXACT_VALUES(I4), EXACT_VALUES(I2)};

// For queries of 16 bits, whose own rounding is coarser than what these lose.
static const KeyReader& key_reader(int32_t kind, int32_t q_kind) {
#if defined(__AVX512BF16__)
  static const KeyReader pairs = {prepare_bfloat, scores_shown<BF16, BfloatKeys>};
  if (kind == BF16 && q_kind == BF16) return pairs;
#endif
#if defined(__AVX512VNNI__)
  static const KeyReader bytes = {prepare_integer<1>, scores_shown<I8, ByteKeys>};
  static const KeyReader nibbles = {prepare_integer<2>, scores_shown<I4, NibbleKeys>};
  if (kind == I8 && q_kind != F32) return bytes;
  if (kind == I4 && q_kind != F32) return nibbles;
#endif
  return EXACT_KEY[kind];
}

static const ValueReader& value_reader(int32_t kind, int32_t q_kind) {
#if defined(__AVX512BF16__)
  static const ValueReader pairs = {weigh_turned<BfloatValues>, BfloatValues::channel};
  static const ValueReader nibbles = {weigh_turned<NibbleValues>, NibbleValues::channel};
  if (kind == BF16 && q_kind == BF16) return pairs;
  if (kind == I4 && q_kind != F32) return nibbles;
#endif
#if defined(__AVX512VNNI__)
  static const ValueReader bytes = {weigh_turned<ByteValues>, ByteValues::channel};
  if (kind == I8 && q_kind != F32) return bytes;
#endif
  return EXACT_VALUE[kind];
}

}  // namespace hw
