// What queries read of tokens at several levels of precision, added: each level weighs exp(its log-sum-exp).
#include <cmath>
#include <vector>

#include "simd.hpp"

namespace hw {

struct Join {
  uint8_t* out;         // [rows, width] of `kind`: the first level's, where the sum goes
  const uint8_t* more;  // [levels - 1, rows, width]: the others'
  float* lse;           // [levels, rows]
  int64_t levels, rows, width;
  int32_t kind;
};

}  // namespace hw

extern "C" void headwise_join(const hw::Join* given) {
  using namespace hw;
  const Join& call = *given;
  const Kind kind = (Kind)call.kind;
  thread_local std::vector<float> sum, one;
  sum.resize(call.width), one.resize(call.width);
  for (int64_t r = 0; r < call.rows; r++) {
    float top = LOW, total = 0;
    for (int64_t l = 0; l < call.levels; l++) top = std::max(top, call.lse[l * call.rows + r]);
    if (top == LOW) continue;  // nothing was read, and the first level's is 0
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (int64_t l = 0; l < call.levels; l++) {
      const float weight = std::exp(call.lse[l * call.rows + r] - top);
      const uint8_t* own = l ? call.more + bytes_of(kind, (l - 1) * call.rows * call.width) : call.out;
      widen(kind, own + bytes_of(kind, r * call.width), call.width, one.data());
      for (int64_t c = 0; c < call.width; c++) sum[c] += weight * one[c];
      total += weight;
    }
    for (float& x : sum) x /= total;
    narrow(kind, sum.data(), call.width, call.out + bytes_of(kind, r * call.width));
    call.lse[r] = top + std::log(total);
  }
}
