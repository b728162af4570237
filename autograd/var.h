// The tape. A Var is a value plus, if gradients are wanted, the Node that made it.
//
// Four rules carry the whole file:
//   1. backward functions are pure: they return gradients; only backward() ever adds.
//   2. A Node does not hold its value. An activation lives as long as some closure names it.
//   3. Nodes are numbered as they are made, so descending number is a valid backward order.
//   4. A gradient has its node's shape and dtype; a bf16 leaf's is kept in f32, so that micro-batches add up
//   exactly.
#pragma once
#include <functional>
#include <memory>
#include <vector>
#include "tensor/tensor.h"

namespace llatte {

// One gradient per input, in input order; an undefined Tensor means "no gradient". For a bf16 input a
// gradient may be bf16 or f32 (weights: products of bf16 summed in f32).
using Grads = std::vector<Tensor>;
using Backward = std::function<Grads(const Tensor& dy)>;  // dy has the dtype of the op's value

struct Node {
  ~Node();  // unlinks without recursion: a tape may be as long as it likes
  const char* op = "leaf";
  uint64_t seq = 0;
  Shape shape;
  DType dtype = DType::f32;
  Tensor grad;
  std::vector<std::shared_ptr<Node>> inputs;  // null where no gradient is needed
  Backward backward;
  // Of a leaf: called by backward() once all that the leaf takes part in has added its gradient, while the
  // rest of the tape is still to come. A leaf used in several recompute()d blocks would be called after each
  // of them.
  std::function<void()> on_grad;
};

struct Var {
  Tensor value;
  std::shared_ptr<Node> node;  // null: a constant
  const Shape& shape() const { return value.shape(); }
  int64_t size(int d) const { return value.size(d); }
  const Tensor& grad() const;  // throws if this Var wants no gradient
};

Var constant(Tensor value);
Var leaf(Tensor value);  // a parameter: wants a gradient, in acc_dtype(value.dtype())

// What every op calls last: `value` was computed from `inputs`. If gradients are on and some input wants one,
// the node keeps `backward` (and with it everything the closure captured) until the backward pass has used
// it.
Var record(const char* op, Tensor value, const std::vector<Var>& inputs, Backward backward);

// Adds d<y, dy>/d(leaf) to the grad of every leaf that y depends on, and frees the tape as it goes.
void backward(const Var& y, const Tensor& dy);
void backward(const Var& loss);  // a scalar: dy = 1

// While one lives, this thread records nothing.
class NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};
bool grad_enabled();

// y = f(x) without keeping anything but x: backward runs f again with the tape on. Same numbers bit for bit,
// less memory, one more forward. Gradients of parameters used inside f go straight to their leaves.
Var recompute(std::function<Var(const Var&)> f, const Var& x);

}  // namespace llatte
