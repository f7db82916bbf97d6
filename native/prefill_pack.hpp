// Keys and values of a lane laid out for `multiply`: block by block, zeros for what no query sees.
#pragma once

#include "held.hpp"
#include "prefill_tiles.hpp"
#include "prefill_where.hpp"

namespace hw {

constexpr int64_t WIDEST = 512;

// `count` rounded up to whole times `unit`.
inline int64_t whole(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Keys: per block of 16, per W of them, a vector of M::step channels of W keys after the other.
// Values: per W channels, per block, a vector of M::step keys of W channels after the other.
template <class M>
struct Packed {
  typename M::Element* keys;
  typename M::Element* values;
  int64_t d, e, blocks;  // d: whole times M::channels, zeros added

  const typename M::Element* key(int64_t block, int64_t part) const { return keys + (block * BLOCK + part * W) * d; }
  const typename M::Element* value(int64_t column, int64_t block) const {
    return values + (column * blocks + block) * BLOCK * W;
  }

  // Values of M::blocks entries from `from` on, of which there are `some`: where they lie if they follow each other,
  // else joined in `room`, with zeros for those that there are not.
  const typename M::Element* values_of(int64_t column, const Entry* from, int64_t some,
                                       typename M::Element* room) const {
    constexpr int64_t size = BLOCK * W;
    if (M::blocks == 1 || (some > 1 && from[1].block == from[0].block + 1)) return value(column, from[0].block);
    std::memcpy(room, value(column, from[0].block), size * sizeof *room);
    if (some > 1)
      std::memcpy(room + size, value(column, from[1].block), size * sizeof *room);
    else
      std::fill_n(room + size, size, typename M::Element{});
    return room;
  }
};

// A token's channels in M's element type: where they lie if they are of that type, else made in `room`.
template <class M>
inline const typename M::Element* fetch(const Side& side, int64_t lane, int64_t slot, typename M::Element* room) {
  const uint8_t* at = row(side, lane, slot);
  if (side.kind == M::kind && !side.scale) return reinterpret_cast<const typename M::Element*>(at);
  float wide[WIDEST];
  switch ((Kind)side.kind) {
    case F32: dequantise<F32>(side, lane, slot, wide); break;
    case BF16: dequantise<BF16>(side, lane, slot, wide); break;
    case F16: dequantise<F16>(side, lane, slot, wide); break;
    case I8: dequantise<I8>(side, lane, slot, wide); break;
    case I4: dequantise<I4>(side, lane, slot, wide); break;
    case I2: dequantise<I2>(side, lane, slot, wide); break;
  }
  if (const Frame frame = side.frame(lane); frame.centre) leave(frame, wide, side.width);
  for (int64_t c = 0; c < side.width; c++) room[c] = M::from(wide[c]);
  return room;
}

template <class M>
class Packer {
 public:
  Packer(const Held& held, const Sight& sight, int64_t lane, const Packed<M>& packed)
      : held(held), sight(sight), lane(lane), packed(packed) {}

  void block(int64_t b) {
    int64_t slot[BLOCK];
    bool any = false;
    for (int64_t i = 0; i < BLOCK; i++) {
      const int64_t token = sight.token(b, i);
      slot[i] = token < 0 ? -1 : held.slot(lane, token);
      any |= token >= 0;
    }
    if (!any) return;  // nor is the block on any list
    rows(held.key, slot);
    keys(packed.keys + b * BLOCK * packed.d);
    if (!packed.e) return;
    rows(held.value, slot);
    for (int64_t column = 0; column < packed.e / W; column++)
      values(column, packed.values + (column * packed.blocks + b) * BLOCK * W);
  }

 private:
  using Element = typename M::Element;
  const Held& held;
  const Sight& sight;
  int64_t lane;
  const Packed<M>& packed;
  const Element* from[BLOCK];
  Element room[BLOCK][WIDEST];
  Element zeros[WIDEST] = {};

  void rows(const Side& side, const int64_t* slot) {
    for (int64_t i = 0; i < BLOCK; i++) from[i] = slot[i] < 0 ? zeros : fetch<M>(side, lane, slot[i], room[i]);
  }

  void keys(Element* out) const {
    constexpr int64_t word = sizeof(uint32_t) / sizeof(Element);
    for (int64_t part = 0; part < BLOCK; part += W) {
      const Element* const* rows = from + part;
      int64_t c = 0;
      for (; c + W * word <= held.key.width; c += W * word, out += W * W * word) {
        vu turned[W];
        turn(rows, c, turned);
        std::memcpy(out, turned, sizeof turned);
      }
      for (; c < held.key.width; c += word, out += W * word)
        for (int i = 0; i < W; i++) std::memcpy(out + i * word, rows[i] + c, sizeof(uint32_t));
      out = std::fill_n(out, (packed.d - c) * W, Element{});
    }
  }

  void values(int64_t column, Element* out) const {
    for (int64_t i = 0; i < BLOCK; i += M::step, out += M::step * W) {
      const Element* a = from[i] + column * W;
      if constexpr (M::step == 1) {
        std::memcpy(out, a, W * sizeof(Element));
      } else {
        const vu low = __builtin_convertvector(load<vh>(a), vu);
        const vu high = __builtin_convertvector(load<vh>(from[i + 1] + column * W), vu);
        const vu both = low | (high << 16);
        std::memcpy(out, &both, sizeof both);
      }
    }
  }
};

}  // namespace hw
