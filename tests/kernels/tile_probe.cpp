// One product of tiles, and every fault that a processor answers with an exception: for test_native_tiles.py.
#include "tiles.hpp"

using namespace hw::tiles;

// c [16, 16] += a [16, 16 pairs] times b [16 pairs, 16].
extern "C" void product(const uint16_t* a, const uint16_t* b, float* c) {
  const Ready ready;
  load<0>(c, 64);
  load<1>(a, 64);
  load<2>(b, 64);
  multiply<0, 1, 2>();
  store<0>(c, 64);
}

#if defined(HW_EMULATE_TILES)
// c [3, 5] += a [3, 2 pairs] times b [2 pairs, 5], rows of c 16 floats apart.
extern "C" void small_product(const uint16_t* a, const uint16_t* b, float* c) {
  configure({1, 0, {}, {20, 8, 20}, {3, 3, 2}});
  load<0>(c, 64);
  load<1>(a, 8);
  load<2>(b, 20);
  multiply<0, 1, 2>();
  store<0>(c, 64);
  release();
}

extern "C" void fault(int which) {
  uint8_t bytes[1024] = {};
  const auto multiply_as = [](Config config) { configure(config), multiply<0, 1, 2>(); };
  if (which == 0) load<0>(bytes, 64);
  if (which == 1) { const Ready ready; }
  if (which == 1) multiply<0, 1, 2>();
  if (which == 2) configure({2, 0, {}, {64}, {16}});
  if (which == 3) configure({1, 0, {1}, {64}, {16}});
  if (which == 4) configure({1, 0, {}, {64}, {17}});
  if (which == 5) configure({1, 0, {}, {68}, {16}});
  if (which == 6) configure({1, 0, {}, {64}, {}});
  if (which == 7) configure({1, 0, {}, {64}, {16}}), store<1>(bytes, 64);
  if (which == 8) configure({1, 0, {}, {62}, {16}}), zero<0>();
  if (which == 9) multiply_as({1, 0, {}, {64, 64, 64}, {8, 16, 16}});
  if (which == 10) multiply_as({1, 0, {}, {32, 64, 64}, {16, 16, 16}});
  if (which == 11) multiply_as({1, 0, {}, {64, 32, 64}, {16, 16, 16}});
  if (which == 12) configure(WHOLE), multiply<0, 0, 2>();
}
#endif
