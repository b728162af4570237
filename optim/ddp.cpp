#include "optim/ddp.h"
#include <algorithm>
#include "tensor/kernels.h"  // sum_squares, sum_rows

namespace llatte {
namespace {

int64_t padded(int64_t n, int64_t ranks) { return (n + ranks - 1) / ranks * ranks; }

}  // namespace

GradientBuckets::GradientBuckets(std::vector<Var> params, Comm& comm, int64_t cap_bytes, bool sharded)
    : params_(std::move(params)), comm_(comm), sharded_(sharded), places_(params_.size()) {
  lay_out(cap_bytes);
  for (int r = 0; r < comm_.size(); ++r) segments_.push_back(segments_of(r));
  for (size_t p = 0; p < params_.size(); ++p) params_[p].node->on_grad = [this, p] { take(p); };
}

// A sum under way goes on with what it holds: waiting here could be for a rank that is gone.
GradientBuckets::~GradientBuckets() {
  for (const Var& p : params_) p.node->on_grad = nullptr;
}

// ---- the layout
void GradientBuckets::lay_out(int64_t cap_bytes) {
  int64_t room = 0;
  for (size_t i = params_.size(); i-- > 0;) {
    const Var& p = params_[i];
    const int64_t n = p.value.numel(), width = static_cast<int64_t>(size_of(acc_dtype(p.value.dtype())));
    const bool fits =
        n * width <= room && p.value.dtype() == params_[buckets_.back().params.front()].value.dtype();
    if (!fits) buckets_.emplace_back(), room = cap_bytes;
    Bucket& b = buckets_.back();
    places_[i] = {buckets_.size() - 1, b.size};
    b.params.push_back(i);
    b.size += n, room -= n * width;
  }
  for (Bucket& b : buckets_) {
    const Tensor& w = params_[b.params.front()].value;
    b.size = padded(b.size, comm_.size());
    b.flat = Tensor::zeros({b.size}, acc_dtype(w.dtype()), w.device());
    if (sharded_) b.part = Tensor::zeros({b.size / comm_.size()}, b.flat.dtype(), w.device());
  }
}

// Where not sharded, segments are what a rank would keep all the same: sum_squares() adds by them.
std::vector<Segment> GradientBuckets::segments_of(int rank) const {
  std::vector<Segment> out;
  for (const Bucket& b : buckets_) {
    const int64_t part = b.size / comm_.size(), first = rank * part, last = first + part;
    for (const size_t p : b.params) {
      const int64_t at = places_[p].begin, n = params_[p].value.numel();
      const int64_t begin = std::max(first - at, int64_t{0}), end = std::min(last - at, n);
      if (begin < end) out.push_back({p, begin, end});
    }
  }
  return out;
}

// ---- a step
void GradientBuckets::expect() {
  taken_.assign(params_.size(), false);
  for (Bucket& b : buckets_) b.missing = b.params.size();
  next_ = 0, expecting_ = true;
}

// A gradient is whole: into its bucket, and off with that if it was the last.
void GradientBuckets::take(size_t param) {
  if (!expecting_) return;
  LLATTE_CHECK(!taken_[param], "ddp: a parameter of ", params_[param].shape(),
               " is used in several recomputed blocks, so it is not known when its gradient is whole");
  Tensor& grad = params_[param].node->grad;
  Tensor here = flat_gradient(param);
  here.copy_from(grad.contiguous().reshape({-1}));
  grad = here.reshape(params_[param].shape());
  taken_[param] = true;
  --buckets_[places_[param].bucket].missing;
  send_full();
}

void GradientBuckets::send_full() {
  for (; next_ < buckets_.size() && buckets_[next_].missing == 0; ++next_) {
    Bucket& b = buckets_[next_];
    b.sum = sharded_ ? comm_.start_reduce_scatter_sum(b.flat, b.part) : comm_.start_all_reduce_sum(b.flat);
  }
}

void GradientBuckets::wait() {
  LLATTE_CHECK(expecting_, "ddp: wait() without expect()");
  for (size_t p = 0; p < params_.size(); ++p) {
    if (taken_[p]) continue;
    if (params_[p].node->grad.defined()) take(p);  // from an earlier micro-batch
    else flat_gradient(p).zero(), --buckets_[places_[p].bucket].missing;
  }
  send_full();
  for (Bucket& b : buckets_) b.sum.get();
  expecting_ = false;
}

Tensor GradientBuckets::flat_gradient(size_t param) const {
  const Place& at = places_[param];
  return buckets_[at.bucket].flat.slice(0, at.begin, at.begin + params_[param].value.numel());
}

Tensor GradientBuckets::gradient(const Segment& s) const {
  if (!taken_[s.param]) return {};
  if (!sharded_) return flat_gradient(s.param).slice(0, s.begin, s.end);
  const Place& at = places_[s.param];
  const Bucket& b = buckets_[at.bucket];
  const int64_t first = comm_.rank() * b.part.numel();
  return b.part.slice(0, at.begin + s.begin - first, at.begin + s.end - first);
}

Tensor GradientBuckets::value(const Segment& s) const {
  return params_[s.param].value.reshape({-1}).slice(0, s.begin, s.end);
}

Tensor GradientBuckets::sum_squares() const {
  const Device d = params_.front().value.device();
  const int64_t R = comm_.size();
  Tensor each_R = Tensor::zeros({R}, DType::f64, d), sum = Tensor::zeros({1}, DType::f64, d);
  for (int64_t r = 0; r < R; ++r) {
    if (sharded_ && r != comm_.rank()) continue;
    std::vector<Tensor> gradients;
    for (const Segment& s : segments_[static_cast<size_t>(r)])
      if (taken_[s.param]) gradients.push_back(gradient(s));
    Tensor here = each_R.slice(0, r, r + 1);
    if (!gradients.empty()) kernels::sum_squares(gradients, here);
  }
  if (sharded_) comm_.all_gather(each_R.slice(0, comm_.rank(), comm_.rank() + 1), each_R);
  kernels::sum_rows(each_R.reshape({R, 1}), sum);
  return sum;
}

// ---- what is sharded, whole again
void GradientBuckets::share() {
  if (!sharded_) return;
  std::vector<Tensor> weights;
  std::vector<std::future<void>> gathers;
  for (const Bucket& b : buckets_) {
    weights.push_back(Tensor::empty({b.size}, params_[b.params.front()].value.dtype(), b.flat.device()));
    const int64_t part = b.part.numel(), first = comm_.rank() * part;
    for (const Segment& s : own())
      if (&buckets_[places_[s.param].bucket] == &b) in_bucket(weights.back(), s).copy_from(value(s));
    gathers.push_back(comm_.start_all_gather(weights.back().slice(0, first, first + part), weights.back()));
  }
  for (size_t i = 0; i < buckets_.size(); ++i) {
    gathers[i].get();
    for (const size_t p : buckets_[i].params) {
      const Segment whole{p, 0, params_[p].value.numel()};
      value(whole).copy_from(in_bucket(weights[i], whole));
    }
  }
}

Tensor GradientBuckets::in_bucket(const Tensor& flat, const Segment& s) const {
  const int64_t at = places_[s.param].begin;
  return flat.slice(0, at + s.begin, at + s.end);
}

Tensor GradientBuckets::gathered(const std::vector<Tensor>& pieces, size_t param) const {
  const Tensor& like = pieces.front();
  Tensor whole = Tensor::empty({params_[param].value.numel()}, like.dtype(), like.device());
  for (int r = 0; r < comm_.size(); ++r)
    for (size_t i = 0; i < segments_[static_cast<size_t>(r)].size(); ++i) {
      const Segment& s = segments_[static_cast<size_t>(r)][i];
      if (s.param != param) continue;
      Tensor here = whole.slice(0, s.begin, s.end);
      if (r == comm_.rank()) here.copy_from(pieces[i]);
      comm_.broadcast(here, r);
    }
  return whole.reshape(params_[param].shape());
}

}  // namespace llatte
