#include "train/ranks.h"
#include "data/files.h"  // checksum

namespace llatte {
namespace {

// Of all weights, in the order of their listing.
uint64_t weights_checksum(Llama& model) {
  uint64_t sum = 0;
  model.params("", [&](const std::string&, Var& p) {
    const Tensor w = p.value.to(Device::cpu).contiguous();
    sum = checksum({static_cast<const std::byte*>(w.raw()), w.bytes()}, sum);
  });
  return sum;
}

}  // namespace

void share_weights(Llama& model, Comm& comm) {
  if (comm.size() == 1) return;
  model.params("", [&](const std::string&, Var& p) { comm.broadcast(p.value, 0); });
}

void check_same_weights(Llama& model, Comm& comm) {
  if (comm.size() == 1) return;
  const uint64_t sum = weights_checksum(model);
  // As two halves, which are whole numbers in f64.
  const auto all = of_all_ranks({double(sum >> 32), double(sum & 0xffffffffu)}, comm);
  for (size_t r = 1; r < all.size(); ++r)
    LLATTE_CHECK(
        all[r] == all[0], "the weights of rank ", r,
        " are no longer those of rank 0, though every step keeps "
        "them alike; its memory or its build is at fault: resume from the last checkpoint without it");
}

}  // namespace llatte
