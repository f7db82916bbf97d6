// What of a decoder layer is done between the products of a prompt, all rows shared out over the threads. The products
// themselves are made elsewhere: of many rows a library's are as fast as the processor.
#include <omp.h>

#include "layer.hpp"

namespace hw {
namespace {

template <class Row>
void each_row(int64_t rows, int threads, Row row) {
#pragma omp parallel num_threads(threads)
  {
    thread_local Floats line, other;
#pragma omp for schedule(static) nowait
    for (int64_t r = 0; r < rows; r++) row(r, line, other);
  }
}

}  // namespace
}  // namespace hw

// x as the products to queries, keys and values are given it: normed [rows, hidden].
extern "C" void headwise_prompt_norm(const hw::Enter* call, uint8_t* normed) {
  hw::each_row(call->rows, call->threads,
               [&](int64_t r, hw::Floats& line, hw::Floats& other) { hw::normal_row(*call, r, normed, line, other); });
}

// products: of queries, keys and values, [rows, heads * width] each.
extern "C" void headwise_prompt_heads(const hw::Enter* call, const uint8_t* const* products) {
  const hw::Parts parts = hw::parts_of(*call);
  hw::each_row(call->rows, call->threads, [&](int64_t r, hw::Floats& line, hw::Floats& other) {
    for (int i = 0; i < 3; i++)
      hw::finish(*call, parts[i], r, products[i] + r * hw::bytes_of((hw::Kind)call->kind, parts[i].by->outer), line, other);
  });
}

// Attention's answer as its product is given it: laid [rows, heads * width].
extern "C" void headwise_prompt_lay(const hw::Leave* call, uint8_t* laid) {
  hw::each_row(call->rows, call->threads, [&](int64_t r, hw::Floats&, hw::Floats&) { hw::lay_row(*call, r, laid); });
}

// summed [rows, hidden]: attention's product. Into stream, which it may be, and normed, [rows, hidden] each.
extern "C" void headwise_prompt_middle(const hw::Leave* call, const uint8_t* summed, uint8_t* stream, uint8_t* normed) {
  hw::each_row(call->rows, call->threads, [&](int64_t r, hw::Floats& line, hw::Floats& other) {
    hw::middle_row(*call, r, summed, stream, normed, line, other);
  });
}

// activation(gate) * up into gate, [rows, inner] each.
extern "C" void headwise_prompt_gate(const hw::Leave* call, uint8_t* gate, const uint8_t* up) {
  using namespace hw;
  const Kind kind = (Kind)call->kind;
  const int64_t inner = call->gate.outer, row = bytes_of(kind, inner), whole = (inner + W - 1) / W * W;
  each_row(call->rows, call->threads, [&](int64_t r, Floats& line, Floats& other) {
    float *a = room(line, whole), *b = room(other, whole);
    widen(kind, gate + r * row, inner, a);
    widen(kind, up + r * row, inner, b);
    for (int64_t c = 0; c < whole; c += W) store(a + c, activated(call->activation, load<vf>(a + c)) * load<vf>(b + c));
    narrow(kind, a, inner, gate + r * row);
  });
}

// summed [rows, hidden]: the MLP's last product; with the stream to the layer's output.
extern "C" void headwise_prompt_last(const hw::Leave* call, const uint8_t* summed, const uint8_t* stream) {
  hw::each_row(call->rows, call->threads, [&](int64_t r, hw::Floats& line, hw::Floats& other) {
    hw::last_row(*call, r, summed, stream, line, other);
  });
}
