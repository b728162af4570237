// Batches from token files. One background thread makes the batch after the one last asked for; between
// requests it sleeps. Its only shared state is Impl, and it touches that only while a request is open, when
// the caller waits for it before doing anything else.
#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>
#include "data/blend.h"
#include "data/token_file.h"

namespace llatte {
namespace {

// The seed of an epoch's shuffle. The first epoch's is the run's own, as in nanotron; the others are spread
// by splitmix64, so that epoch 1 of seed 42 is not epoch 0 of seed 43.
uint32_t epoch_seed(uint64_t seed, int64_t epoch) {
  if (epoch == 0 && seed >> 32 == 0) return static_cast<uint32_t>(seed);
  uint64_t z = seed + static_cast<uint64_t>(epoch + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return static_cast<uint32_t>((z ^ z >> 31) >> 32);
}

// A source's files as one row of samples.
struct Row {
  std::vector<TokenFile> files;
  std::vector<int64_t> ends;  // samples in files [0, i]
  int64_t size() const { return ends.back(); }
};

Row make_row(std::vector<TokenFile> files, int64_t seq, size_t source) {
  LLATTE_CHECK(!files.empty(), "loader: source ", source, " has no files");
  Row r;
  int64_t end = 0, longest = 0;
  for (const TokenFile& f : files) {
    r.ends.push_back(end += f.samples(seq));
    longest = std::max(longest, f.size());
  }
  LLATTE_CHECK(end > 0, files[0].path().string(), files.size() > 1 ? " and the files with it: " : ": ",
               longest, " tokens are fewer than the ", seq + 1,
               " of one sample; lower sequence_length or add text");
  r.files = std::move(files);
  return r;
}

std::vector<double> weights_of(const std::vector<Loader::Source>& sources) {
  std::vector<double> w;
  for (const auto& s : sources) w.push_back(s.weight);
  if (std::all_of(w.begin(), w.end(), [](double x) { return x == 0; })) return {};
  for (size_t i = 0; i < w.size(); ++i)
    LLATTE_CHECK(w[i] > 0 && w[i] <= std::numeric_limits<double>::max(), "loader: the weight of source ", i,
                 " (", sources[i].files.empty() ? "no files" : sources[i].files[0].path().string(), ") is ",
                 w[i], "; weights are positive, or all left out");
  return w;
}

}  // namespace

struct Loader::Impl {
  std::vector<Row> rows;
  Blend order;
  int64_t seq, total;
  uint64_t seed;
  std::vector<int32_t> sample;  // S + 1 tokens on their way into a batch
  struct Epoch {
    int64_t number = -1;
    std::vector<uint32_t> order;
  } epochs[2];  // a batch may lie across the border of two

  enum class State { idle, asked, ready };
  std::mutex mutex;
  std::condition_variable changed;
  State state = State::idle;
  bool stop = false;
  int64_t first = 0, B = 0;  // what is asked for, or ready
  Batch made;
  std::exception_ptr error;
  std::thread worker;  // last: it uses all of the above

  Impl(std::vector<Source> sources, int64_t s, uint64_t sd) : seq(s), total(0), seed(sd) {
    LLATTE_CHECK(seq > 0 && seq < int64_t(1) << 31, "loader: sequence_length is ", seq,
                 ", must be in [1, 2^31)");
    LLATTE_CHECK(!sources.empty(), "loader: there are no sources");
    const std::vector<double> weights = weights_of(sources);
    std::vector<int64_t> sizes;
    for (size_t i = 0; i < sources.size(); ++i) {
      rows.push_back(make_row(std::move(sources[i].files), seq, i));
      sizes.push_back(rows.back().size());
      total += sizes.back();
    }
    order = blend(sizes, weights);
    sample.resize(static_cast<size_t>(seq + 1));
    worker = std::thread([this] { work(); });
  }

  ~Impl() {
    {
      const std::lock_guard lock(mutex);
      stop = true;
    }
    changed.notify_all();
    worker.join();
  }

  const std::vector<uint32_t>& epoch_order(int64_t number) {
    Epoch& e = epochs[number % 2];
    if (e.number == number) return e.order;
    e.number = -1;
    random_state_shuffle(epoch_seed(seed, number), e.order, total);
    e.number = number;
    return e.order;
  }

  Place place(int64_t n) {
    const int64_t epoch = n / total;
    const uint32_t i = epoch_order(epoch)[static_cast<size_t>(n % total)];
    const int64_t source = order.source[i];
    // Blend::sample counts modulo the source's size already; adding what earlier epochs took continues it.
    return {source, (epoch * order.taken[source] + order.sample[i]) % rows[source].size()};
  }

  void read(Place p) {
    const Row& r = rows[p.source];
    const auto f = std::upper_bound(r.ends.begin(), r.ends.end(), p.sample) - r.ends.begin();
    const int64_t within = p.sample - (f == 0 ? 0 : r.ends[f - 1]);
    r.files[f].copy(within * (seq + 1), seq + 1, sample.data());
  }

  Batch make(int64_t from, int64_t count) {
    Batch b{Tensor::empty({count, seq}, DType::i32), Tensor::empty({count, seq}, DType::i32)};
    const size_t bytes = static_cast<size_t>(seq) * sizeof(int32_t);
    for (int64_t i = 0; i < count; ++i) {
      read(place(from + i));
      std::memcpy(b.tokens.data<int32_t>() + i * seq, sample.data(), bytes);
      std::memcpy(b.targets.data<int32_t>() + i * seq, sample.data() + 1, bytes);
    }
    return b;
  }

  void work() {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [&] { return stop || state == State::asked; });
      if (stop) return;
      const int64_t from = first, count = B;
      lock.unlock();  // `asked` keeps the caller out
      Batch b;
      std::exception_ptr failed;
      try {
        b = make(from, count);
      } catch (...) {
        failed = std::current_exception();
      }
      lock.lock();
      made = std::move(b);
      error = std::move(failed);
      state = State::ready;
      changed.notify_all();
    }
  }

  std::unique_lock<std::mutex> wait_for_worker() {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return state != State::asked; });
    return lock;
  }

  Batch batch(int64_t from, int64_t count, int64_t stride) {
    auto lock = wait_for_worker();
    const bool prepared = state == State::ready && first == from && B == count;
    const std::exception_ptr failed = std::exchange(error, nullptr);
    Batch b = std::exchange(made, {});
    state = State::idle;
    if (prepared && failed) std::rethrow_exception(failed);
    if (!prepared) b = make(from, count);
    first = from + (stride > 0 ? stride : count);
    B = count;
    state = State::asked;
    lock.unlock();
    changed.notify_all();
    return b;
  }
};

Loader::Loader(std::vector<Source> sources, int64_t seq, uint64_t seed)
    : impl_(std::make_unique<Impl>(std::move(sources), seq, seed)) {}
Loader::~Loader() = default;

int64_t Loader::samples_per_epoch() const { return impl_->total; }

Loader::Place Loader::place(int64_t n) const {
  LLATTE_CHECK(n >= 0, "loader: there is no sample ", n);
  const auto lock = impl_->wait_for_worker();
  return impl_->place(n);
}

Batch Loader::batch(int64_t first, int64_t B, int64_t stride) {
  constexpr int64_t kLimit = int64_t(1) << 61;  // so that the end of the next batch is no overflow
  LLATTE_CHECK(first >= 0 && B > 0 && B < int64_t(1) << 31 && first < kLimit, "loader: samples [", first,
               ", ", first, " + ", B, ") asked for");
  return impl_->batch(first, B, std::min(stride, kLimit));
}

}  // namespace llatte
