#include "train/ranks.h"
#include <algorithm>
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

std::vector<std::vector<double>> of_all_ranks(const std::vector<double>& mine, Comm& comm) {
  if (comm.size() == 1) return {mine};
  const auto n = static_cast<int64_t>(mine.size());
  Tensor all = Tensor::empty({comm.size() * n}, DType::f64);
  comm.all_gather(Tensor::from(mine, {n}), all);
  std::vector<std::vector<double>> out;
  for (int64_t r = 0; r < comm.size(); ++r)
    out.push_back(all.slice(0, r * n, (r + 1) * n).to_vector<double>());
  return out;
}

bool any_rank(bool mine, Comm& comm) {
  const auto all = of_all_ranks({mine ? 1.0 : 0.0}, comm);
  return std::any_of(all.begin(), all.end(), [](const auto& of_rank) { return of_rank[0] != 0; });
}

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
