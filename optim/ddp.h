// Data parallelism: the gradients of all ranks, added up bucket by bucket while backward still runs.
//   1. Parameters are laid out flat in the reverse of their listing, which is about the order in which
//      backward finishes them, and cut into buckets. A bucket goes off when all its gradients are there, in
//      the order of the buckets: the same order on every rank.
//   2. A bucket is padded to `ranks` equal parts. zero_stage 0: every rank gets the sum of all of it.
//      zero_stage 1 (ZeRO-1, arXiv 1910.02054): rank r gets the sum of part r alone, updates the weights of
//      that part, and the parts of all ranks are put together by share().
//   3. Only the last backward of a step sends; those before it add to the same gradients.
// What is summed is what ranks have: who wants a mean gives backward a share of the loss.
#pragma once
#include <vector>
#include "autograd/var.h"
#include "tensor/comm.h"

namespace llatte {

// Elements [begin, end) of a parameter, in its flat order.
struct Segment {
  size_t param;
  int64_t begin, end;
};

class GradientBuckets {
 public:
  // params: those that are trained, in their listing's order. cap_bytes: of gradients in a bucket; a larger
  // parameter has one to itself. sharded: zero_stage 1.
  GradientBuckets(std::vector<Var> params, Comm& comm, int64_t cap_bytes, bool sharded);
  ~GradientBuckets();
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  void expect();  // the next backward is the last of the step: buckets go off as they fill
  void wait();    // until all sums are there; a parameter that no backward has reached adds zeros

  // What rank() keeps if it is sharded, in the order of the buckets.
  const std::vector<Segment>& own() const { return segments_[static_cast<size_t>(comm_.rank())]; }
  // After wait(), flat, of own() or (not sharded) any segment; undefined if no backward has reached the
  // parameter.
  Tensor gradient(const Segment& s) const;
  Tensor value(const Segment& s) const;  // flat view of the parameter
  // f64 [1]: of the whole gradient, added up rank by rank, whether they keep it or not.
  Tensor sum_squares() const;
  void share();  // sharded: what each rank has made of its weights, in the parameters of all
  // A tensor as large as a parameter, of which each rank has the pieces for its own(). All ranks call it
  // alike.
  Tensor gathered(const std::vector<Tensor>& pieces, size_t param) const;

 private:
  struct Place {  // of a parameter
    size_t bucket;
    int64_t begin;
  };
  struct Bucket {
    std::vector<size_t> params;
    int64_t size = 0;  // padded
    size_t missing = 0;
    Tensor flat, part;  // gradients; where sharded, this rank's part of their sum
    std::future<void> sum;
  };

  void lay_out(int64_t cap_bytes);
  std::vector<Segment> segments_of(int rank) const;
  void take(size_t param);
  void send_full();
  Tensor flat_gradient(size_t param) const;
  Tensor in_bucket(const Tensor& flat, const Segment& s) const;

  const std::vector<Var> params_;
  Comm& comm_;
  const bool sharded_;
  std::vector<Place> places_;
  std::vector<Bucket> buckets_;
  std::vector<std::vector<Segment>> segments_;  // by rank
  std::vector<bool> taken_;
  size_t next_ = 0;  // the first bucket that has not gone off
  bool expecting_ = false;
};

}  // namespace llatte
