// The best entries of every row, in order: what headwise/choose.py asks for.
#include <algorithm>
#include <functional>
#include <vector>

#include "simd.hpp"

namespace hw {

// Of each row [entries] the protected ones and the best others, `count` together, between equals the later.
struct Choice {
  const float* scores;     // [rows, entries], rows at `score_row` floats
  const uint8_t* protect;  // [rows, entries] of 0 and 1, rows at `protect_row` bytes
  int64_t* count;          // [rows]: how many; the number of indices written, afterwards
  int64_t* out;            // [rows, entries * size], ascending
  int64_t score_row, protect_row;
  int64_t rows, entries;
  int64_t size, stored;  // an entry stands for `size` indices, of the `stored` that there are
  int32_t threads;
};

namespace {

struct Room {
  std::vector<float> free, maxima, rivals;  // scores of entries that are not protected; -inf elsewhere
  std::vector<int64_t> hopeful;
};

float ranked(std::vector<float>& values, int64_t rank) {
  std::nth_element(values.begin(), values.begin() + rank - 1, values.end(), std::greater<float>());
  return values[rank - 1];
}

// A score that at least `wanted` entries reach: so many columns of entries have a maximum that reaches it.
float line_below(int64_t wanted, Room& room) {
  const int64_t columns = 2 * wanted, deep = (int64_t)room.free.size() / columns;
  if (deep < 2) return LOW;
  room.maxima.assign(room.free.begin(), room.free.begin() + columns);
  float* highest = room.maxima.data();
  for (int64_t i = 1; i < deep; i++) {
    const float* line = room.free.data() + i * columns;
    for (int64_t c = 0; c < columns; c++) highest[c] = highest[c] > line[c] ? highest[c] : line[c];
  }
  return ranked(room.maxima, wanted);
}

// How many of a row are protected; -1 where a score is NaN.
int64_t protected_in(const float* scores, const uint8_t* protect, int64_t entries, Room& room) {
  room.free.resize(entries);
  float* free = room.free.data();
  int64_t sure = 0;
  int32_t broken = 0;
  for (int64_t i = 0; i < entries; i++) {
    broken |= scores[i] != scores[i];
    sure += protect[i];
    free[i] = protect[i] ? LOW : scores[i];
  }
  return broken ? -1 : sure;
}

// Writes the chosen ones among the hopeful, expanded; gives their number.
int64_t write(const Choice& call, const uint8_t* protect, float line, int64_t passed_over, const Room& room, int64_t* out) {
  int64_t written = 0;
  for (const int64_t i : room.hopeful) {
    const bool equal = room.free[i] == line && !protect[i];
    const bool better = room.free[i] > line || (equal && passed_over-- <= 0);
    if (!better && !protect[i]) continue;
    const int64_t end = std::min((i + 1) * call.size, call.stored);
    for (int64_t at = i * call.size; at < end; at++) out[written++] = at;
  }
  return written;
}

// False for a NaN among the scores.
bool choose(const Choice& call, int64_t row, Room& room) {
  const uint8_t* protect = call.protect + row * call.protect_row;
  const int64_t sure = protected_in(call.scores + row * call.score_row, protect, call.entries, room);
  if (sure < 0) return false;
  const int64_t wanted = std::clamp(call.count[row], sure, call.entries) - sure;
  const float below = wanted ? line_below(wanted, room) : -LOW;
  room.hopeful.resize(call.entries + 1);
  int64_t found = 0;
  for (int64_t i = 0; i < call.entries; i++) {
    room.hopeful[found] = i;
    found += (room.free[i] >= below) | protect[i];
  }
  room.hopeful.resize(found);
  room.rivals.clear();
  for (const int64_t i : room.hopeful)
    if (!protect[i]) room.rivals.push_back(room.free[i]);
  const float line = wanted ? ranked(room.rivals, wanted) : -LOW;
  // entries that equal the last one chosen and come before it
  const int64_t passed_over = std::count_if(room.rivals.begin(), room.rivals.end(), [&](float x) { return x >= line; }) - wanted;
  call.count[row] = write(call, protect, line, passed_over, room, call.out + row * call.entries * call.size);
  return true;
}

}  // namespace
}  // namespace hw

// The first row whose scores have a NaN, -1 where none has.
extern "C" int32_t headwise_topk(const hw::Choice* given) {
  using namespace hw;
  const Choice& call = *given;
  int64_t broken = call.rows;
#pragma omp parallel num_threads(call.threads) if (call.rows > 1)
  {
    Room room;
#pragma omp for schedule(dynamic, 1) reduction(min : broken)
    for (int64_t row = 0; row < call.rows; row++)
      if (!choose(call, row, room)) broken = std::min(broken, row);
  }
  return broken < call.rows ? (int32_t)broken : -1;
}
