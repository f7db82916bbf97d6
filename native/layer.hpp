// What of a decoder layer is done row by row, around its products: norms, rotations, residuals, the gate.
#pragma once

#include <array>

#include "norm.hpp"
#include "rows.hpp"

namespace hw {

enum Activation : int32_t { SILU = 0, GELU_TANH = 1 };

// Rows are tokens of a batch, [batch * tokens, hidden]; all numbers are of `kind`, those of cos and sin of `turn_kind`.
struct Enter {
  const uint8_t* x;           // [rows, hidden]
  const uint8_t *cos, *sin;   // [turns, turned], row r's is r % turns
  uint8_t *q, *k, *v;         // [batch, heads, tokens, width] each
  Matrix to_q, to_k, to_v;   // from hidden
  Norm norm, q_norm, k_norm;  // the last two of `q_normed` and `k_normed` channels each
  int64_t rows, tokens, hidden, width, value_width, turned, turns, q_normed, k_normed;
  int32_t kind, turn_kind, threads;
};

struct Leave {
  const uint8_t* attended;  // [batch, heads, tokens, width]
  const uint8_t* x;         // [rows, hidden], to which is added
  uint8_t* out;             // [rows, hidden]
  Matrix o, gate, up, down;
  Norm after_attention, before_mlp, after_mlp;
  int64_t rows, tokens, heads, width, hidden;
  float factor;             // of what is added
  int32_t activation, kind, threads;
};

// The first `turned` channels of a head by a row's angles: channel c with the one half of them further.
inline void turn_head(const Enter& call, const float* cos, const float* sin, float* head) {
  const int64_t half = call.turned / 2;
  for (int64_t c = 0; c < half; c++) {
    const float a = head[c], b = head[c + half];
    head[c] = a * cos[c] - b * sin[c];
    head[c + half] = b * cos[c + half] + a * sin[c + half];
  }
}

// One row of what the products gave of q, k or v, `line [count]`: into its heads' places.
inline void place(const Enter& call, float* line, int64_t count, int64_t width, int64_t row, uint8_t* to) {
  const Kind kind = (Kind)call.kind;
  const int64_t heads = count / width, batch = row / call.tokens, token = row % call.tokens;
  for (int64_t h = 0; h < heads; h++)
    narrow(kind, line + h * width, width, to + bytes_of(kind, ((batch * heads + h) * call.tokens + token) * width));
}

struct Part {
  const Matrix* by;
  const Norm* norm;  // or null
  int64_t normed, width;
  bool turns;
  uint8_t* to;
};

using Parts = std::array<Part, 3>;

inline Parts parts_of(const Enter& call) {
  return {{{&call.to_q, &call.q_norm, call.q_normed, call.width, true, call.q},
           {&call.to_k, &call.k_norm, call.k_normed, call.width, true, call.k},
           {&call.to_v, nullptr, 0, call.value_width, false, call.v}}};
}

// One row of one part: normalised, turned, in place. from [count] of the products.
inline void finish(const Enter& call, const Part& part, int64_t row, const uint8_t* from, Floats& line, Floats& other) {
  const Kind kind = (Kind)call.kind;
  const int64_t count = part.by->outer;
  widen(kind, from, count, room(line, count));
  if (part.norm && part.norm->weight)
    for (int64_t c = 0; c < count; c += part.normed)
      normalise(*part.norm, kind, line.data() + c, part.normed, room(other, part.normed));
  if (part.turns && call.turned) {
    float* angles = room(other, 2 * call.turned);
    const int64_t at = bytes_of((Kind)call.turn_kind, row % call.turns * call.turned);
    widen((Kind)call.turn_kind, call.cos + at, call.turned, angles);
    widen((Kind)call.turn_kind, call.sin + at, call.turned, angles + call.turned);
    for (int64_t c = 0; c < count; c += part.width) turn_head(call, angles, angles + call.turned, line.data() + c);
  }
  place(call, line.data(), count, part.width, row, part.to);
}

// line [hidden], what a row's products gave: x [hidden] with it added, after a norm if there is one.
inline void add(const Leave& call, const Norm& norm, const uint8_t* x, float* line, Floats& other) {
  float* own = room(other, call.hidden);
  if (norm.weight) normalise(norm, (Kind)call.kind, line, call.hidden, own);
  widen((Kind)call.kind, x, call.hidden, own);
  for (int64_t c = 0; c < call.hidden; c++) line[c] = own[c] + call.factor * line[c];
}

// Row `row` of x as the layer's first norm leaves it, into out [rows, hidden].
inline void normal_row(const Enter& call, int64_t row, uint8_t* out, Floats& line, Floats& weight) {
  const Kind kind = (Kind)call.kind;
  const int64_t at = row * bytes_of(kind, call.hidden);
  widen(kind, call.x + at, call.hidden, room(line, call.hidden));
  normalise(call.norm, kind, line.data(), call.hidden, room(weight, call.hidden));
  narrow(kind, line.data(), call.hidden, out + at);
}

// Row `row` of what attention's product gave, `summed [rows, hidden]`: into the stream, x with it added, and as the MLP
// is given it.
inline void middle_row(const Leave& call, int64_t row, const uint8_t* summed, uint8_t* stream, uint8_t* normed, Floats& line,
                       Floats& other) {
  const Kind kind = (Kind)call.kind;
  const int64_t at = row * bytes_of(kind, call.hidden);
  widen(kind, summed + at, call.hidden, room(line, call.hidden));
  add(call, call.after_attention, call.x + at, line.data(), other);
  round_to(kind, line.data(), call.hidden);
  narrow(kind, line.data(), call.hidden, stream + at);
  if (call.before_mlp.weight) normalise(call.before_mlp, kind, line.data(), call.hidden, room(other, call.hidden));
  narrow(kind, line.data(), call.hidden, normed + at);
}

// Row `row` of what the MLP's last product gave: the stream with it added, into the layer's output.
inline void last_row(const Leave& call, int64_t row, const uint8_t* summed, const uint8_t* stream, Floats& line, Floats& other) {
  const Kind kind = (Kind)call.kind;
  const int64_t at = row * bytes_of(kind, call.hidden);
  widen(kind, summed + at, call.hidden, room(line, call.hidden));
  add(call, call.after_mlp, stream + at, line.data(), other);
  narrow(kind, line.data(), call.hidden, call.out + at);
}

// A row of attention's answer, heads side by side, into out [rows, heads * width].
inline void lay_row(const Leave& call, int64_t row, uint8_t* out) {
  const int64_t head = bytes_of((Kind)call.kind, call.width);
  for (int64_t h = 0; h < call.heads; h++) {
    const int64_t from = (row / call.tokens * call.heads + h) * call.tokens + row % call.tokens;
    std::memcpy(out + (row * call.heads + h) * head, call.attended + from * head, head);
  }
}

inline vf activated(int32_t activation, vf x) {
  if (activation == GELU_TANH) return 0.5f * x * (1.0f + tanh(0.79788456f * (x + 0.044715f * x * x * x)));
  const vf fallen = exp(x < 0.0f ? x : -x);
  return x * (x < 0.0f ? fallen : splat(1.0f)) / (1.0f + fallen);
}

}  // namespace hw
