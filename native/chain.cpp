// Decoder layers one after the other, attention included: of a few rows, what each gives is what the next one takes.
#include <cstdint>

namespace hw {

struct Enter;
struct Append;
struct Calls;
struct Join;
struct Leave;

struct Layer {
  const Enter* enter;           // to queries, keys and values
  const Append* const* writes;  // of these, to every pool that stores the layer's heads
  int64_t write_count;
  const Calls* reads;           // of what is stored then, a set a session
  int64_t read_count;
  const Join* const* joins;     // of what was read at several levels
  int64_t join_count;
  const Leave* leave;
};

}  // namespace hw

extern "C" {
void headwise_enter(const hw::Enter*);
void headwise_append(const hw::Append*);
void headwise_decode(const hw::Calls*, int64_t);
void headwise_join(const hw::Join*);
void headwise_leave(const hw::Leave*);

void headwise_chain(const hw::Layer* layers, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    const hw::Layer& layer = layers[i];
    headwise_enter(layer.enter);
    for (int64_t w = 0; w < layer.write_count; w++) headwise_append(layer.writes[w]);
    headwise_decode(layer.reads, layer.read_count);
    for (int64_t j = 0; j < layer.join_count; j++) headwise_join(layer.joins[j]);
    headwise_leave(layer.leave);
  }
}
}
