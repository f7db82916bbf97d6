// Keys and values as integers, written and read row by row. The codecs of the package, in torch, are what these equal.
#include <algorithm>

#include "frame.hpp"
#include "simd.hpp"

namespace hw {

struct Coding {
  uint8_t* wide;      // [rows, width] of `kind`
  uint8_t* data;      // [rows, width * bits / 8], the first code in the lowest bits
  uint16_t* scale;    // float16, [rows, groups]
  uint16_t* minimum;  // the same, or null where bytes are written: codes symmetric around 0, one group a row
  int64_t rows, width, group;
  int32_t kind, bits, threads;
};

namespace {

constexpr int64_t WIDEST = 512;
constexpr float LARGEST = 65504, SMALLEST = 6.2e-5f;  // of a float16; below the latter a scale would lose precision

inline vf clamp(vf x, float low, float high) { return x < low ? splat(low) : x > high ? splat(high) : x; }  // keeps NaN
inline float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }
inline vf round_even(vf x) { return (x + 12582912.0f) - 12582912.0f; }

// The whole number nearest to each x / scale, within low to high; NaN gives low.
inline vf codes_of(vf x, float scale, float low, float high) {
  const vf code = round_even(clamp(x / scale, low, high));
  return code >= low ? code : splat(low);
}

// Least and greatest of `count` floats at `x`, a multiple of W; NaN where there is one.
inline void range_of(const float* x, int64_t count, float& least, float& greatest) {
  vf low = load<vf>(x), high = low;
  for (int64_t c = W; c < count; c += W) high = higher(high, load<vf>(x + c)), low = -higher(-low, -load<vf>(x + c));
  least = low[0], greatest = high[0];
  for (int i = 1; i < W; i++) greatest = higher(greatest, high[i]), least = -higher(-least, -low[i]);
}

template <int BITS>
void pack(const float* codes, int64_t width, uint8_t* out) {
  constexpr int EACH = 8 / BITS;
  uint8_t whole[WIDEST];
  for (int64_t c = 0; c < width; c++) whole[c] = (uint8_t)(int)codes[c];
  for (int64_t i = 0; i < width / EACH; i++) {
    int byte = 0;
    for (int j = 0; j < EACH; j++) byte |= whole[i * EACH + j] << (BITS * j);
    out[i] = (uint8_t)byte;
  }
}

inline void unpack(const uint8_t* data, int64_t width, int bits, float* out) {
  bits == 4 ? widen<I4>(data, width, out) : widen<I2>(data, width, out);
}

void encode(const Coding& call, int64_t row) {
  alignas(64) float x[WIDEST];
  const int64_t width = call.width, whole = (width + W - 1) / W * W, groups = (width + call.group - 1) / call.group;
  widen((Kind)call.kind, call.wide + row * bytes_of((Kind)call.kind, width), width, x);
  std::fill(x + width, x + whole, x[width - 1]);  // a member of the last group, which changes no range
  for (int64_t i = 0; i < groups; i++) {
    const int64_t first = i * call.group, last = std::min(first + call.group, whole);
    float low, high, least, greatest;
    if (call.minimum) {
      for (int64_t c = first; c < last; c += W) store(x + c, clamp(load<vf>(x + c), -LARGEST, LARGEST));
      range_of(x + first, last - first, least, greatest);
      low = 0, high = (float)((1 << call.bits) - 1);
      const uint16_t minimum = to_f16(least);
      call.minimum[row * groups + i] = minimum;
      least = from_f16(minimum);  // as it is stored, so that the scale fits it
    } else {
      range_of(x + first, last - first, least, greatest);
      greatest = higher(greatest, -least), least = 0;
      high = (float)((1 << (call.bits - 1)) - 1), low = -high;
    }
    const uint16_t scale = to_f16(clamp((greatest - least) / high, SMALLEST, LARGEST));
    call.scale[row * groups + i] = scale;
    for (int64_t c = first; c < last; c += W)
      store(x + c, codes_of(load<vf>(x + c) - least, from_f16(scale), low, high));
  }
  uint8_t* data = call.data + row * width * call.bits / 8;
  call.bits == 8 ? pack<8>(x, width, data) : call.bits == 4 ? pack<4>(x, width, data) : pack<2>(x, width, data);
}

void decode(const Coding& call, int64_t row) {
  alignas(64) float x[WIDEST];
  const int64_t width = call.width, groups = (width + call.group - 1) / call.group;
  unpack(call.data + row * width * call.bits / 8, width, call.bits, x);
  for (int64_t i = 0; i < groups; i++) {
    const float scale = from_f16(call.scale[row * groups + i]);
    const float least = from_f16(call.minimum[row * groups + i]);
    const int64_t last = std::min((i + 1) * call.group, width);
    for (int64_t c = i * call.group; c < last; c++) x[c] = x[c] * scale + least;
  }
  narrow((Kind)call.kind, x, width, call.wide + row * bytes_of((Kind)call.kind, width));
}

// One of keys and values of new tokens [lanes, tokens, width], and the planes of the pool that they go to, by slot.
struct Stream {
  const uint8_t* x;
  int64_t x_lane, x_token;  // bytes
  uint8_t* data;
  uint16_t* scale;
  uint16_t* minimum;  // null where codes are symmetric
  int64_t width, group;
  int32_t kind, bits;   // of x; bits 0: written as it is
  const float* frames;  // of the lanes, see frame_of; null: x is written as it is
};

}  // namespace

struct Append {
  Stream key, value;
  const int64_t* position;  // [lanes, tokens] at strides of numbers
  int64_t position_lane, position_token;
  int32_t* positions;   // by slot
  const int64_t* slot;  // by lane: where its first new token goes; the others follow
  const int64_t* place; // of each lane, its number among the lanes of new keys and values; null: its own
  float* mass;          // by slot, or null; set to 0
  float* notes;         // [slots, note_width], or null; set to 0
  int64_t note_width, lanes, tokens;
};

namespace {

// Token `token` of lane `from` of what is new, to a slot of the lane.
void write(const Stream& stream, int64_t lane, int64_t from, int64_t token, int64_t slot) {
  const uint8_t* x = stream.x + from * stream.x_lane + token * stream.x_token;
  const int64_t groups = stream.bits ? (stream.width + stream.group - 1) / stream.group : 0;
  const int64_t bytes = stream.bits ? stream.width * stream.bits / 8 : bytes_of((Kind)stream.kind, stream.width);
  uint8_t* data = stream.data + slot * bytes;
  if (!stream.bits) {
    std::copy(x, x + bytes, data);
    return;
  }
  uint16_t* minimum = stream.minimum ? stream.minimum + slot * groups : nullptr;
  float wide[WIDEST];
  int32_t kind = stream.kind;
  if (const Frame frame = frame_of(stream.frames, lane, stream.width); frame.centre) {
    widen((Kind)kind, x, stream.width, wide);
    enter(frame, wide, stream.width);
    x = (const uint8_t*)wide, kind = F32;
  }
  encode({const_cast<uint8_t*>(x), data, stream.scale + slot * groups, minimum, 1, stream.width, stream.group, kind,
          stream.bits, 1}, 0);
}

}  // namespace
}  // namespace hw

// New tokens of every lane, written where they lie in a pool in order.
extern "C" void headwise_append(const hw::Append* call) {
  for (int64_t lane = 0; lane < call->lanes; lane++)
    for (int64_t i = 0; i < call->tokens; i++) {
      const int64_t slot = call->slot[lane] + i, from = call->place ? call->place[lane] : lane;
      hw::write(call->key, lane, from, i, slot);
      hw::write(call->value, lane, from, i, slot);
      call->positions[slot] = (int32_t)call->position[lane * call->position_lane + i * call->position_token];
      if (call->mass) call->mass[slot] = 0;
      if (call->notes) std::fill_n(call->notes + slot * call->note_width, call->note_width, 0.0f);
    }
}

extern "C" void headwise_encode(const hw::Coding* call) {
#pragma omp parallel for schedule(static) num_threads(call->threads)
  for (int64_t row = 0; row < call->rows; row++) hw::encode(*call, row);
}

extern "C" void headwise_decode_codes(const hw::Coding* call) {
#pragma omp parallel for schedule(static) num_threads(call->threads)
  for (int64_t row = 0; row < call->rows; row++) hw::decode(*call, row);
}
