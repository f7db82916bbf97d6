// Which keys a tile of queries sees, as a list of key blocks, and the masks of those that are seen in part.
// The forms are those of headwise.forms.where; the t queries are the last t of n tokens.
#pragma once

#include <algorithm>
#include <vector>

#include "simd.hpp"

namespace hw {

constexpr int64_t BLOCK = 16;  // keys of a packed block

enum Shape : int32_t { CAUSAL = 0, FULL = 1, WINDOW = 2, BLOCKS = 3, TOKENS = 4, VERTICAL_SLASH = 5 };

struct Form {
  int32_t shape;
  int64_t left, sinks;           // Window
  int64_t size;                  // Blocks: a multiple of BLOCK
  const int64_t* offsets;        // Blocks: [lanes, query blocks + 1]; Tokens, VerticalSlash: [lanes + 1]
  const int64_t* columns;        // key blocks, tokens or verticals, end to end
  const int64_t* slash_offsets;  // [lanes + 1]
  const int64_t* slashes;
};

// How a block is seen: by all rows; by position; up to a row's count of listed tokens; on diagonals.
enum Rule : int32_t { ALL, RANGE, LISTED, DIAGONAL };

struct Entry {
  int32_t block;
  Rule rule;
};

// What the t queries of one lane see of its n keys. Blocks 0.. are the keys in order; after them, in blocks of their
// own, come the tokens that the form lists one by one.
class Sight {
 public:
  int64_t t = 0, n = 0;
  int64_t ordered = 0;             // blocks of keys in order
  int64_t listed = 0;              // tokens listed one by one
  const int64_t* list = nullptr;   // the listed tokens, ascending

  void prepare(const Form& given, int64_t lane, int64_t queries, int64_t keys) {
    form = &given, head = lane, t = queries, n = keys;
    ordered = form->shape == TOKENS ? 0 : (n + BLOCK - 1) / BLOCK;
    const bool lists = form->shape == TOKENS || form->shape == VERTICAL_SLASH;
    list = lists ? form->columns + form->offsets[lane] : nullptr;
    listed = lists ? form->offsets[lane + 1] - form->offsets[lane] : 0;
    if (form->shape == WINDOW || form->shape == BLOCKS || form->shape == VERTICAL_SLASH) seen.assign(ordered * BLOCK, 0);
    if (form->shape == WINDOW) see_window();
    if (form->shape == BLOCKS) see_blocks();
    if (form->shape == VERTICAL_SLASH) see_diagonals();
  }

  int64_t blocks() const { return ordered + (listed + BLOCK - 1) / BLOCK; }

  // Token at place i of a block, or -1 where no query sees it: its key and value may be anything.
  int64_t token(int64_t block, int64_t i) const {
    if (block >= ordered) {
      const int64_t at = (block - ordered) * BLOCK + i;
      return at < listed ? list[at] : -1;
    }
    const int64_t at = block * BLOCK + i;
    return at < n && (seen.empty() || seen[at]) ? at : -1;
  }

  // The blocks that queries q0 .. q1 - 1 see, into `out`; returns their number.
  int64_t entries(int64_t q0, int64_t q1, Entry* out) const {
    const int64_t first = n - t + q0, last = n - t + q1 - 1;  // positions
    Entry* end = out;
    if (form->shape == FULL) end = range(0, n, n, end);
    if (form->shape == CAUSAL) end = range(0, last + 1, first + 1, end);
    if (form->shape == WINDOW) end = window(first, last, end);
    if (form->shape == BLOCKS) {
      const int64_t* edge = form->offsets + head * ((t + form->size - 1) / form->size + 1) + q0 / form->size;
      for (int64_t c = edge[0]; c < edge[1]; c++) {
        const int64_t low = form->columns[c] * form->size;
        end = range(low, std::min(low + form->size, last + 1), first + 1, end);
      }
    }
    if (form->shape == VERTICAL_SLASH) end = diagonals(first, last, end);
    if (list) {
      const int64_t all = upto(first), any = upto(last);
      for (int64_t at = 0; at < any; at += BLOCK)
        *end++ = {(int32_t)(ordered + at / BLOCK), at + BLOCK <= all ? ALL : LISTED};
    }
    return end - out;
  }

  // Hides from the scores of one query (position p) on a block what it does not see.
  void mask(Entry entry, int64_t p, float* scores) const {
    const int64_t low = (entry.rule == LISTED ? entry.block - ordered : entry.block) * BLOCK;
    if (entry.rule == DIAGONAL) {
      const uint8_t* on = diagonal.data() + n - 1 - p + low;
      for (int64_t i = 0; i < BLOCK; i += W) {
        const vi shown = __builtin_convertvector(load<vb>(on + i) & load<vb>(open.data() + low + i), vi);
        store(scores + i, shown != 0 ? load<vf>(scores + i) : splat(LOW));
      }
      return;
    }
    const int64_t high = entry.rule == LISTED ? upto(p) : form->shape == FULL ? n : p + 1;
    const bool window = form->shape == WINDOW;
    // places in the block, where only 0 to BLOCK matter
    const auto place = [low](int64_t position) { return (int32_t)std::clamp<int64_t>(position - low, 0, BLOCK); };
    const int32_t ends = place(high), begins = window ? place(p - form->left) : 0, sinks = window ? place(form->sinks) : 0;
    for (int64_t i = 0; i < BLOCK; i += W) {
      vi at;
      for (int j = 0; j < W; j++) at[j] = (int32_t)i + j;
      const vi shown = (at < ends) & ((at >= begins) | (at < sinks));
      store(scores + i, shown ? load<vf>(scores + i) : splat(LOW));
    }
  }

 private:
  const Form* form = nullptr;
  int64_t head = 0;
  std::vector<uint8_t> seen;      // keys that any query sees, where not all are
  std::vector<uint8_t> diagonal;  // at n - 1 - s: whether distance s is chosen; zeros after, for the keys to come
  std::vector<uint8_t> open;      // keys that are not listed as well

  // How many listed tokens a query at position p sees.
  int64_t upto(int64_t p) const { return std::upper_bound(list, list + listed, p) - list; }

  // Blocks of keys low .. high - 1, all of them seen below `all`.
  static Entry* range(int64_t low, int64_t high, int64_t all, Entry* end) {
    for (; low < high; low += BLOCK) *end++ = {(int32_t)(low / BLOCK), low + BLOCK <= all ? ALL : RANGE};
    return end;
  }

  Entry* window(int64_t first, int64_t last, Entry* end) const {
    const int64_t from = std::max<int64_t>(0, first - form->left) / BLOCK;
    const int64_t sinks = std::min((std::min(form->sinks, last + 1) + BLOCK - 1) / BLOCK, from);
    for (int64_t b = 0; b <= last / BLOCK; b = b + 1 == sinks ? from : b + 1) {
      if (b < from && b >= sinks) b = from;
      const int64_t low = b * BLOCK, high = low + BLOCK;
      const bool all = high <= first + 1 && (low >= last - form->left || high <= form->sinks);
      *end++ = {(int32_t)b, all ? ALL : RANGE};
    }
    return end;
  }

  Entry* diagonals(int64_t first, int64_t last, Entry* end) const {
    int64_t next = 0;
    for (int64_t i = form->slash_offsets[head + 1] - 1; i >= form->slash_offsets[head]; i--) {
      const int64_t s = form->slashes[i];
      if (s > last) continue;
      next = std::max(next, std::max<int64_t>(0, first - s) / BLOCK);
      for (; next <= (last - s) / BLOCK; next++) *end++ = {(int32_t)next, DIAGONAL};
    }
    return end;
  }

  void see_window() {
    std::fill_n(seen.begin(), std::min(form->sinks, n), 1);
    std::fill(seen.begin() + std::max<int64_t>(0, n - t - form->left), seen.begin() + n, 1);
  }

  void see_blocks() {
    const int64_t size = form->size, count = (t + size - 1) / size;
    std::vector<int64_t> reach((n + size - 1) / size, 0);
    for (int64_t b = 0; b < count; b++) {
      const int64_t* edge = form->offsets + head * (count + 1) + b;
      for (int64_t c = edge[0]; c < edge[1]; c++) reach[form->columns[c]] = n - t + std::min(t, (b + 1) * size);
    }
    for (int64_t c = 0; c < (int64_t)reach.size(); c++)
      for (int64_t i = c * size; i < std::min({reach[c], (c + 1) * size, n}); i++) seen[i] = 1;
  }

  void see_diagonals() {
    diagonal.assign(n + 256, 0);
    open.assign(ordered * BLOCK + BLOCK, 1);
    int64_t next = 0;
    for (int64_t i = form->slash_offsets[head + 1] - 1; i >= form->slash_offsets[head]; i--) {
      const int64_t s = form->slashes[i];
      diagonal[n - 1 - s] = 1;
      for (next = std::max(next, n - t - s); next <= n - 1 - s; next++) seen[next] = 1;
    }
    for (int64_t i = 0; i < listed; i++) open[list[i]] = 0;
  }
};

}  // namespace hw
