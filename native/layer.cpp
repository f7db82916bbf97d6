// A decoder layer's step for a few rows but for its attention: what leads to queries, keys and values, and what follows.
// Each thread normalises all rows for itself, which is less than meeting the others once more.
#include <omp.h>

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

namespace {

constexpr int TOGETHER = MOST;  // outputs of gate and up at a time

// x as the layer's first norm leaves it.
const uint8_t* normalised(const Enter& call, Bytes& held, Floats& line, Floats& weight) {
  if (!call.norm.weight) return call.x;
  const Kind kind = (Kind)call.kind;
  const int64_t row = bytes_of(kind, call.hidden);
  uint8_t* out = room(held, call.rows * row);
  for (int64_t r = 0; r < call.rows; r++) {
    widen(kind, call.x + r * row, call.hidden, room(line, call.hidden));
    normalise(call.norm, kind, line.data(), call.hidden, room(weight, call.hidden));
    narrow(kind, line.data(), call.hidden, out + r * row);
  }
  return out;
}

// The first `turned` channels of a head by a row's angles: channel c with the one half of them further.
void turn_head(const Enter& call, const float* cos, const float* sin, float* head) {
  const int64_t half = call.turned / 2;
  for (int64_t c = 0; c < half; c++) {
    const float a = head[c], b = head[c + half];
    head[c] = a * cos[c] - b * sin[c];
    head[c + half] = b * cos[c + half] + a * sin[c + half];
  }
}

// One row of what the products gave of q, k or v, `line [count]`: into its heads' places.
void place(const Enter& call, float* line, int64_t count, int64_t width, int64_t row, uint8_t* to) {
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

// One row of one part: normalised, turned, in place. from [count] of the products.
void finish(const Enter& call, const Part& part, int64_t row, const uint8_t* from, Floats& line, Floats& other) {
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

// The rows of attention's answer, heads side by side.
const uint8_t* side_by_side(const Leave& call, Bytes& held) {
  if (call.tokens == 1) return call.attended;
  const int64_t head = bytes_of((Kind)call.kind, call.width);
  uint8_t* out = room(held, call.rows * call.heads * head);
  for (int64_t r = 0; r < call.rows; r++)
    for (int64_t h = 0; h < call.heads; h++) {
      const int64_t from = (r / call.tokens * call.heads + h) * call.tokens + r % call.tokens;
      std::memcpy(out + (r * call.heads + h) * head, call.attended + from * head, head);
    }
  return out;
}

// line [hidden], what a row's products gave: x [hidden] with it added, after a norm if there is one.
void add(const Leave& call, const Norm& norm, const uint8_t* x, float* line, Floats& other) {
  float* own = room(other, call.hidden);
  if (norm.weight) normalise(norm, (Kind)call.kind, line, call.hidden, own);
  widen((Kind)call.kind, x, call.hidden, own);
  for (int64_t c = 0; c < call.hidden; c++) line[c] = own[c] + call.factor * line[c];
}

// What a thread knows of the stream between attention and the products after it: [rows, hidden] each.
struct Middle {
  Bytes stream, normed;
  Floats line, other;

  void fill(const Leave& call, const uint8_t* attended) {
    const Kind kind = (Kind)call.kind;
    const int64_t row = bytes_of(kind, call.hidden);
    room(stream, call.rows * row), room(normed, call.rows * row);
    for (int64_t r = 0; r < call.rows; r++) {
      widen(kind, attended + r * row, call.hidden, room(line, call.hidden));
      add(call, call.after_attention, call.x + r * row, line.data(), other);
      round_to(kind, line.data(), call.hidden);
      narrow(kind, line.data(), call.hidden, stream.data() + r * row);
      if (call.before_mlp.weight) normalise(call.before_mlp, kind, line.data(), call.hidden, room(other, call.hidden));
      narrow(kind, line.data(), call.hidden, normed.data() + r * row);
    }
  }
};

vf activated(int32_t activation, vf x) {
  if (activation == GELU_TANH) return 0.5f * x * (1.0f + tanh(0.79788456f * (x + 0.044715f * x * x * x)));
  const vf fallen = exp(x < 0.0f ? x : -x);
  return x * (x < 0.0f ? fallen : splat(1.0f)) / (1.0f + fallen);
}

// `count` outputs of gate and up from o on, for all rows: activation(gate) * up into out [rows, outer].
void gated(const Leave& call, const Inputs& in, int64_t o, int count, Floats& gates, Floats& ups, uint8_t* out) {
  float* gate = room(gates, in.rows * TOGETHER);
  float* up = room(ups, in.rows * TOGETHER);
  const auto into = [&](float* to) {
    return [=](int64_t row, int64_t at, const float* sums, int some) {
      std::memcpy(to + row * TOGETHER + (at - o), sums, some * 4);
    };
  };
  multiply(in, call.gate, o, count, into(gate));
  multiply(in, call.up, o, count, into(up));
  for (int64_t i = 0; i < in.rows * TOGETHER; i += W)
    store(gate + i, activated(call.activation, load<vf>(gate + i)) * load<vf>(up + i));
  for (int64_t r = 0; r < in.rows; r++)
    narrow(in.kind, gate + r * TOGETHER, count, out + bytes_of(in.kind, r * call.gate.outer + o));
}

}  // namespace
}  // namespace hw

extern "C" void headwise_enter(const hw::Enter* given) {
  using namespace hw;
  const Enter& call = *given;
  const Kind kind = (Kind)call.kind;
  const Part parts[3] = {{&call.to_q, &call.q_norm, call.q_normed, call.width, true, call.q},
                         {&call.to_k, &call.k_norm, call.k_normed, call.width, true, call.k},
                         {&call.to_v, nullptr, 0, call.value_width, false, call.v}};
  thread_local Bytes products;
  const int64_t outer = call.to_q.outer + call.to_k.outer + call.to_v.outer;
  uint8_t* begins[3] = {room(products, bytes_of(kind, call.rows * outer))};
  for (int i = 1; i < 3; i++) begins[i] = begins[i - 1] + bytes_of(kind, call.rows * parts[i - 1].by->outer);
#pragma omp parallel num_threads(call.threads)
  {
    thread_local Bytes normed;
    thread_local Floats line, other;
    thread_local Forms forms;
    const Inputs in = inputs(normalised(call, normed, line, other), call.rows, call.hidden, kind,
                             {&call.to_q, &call.to_k, &call.to_v}, forms);
    const int64_t unit = unit_of(in);
    int64_t ends[3];  // in units, of one part after the other
    for (int i = 0; i < 3; i++) ends[i] = (i ? ends[i - 1] : 0) + (parts[i].by->outer + unit - 1) / unit;
#pragma omp for schedule(static)
    for (int64_t u = 0; u < ends[2]; u++) {
      const int i = (u >= ends[0]) + (u >= ends[1]);
      const Matrix& by = *parts[i].by;
      const int64_t o = (u - (i ? ends[i - 1] : 0)) * unit;
      multiply(in, by, o, std::min(unit, by.outer - o), [&](int64_t r, int64_t at, const float* sums, int count) {
        narrow(kind, sums, count, begins[i] + bytes_of(kind, r * by.outer + at));
      });
    }
#pragma omp for schedule(static) nowait
    for (int64_t task = 0; task < 3 * call.rows; task++) {
      const Part& part = parts[task % 3];
      const int64_t row = task / 3;
      finish(call, part, row, begins[task % 3] + bytes_of(kind, row * part.by->outer), line, other);
    }
  }
}

extern "C" void headwise_leave(const hw::Leave* given) {
  using namespace hw;
  const Leave& call = *given;
  const Kind kind = (Kind)call.kind;
  const int64_t row = bytes_of(kind, call.hidden), inner = call.gate.outer;
  thread_local Bytes shared_stream, shared_gated;
  uint8_t* summed = room(shared_stream, call.rows * row);
  uint8_t* between = room(shared_gated, call.rows * bytes_of(kind, inner));
  const auto sums_to = [&](int64_t r, int64_t o, const float* sums, int count) {
    narrow(kind, sums, count, summed + r * row + bytes_of(kind, o));
  };
#pragma omp parallel num_threads(call.threads)
  {
    thread_local Bytes heads;
    thread_local Floats gates, ups;
    thread_local Middle middle;
    thread_local Forms forms;
    const Inputs attended = inputs(side_by_side(call, heads), call.rows, call.heads * call.width, kind, {&call.o}, forms);
    const int64_t unit = unit_of(attended);
#pragma omp for schedule(static)
    for (int64_t o = 0; o < call.hidden; o += unit) multiply(attended, call.o, o, std::min(unit, call.hidden - o), sums_to);
    middle.fill(call, summed);
    const Inputs to_mlp = inputs(middle.normed.data(), call.rows, call.hidden, kind, {&call.gate, &call.up}, forms);
#pragma omp for schedule(static)
    for (int64_t o = 0; o < inner; o += TOGETHER)
      gated(call, to_mlp, o, (int)std::min<int64_t>(TOGETHER, inner - o), gates, ups, between);
    const Inputs to_down = inputs(between, call.rows, inner, kind, {&call.down}, forms);
    if (call.after_mlp.weight) {
#pragma omp for schedule(static)
      for (int64_t o = 0; o < call.hidden; o += unit)
        multiply(to_down, call.down, o, std::min(unit, call.hidden - o), sums_to);
#pragma omp for schedule(static) nowait
      for (int64_t r = 0; r < call.rows; r++) {
        widen(kind, summed + r * row, call.hidden, room(middle.line, call.hidden));
        add(call, call.after_mlp, middle.stream.data() + r * row, middle.line.data(), middle.other);
        narrow(kind, middle.line.data(), call.hidden, call.out + r * row);
      }
    } else {
#pragma omp for schedule(static) nowait
      for (int64_t o = 0; o < call.hidden; o += unit)
        multiply(to_down, call.down, o, std::min(unit, call.hidden - o),
                 [&](int64_t r, int64_t at, const float* sums, int count) {
                   float line[MOST], own[MOST];
                   std::copy(sums, sums + count, line);
                   round_to(kind, line, count);
                   widen(kind, middle.stream.data() + r * row + bytes_of(kind, at), count, own);
                   for (int i = 0; i < count; i++) own[i] += call.factor * line[i];
                   narrow(kind, own, count, call.out + r * row + bytes_of(kind, at));
                 });
    }
  }
}
