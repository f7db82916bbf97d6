// A decoder layer's step for a few rows but for its attention: what leads to queries, keys and values, and what follows.
// Each thread normalises all rows for itself, which is less than meeting the others once more.
#include <omp.h>

#include "layer.hpp"

namespace hw {

namespace {

constexpr int TOGETHER = MOST;  // outputs of gate and up at a time

// x as the layer's first norm leaves it.
const uint8_t* normalised(const Enter& call, Bytes& held, Floats& line, Floats& weight) {
  if (!call.norm.weight) return call.x;
  uint8_t* out = room(held, call.rows * bytes_of((Kind)call.kind, call.hidden));
  for (int64_t r = 0; r < call.rows; r++) normal_row(call, r, out, line, weight);
  return out;
}

// The rows of attention's answer, heads side by side.
const uint8_t* side_by_side(const Leave& call, Bytes& held) {
  if (call.tokens == 1) return call.attended;
  uint8_t* out = room(held, call.rows * call.heads * bytes_of((Kind)call.kind, call.width));
  for (int64_t r = 0; r < call.rows; r++) lay_row(call, r, out);
  return out;
}

// What a thread knows of the stream between attention and the products after it: [rows, hidden] each.
struct Middle {
  Bytes stream, normed;
  Floats line, other;

  void fill(const Leave& call, const uint8_t* attended) {
    const int64_t all = call.rows * bytes_of((Kind)call.kind, call.hidden);
    room(stream, all), room(normed, all);
    for (int64_t r = 0; r < call.rows; r++) middle_row(call, r, attended, stream.data(), normed.data(), line, other);
  }
};

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
  const Parts parts = parts_of(call);
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
      for (int64_t r = 0; r < call.rows; r++) last_row(call, r, summed, middle.stream.data(), middle.line, middle.other);
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
