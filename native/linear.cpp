// Linear layers for a few rows: out = x W^T + bias, reading the weights once at the speed of memory.
#include <omp.h>

#include "rows.hpp"

namespace hw {

struct Linear {
  const uint8_t* x;       // [rows, inner], rows end to end
  uint8_t* out;           // [rows, outer]
  Matrix by;              // from inner
  int64_t rows, inner;
  int32_t kind;           // bfloat16 or float32, the same for all but packed weights
  int32_t threads;
};

}  // namespace hw

extern "C" void headwise_linear(const hw::Linear* given) {
  using namespace hw;
  const Linear& call = *given;
  const Kind kind = (Kind)call.kind;
  const Matrix& by = call.by;
  const auto take = [&](int64_t row, int64_t o, const float* sums, int count) {
    narrow(kind, sums, count, call.out + bytes_of(kind, row * by.outer + o));
  };
#pragma omp parallel num_threads(call.threads)
  {
    thread_local Forms forms;
    const Inputs in = inputs(call.x, call.rows, call.inner, kind, {&by}, forms);
    const int64_t unit = unit_of(in);
#pragma omp for schedule(static) nowait
    for (int64_t o = 0; o < by.outer; o += unit) multiply(in, by, o, std::min(unit, by.outer - o), take);
  }
}
