// A few new tokens of every lane over what the lane holds: split along keys over all cores, joined by log-sum-exp.
#include <omp.h>

#include "readers.hpp"

namespace hw {

// Queries [lanes, groups, tokens, d] at byte strides, and what each of a lane's tokens sees.
struct Decode {
  Held held;
  const uint8_t* q;
  int64_t q_lane, q_group, q_token;
  const int64_t* place;         // of each lane, its number among the lanes of queries and results; null: its own
  int64_t groups, tokens;
  int64_t causal;               // token i of t sees up to entry n - t + i; else all n
  int64_t left, sinks;          // left >= 0: a window of so many entries before a token, and the first `sinks`
  const int64_t* chosen;        // entries that may be seen, ascending, lanes end to end
  const int64_t* chosen_first;  // [lanes + 1]; null: all may be seen, and `chosen` is not read
  uint8_t* out;                 // [lanes of queries, groups, tokens, e], of the queries' type
  float* lse;                   // [lanes of queries, groups, tokens]
  float scale, softcap;         // softcap 0: none
  int32_t q_kind, threads;

  int64_t at(int64_t lane) const { return place ? place[lane] : lane; }
};

// Calls whose work is cut as if there were no others, so that what they give does not depend on what is asked with them.
struct Calls {
  const Decode* first;
  int64_t count;
};

namespace {

// The entries that a lane's queries may see, before any masking by query.
struct Candidates {
  const Decode& call;
  int64_t lane, n, low, sinks, count;
  bool listed;
  const int64_t* chosen;

  Candidates(const Decode& call, int64_t lane) : call(call), lane(lane), n(call.held.length[lane]) {
    listed = call.chosen_first != nullptr;
    chosen = listed ? call.chosen + call.chosen_first[lane] : nullptr;
    low = call.left < 0 ? 0 : std::max<int64_t>(0, n - call.tokens - call.left);
    sinks = std::min(call.sinks, low);
    count = listed ? call.chosen_first[lane + 1] - call.chosen_first[lane] : sinks + n - low;
  }
  int64_t entry(int64_t i) const { return listed ? chosen[i] : i < sinks ? i : low + i - sinks; }

  // The slot of candidate i, and how many from it on, at most `most`, lie in slots that follow: chosen entries ascend, so
  // the last of a stretch tells of all.
  Held::Run run(int64_t i, int64_t most) const {
    const int64_t from = entry(i);
    if (!listed) return call.held.run(lane, from, i < sinks ? std::min(most, sinks - i) : most);
    Held::Run run = call.held.run(lane, from, most);
    for (int64_t step : {BLOCK, TILE, 4, 1}) {
      run.count = std::min<int64_t>(run.count, step);
      if (entry(i + run.count - 1) == from + run.count - 1) break;
    }
    return run;
  }
};

constexpr float LOG2E = 1.44269504f;  // scores are held in units of ln 2

struct Task {
  const Decode* call;
  int64_t lane, begin, end;  // candidates
};

struct Partial {
  std::vector<float> top;  // by row: highest score, in units of ln 2
  Lined<float> total;      // [row][W]: sums of 2^(score - top)
  Rows rows;
};

bool masks(const Decode& call) { return (call.causal && call.tokens > 1) || call.left >= 0; }

// -inf where a row may not see an entry, and after the block's end.
void mask(const Candidates& candidates, int64_t begin, int count, const Rows& rows, float* scores) {
  const Decode& call = candidates.call;
  const int64_t first_query = candidates.n - call.tokens;
  for (int r = 0; r < rows.padded; r++)
    for (int j = count; j < BLOCK; j++) scores[r * BLOCK + j] = LOW;
  if (!masks(call)) return;
  const int64_t last = candidates.entry(begin + count - 1), start = candidates.entry(begin);
  const bool tail = call.causal && last > first_query;
  const bool edge = call.left >= 0 && start < candidates.n - call.left;
  if (!tail && !edge) return;
  for (int r = 0; r < rows.count; r++) {
    const int64_t query = first_query + r % call.tokens;
    const int64_t high = call.causal ? query : candidates.n - 1;
    const int64_t low = call.left < 0 ? 0 : query - call.left;
    for (int j = 0; j < count; j++) {
      const int64_t entry = candidates.entry(begin + j);
      if (entry > high || (entry < low && entry >= call.sinks)) scores[r * BLOCK + j] = LOW;
    }
  }
}

// What a row has so far, scaled to a higher top.
void raise(Partial& part, int r, float top) {
  const float shrink = part.top[r] == LOW ? 0.0f : std::exp2(part.top[r] - top);
  store(&part.total[r * W], load<vf>(&part.total[r * W]) * shrink);
  float* sums = &part.rows.sums[r * part.rows.stride];
  for (int64_t c = 0; c < part.rows.stride; c += W) store(sums + c, load<vf>(sums + c) * shrink);
  part.top[r] = top;
}

// Scores [rows, BLOCK] become 2^(score - top); top and total follow, and the sums so far are scaled to the new top.
template <bool Short>
void soften(Partial& part, float* scores) {
  for (int r = 0; r < part.rows.padded; r++) {
    float* s = scores + r * BLOCK;
    vf high = load<vf>(s);
    for (int j = W; j < BLOCK; j += W) high = max(high, load<vf>(s + j));
    if (above(high, part.top[r])) raise(part, r, max(high));
    const float top = part.top[r] == LOW ? 0.0f : part.top[r];
    vf total = load<vf>(&part.total[r * W]);
    for (int j = 0; j < BLOCK; j += W) {
      const vf p = exp2<Short>(load<vf>(s + j) - top);
      store(s + j, p);
      total += p;
    }
    store(&part.total[r * W], total);
  }
}

void cap(float softcap, int padded, float* scores) {
  for (int i = 0; i < padded * BLOCK; i += W) store(scores + i, softcap * tanh(load<vf>(scores + i) / softcap));
}

// Groups of channels that have an offset in common.
int64_t shared_groups(const Side& values) { return values.minimum ? values.width / values.group : 0; }

Rows take_queries(const Decode& call, int64_t lane) {
  Rows rows((int)(call.groups * call.tokens), call.held.key.width, call.held.value.width, shared_groups(call.held.value));
  const Frame frame = call.held.key.frame(lane);
  for (int r = 0; r < rows.count; r++) {
    const int64_t g = r / call.tokens, t = r % call.tokens;
    float* wide = &rows.wide[r * rows.d];
    widen((Kind)call.q_kind, call.q + call.at(lane) * call.q_lane + g * call.q_group + t * call.q_token, rows.d, wide);
    if (frame.centre) rows.centre[r] = call.scale * LOG2E * meet(frame, wide, rows.d);
  }
  key_reader(call.held.key.kind, call.q_kind).prepare(rows, call.held.key, call.scale * LOG2E);
  return rows;
}

Partial attend(const Task& task, Scratch& scratch) {
  const Decode& call = *task.call;
  const Candidates candidates(call, task.lane);
  Rows rows = take_queries(call, task.lane);
  Partial part{std::vector<float>(rows.padded, LOW), Lined<float>(rows.padded * W, 0.0f), std::move(rows)};
  scratch.scores.resize(part.rows.padded * BLOCK);
  float* scores = scratch.scores.data();
  const KeyReader& keys = key_reader(call.held.key.kind, call.q_kind);
  const ValueReader& values = value_reader(call.held.value.kind, call.q_kind);
  Stream stream(call.held, task.lane, task.end - task.begin,
                [&](int64_t i, int64_t most) { return candidates.run(task.begin + i, most); });
  int64_t begin = task.begin;
  for (const Block* block; (block = stream.next()); begin += BLOCK) {
    keys.scores(call.held, *block, part.rows, scratch);
    if (call.softcap > 0) cap(call.softcap * LOG2E, part.rows.padded, scores);
    mask(candidates, begin, block->count, part.rows, scores);
    call.q_kind == F32 ? soften<false>(part, scores) : soften<true>(part, scores);
    values.weigh(call.held, *block, part.rows, scratch);
  }
  return part;
}

// Joins a lane's parts and writes its rows. channels: of each place of their sums.
void finish(const Decode& call, int64_t lane, Partial* parts, int64_t count, const std::vector<int>& channels) {
  const int64_t e = call.held.value.width, rows = call.groups * call.tokens, groups = shared_groups(call.held.value);
  const Frame frame = call.held.value.frame(lane);
  thread_local std::vector<float> line;
  line.resize(e);
  for (int64_t r = 0; r < rows; r++) {
    float top = LOW, total = 0;
    for (int64_t i = 0; i < count; i++) top = std::max(top, parts[i].top[r]);
    std::fill(line.begin(), line.end(), 0.0f);
    for (int64_t i = 0; i < count; i++) {
      if (parts[i].top[r] == LOW) continue;
      const float share = std::exp2(parts[i].top[r] - top);
      total += sum(load<vf>(&parts[i].total[r * W])) * share;
      const float* sums = &parts[i].rows.sums[r * parts[i].rows.stride];
      for (int64_t g = 0; g < groups; g++) {
        const float shared = sum(load<vf>(parts[i].rows.shared((int)r, g)));
        for (int64_t c = g * e / groups; c < (g + 1) * e / groups; c++) line[c] += shared * share;
      }
      for (int64_t p = 0; p < parts[i].rows.e_padded; p++)
        if (channels[p] < e) line[channels[p]] += sums[p] * share;
    }
    if (total > 0) {
      for (float& x : line) x /= total;
      if (frame.centre) leave(frame, line.data(), e);
    }
    narrow((Kind)call.q_kind, line.data(), e, call.out + (call.at(lane) * rows + r) * bytes_of((Kind)call.q_kind, e));
    call.lse[call.at(lane) * rows + r] = total > 0 ? (top + parts[0].rows.centre[r] + std::log2(total)) / LOG2E : LOW;
  }
}

// The channel of each place of the sums over these values.
void list_channels(const Decode& call, std::vector<int>& channels) {
  const ValueReader& values = value_reader(call.held.value.kind, call.q_kind);
  channels.resize((call.held.value.width + 31) / 32 * 32);
  for (size_t p = 0; p < channels.size(); p++) channels[p] = (int)values.channel((int64_t)p);
}

// The work of some calls in tasks of about equal size, those of a lane together, put after `tasks`.
void split(const Calls& own, std::vector<Task>& tasks) {
  int64_t all = 0;
  for (int64_t c = 0; c < own.count; c++)
    for (int64_t l = 0; l < own.first[c].held.lanes; l++) all += Candidates(own.first[c], l).count;
  const int64_t share = all / (4 * own.first[0].threads) + 1;
  const int64_t chunk = std::max<int64_t>(4 * BLOCK, (share + BLOCK - 1) / BLOCK * BLOCK);
  for (int64_t c = 0; c < own.count; c++)
    for (int64_t l = 0; l < own.first[c].held.lanes; l++) {
      const int64_t candidates = Candidates(own.first[c], l).count;
      for (int64_t begin = 0; begin < candidates; begin += chunk)
        tasks.push_back({&own.first[c], l, begin, std::min(candidates, begin + chunk)});
    }
}

}  // namespace
}  // namespace hw

// Several sets of calls of as many threads, the work of all shared out together: a set is of the groups of a layer of one
// session, say, and every set gives what it gives alone, bit for bit.
extern "C" void headwise_decode(const hw::Calls* sets, int64_t count) {
  using namespace hw;
  std::vector<Task> tasks;
  for (int64_t s = 0; s < count; s++) split(sets[s], tasks);
  std::vector<Partial> parts;
  parts.reserve(tasks.size());
  for (size_t i = 0; i < tasks.size(); i++) parts.push_back({{}, {}, Rows(0, 0, 0, 0)});
#pragma omp parallel num_threads(sets[0].first[0].threads) if (tasks.size() > 1)
  {
    thread_local Scratch scratch;
#pragma omp for schedule(dynamic, 1)
    for (size_t i = 0; i < tasks.size(); i++) parts[i] = attend(tasks[i], scratch);
  }
  size_t next = 0;
  thread_local std::vector<int> channels;
  for (int64_t s = 0; s < count; s++)
    for (int64_t c = 0; c < sets[s].count; c++) {
      const Decode& call = sets[s].first[c];
      list_channels(call, channels);
      for (int64_t l = 0; l < call.held.lanes; l++) {
        const size_t begin = next;
        while (next < tasks.size() && tasks[next].call == &call && tasks[next].lane == l) next++;
        finish(call, l, parts.data() + begin, (int64_t)(next - begin), channels);
      }
    }
}
