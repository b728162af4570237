// Costs are 1 and 2 alone, so the best choice is found exactly: of every cost the items of largest gain, and
// how many of either is tried out.
#include "convert/allocate.h"
#include <algorithm>
#include <cmath>
#include <string>
#include "tensor/check.h"

namespace llatte {
namespace {

struct Item {
  double gain;
  size_t list;
  bool needed;
};

// Those of one cost in the order in which they are taken, and what the first n of them gain together.
struct Order {
  std::vector<Item> items;
  std::vector<double> sums{0};
  int64_t needed = 0;
  int64_t size() const { return static_cast<int64_t>(items.size()); }
};

Order order_of(const std::vector<Spectrum>& spectra, int64_t cost) {
  Order o;
  for (size_t s = 0; s < spectra.size(); ++s)
    for (size_t n = 0; n < spectra[s].gains.size(); ++n)
      if (spectra[s].cost == cost)
        o.items.push_back({spectra[s].gains[n], s, static_cast<int64_t>(n) < spectra[s].needed});
  std::stable_sort(o.items.begin(), o.items.end(), [](const Item& a, const Item& b) {
    return a.needed != b.needed ? a.needed : a.gain > b.gain;
  });
  for (const Item& i : o.items) o.sums.push_back(o.sums.back() + i.gain), o.needed += i.needed;
  return o;
}

void check(const std::vector<Spectrum>& spectra) {
  for (const Spectrum& s : spectra) {
    LLATTE_CHECK(s.cost == 1 || s.cost == 2, "allocate: an item costs ", s.cost, ", expected 1 or 2");
    for (size_t n = 0; n < s.gains.size(); ++n)
      LLATTE_CHECK(std::isfinite(s.gains[n]) && (n == 0 || s.gains[n] <= s.gains[n - 1]), "allocate: gain ",
                   s.gains[n], " at place ", n, " is not finite or larger than the one before");
  }
}

}  // namespace

std::vector<int64_t> allocate(const std::vector<Spectrum>& spectra, int64_t budget) {
  check(spectra);
  const Order one = order_of(spectra, 1), two = order_of(spectra, 2);
  const int64_t least = one.needed + 2 * two.needed;
  LLATTE_CHECK(least <= budget, "allocate: ", budget, " values to cache, but at least ", least,
               " are needed; raise HLA.cache");
  double best = -HUGE_VAL;
  int64_t ones = 0, twos = 0;
  for (int64_t n = two.needed; n <= two.size() && 2 * n + one.needed <= budget; ++n) {
    const int64_t m = std::min(one.size(), budget - 2 * n);
    const double gain = two.sums[static_cast<size_t>(n)] + one.sums[static_cast<size_t>(m)];
    if (gain >= best) best = gain, twos = n, ones = m;
  }
  std::vector<int64_t> taken(spectra.size(), 0);
  for (int64_t i = 0; i < ones; ++i) ++taken[one.items[static_cast<size_t>(i)].list];
  for (int64_t i = 0; i < twos; ++i) ++taken[two.items[static_cast<size_t>(i)].list];
  return taken;
}

}  // namespace llatte
