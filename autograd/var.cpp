#include "autograd/var.h"
#include <algorithm>
#include <atomic>
#include <unordered_map>
#include <unordered_set>
#include "tensor/kernels.h"  // accumulate

namespace llatte {
namespace {

thread_local bool recording = true;

struct Recording {  // sets the switch for one scope
  explicit Recording(bool on) : before(recording) { recording = on; }
  ~Recording() { recording = before; }
  const bool before;
};

uint64_t next_seq() {
  static std::atomic<uint64_t> n{0};
  return ++n;
}

std::shared_ptr<Node> make_node(const Tensor& value) {
  auto n = std::make_shared<Node>();
  n->seq = next_seq();
  n->shape = value.shape();
  n->dtype = value.dtype();
  return n;
}

// Gradients of leaves outlive the pass and grow over micro-batches: f32 at least. Those in between are as
// wide as the values they belong to.
DType grad_dtype(const Node& n) { return n.backward ? n.dtype : acc_dtype(n.dtype); }

void add_gradient(Node& n, Tensor g, const char* from) {
  LLATTE_CHECK(g.shape() == n.shape, "backward of ", from, " sent a gradient of shape ", g.shape(), " to a ",
               n.op, " of shape ", n.shape);
  LLATTE_CHECK(g.dtype() == n.dtype || g.dtype() == acc_dtype(n.dtype), "backward of ", from, " sent a ",
               name(g.dtype()), " gradient to a ", n.op, " of dtype ", name(n.dtype));
  g = g.contiguous().to(grad_dtype(n));
  if (!n.grad.defined()) {
    n.grad = std::move(g);
    return;
  }
  if (!n.grad.is_sole_owner()) n.grad = n.grad.clone();  // another input may hold the same numbers
  kernels::accumulate(g, n.grad);
}

// How often each leaf that listens is an input on the tape: after so many gradients it is complete.
std::unordered_map<Node*, int64_t> uses_of_listeners(const std::vector<std::shared_ptr<Node>>& tape) {
  std::unordered_map<Node*, int64_t> uses;
  for (const auto& n : tape)
    for (const auto& in : n->inputs)
      if (in && in->on_grad) ++uses[in.get()];
  return uses;
}

std::vector<std::shared_ptr<Node>> tape_of(const std::shared_ptr<Node>& root) {
  std::vector<std::shared_ptr<Node>> order{root};
  std::unordered_set<Node*> seen{root.get()};
  for (size_t i = 0; i < order.size(); ++i)  // breadth first, no recursion: depth is unbounded
    for (size_t k = 0; k < order[i]->inputs.size(); ++k)
      if (auto in = order[i]->inputs[k]; in && seen.insert(in.get()).second) order.push_back(in);
  std::sort(order.begin(), order.end(), [](auto& a, auto& b) { return a->seq > b->seq; });
  return order;
}

}  // namespace

Node::~Node() {
  std::vector<std::shared_ptr<Node>> rest = std::move(inputs);
  while (!rest.empty()) {
    const std::shared_ptr<Node> n = std::move(rest.back());
    rest.pop_back();
    if (!n || n.use_count() > 1) continue;
    n->backward = nullptr;
    std::move(n->inputs.begin(), n->inputs.end(), std::back_inserter(rest));
    n->inputs.clear();
  }
}

const Tensor& Var::grad() const {
  LLATTE_CHECK(node, "grad: this value is a constant");
  return node->grad;
}

Var constant(Tensor value) { return {std::move(value), nullptr}; }

Var leaf(Tensor value) {
  auto n = make_node(value);
  return {std::move(value), std::move(n)};
}

Var record(const char* op, Tensor value, const std::vector<Var>& inputs, Backward backward) {
  const bool wanted =
      std::any_of(inputs.begin(), inputs.end(), [](const Var& v) { return v.node != nullptr; });
  if (!recording || !wanted) return constant(std::move(value));
  Var y = leaf(std::move(value));
  y.node->op = op;
  y.node->backward = std::move(backward);
  for (const Var& v : inputs) y.node->inputs.push_back(v.node);
  return y;
}

void backward(const Var& y, const Tensor& dy) {
  LLATTE_CHECK(y.node, "backward: this value was computed without gradients");
  add_gradient(*y.node, dy, "the caller");
  const auto tape = tape_of(y.node);
  auto uses = uses_of_listeners(tape);
  for (auto& n : tape) {
    if (!n->backward) continue;  // a leaf keeps its gradient
    if (n->grad.defined()) {
      const Tensor dn = std::move(n->grad);
      n->grad = Tensor();
      Grads gs = n->backward(dn);
      LLATTE_CHECK(gs.size() == n->inputs.size(), n->op, ": backward returned ", gs.size(), " gradients for ",
                   n->inputs.size(), " inputs");
      for (size_t k = 0; k < gs.size(); ++k)
        if (n->inputs[k] && gs[k].defined()) add_gradient(*n->inputs[k], std::move(gs[k]), n->op);
    }
    n->backward = nullptr;  // frees the activations this closure was keeping
    const auto inputs = std::move(n->inputs);
    n->inputs.clear();
    for (const auto& in : inputs)
      if (in && in->on_grad && --uses[in.get()] == 0) in->on_grad();
  }
}

void backward(const Var& loss) {
  LLATTE_CHECK(loss.value.numel() == 1, "backward: shape ", loss.shape(), " is not a scalar; give dy");
  backward(loss, Tensor::full(loss.shape(), 1, loss.value.dtype(), loss.value.device()));
}

NoGrad::NoGrad() : before_(recording) { recording = false; }
NoGrad::~NoGrad() { recording = before_; }
bool grad_enabled() { return recording; }

namespace {

// Gradient of <f(x), dy> in x's own dtype, as the node of x would have received it (a leaf would widen bf16).
// Those of f's parameters go to their leaves.
Tensor backward_through(const std::function<Var(const Var&)>& f, const Tensor& x, const Tensor& dy) {
  const Recording on(true);
  Tensor dx;
  const Var inner = record("recompute", x, {leaf(x)}, [&dx](const Tensor& d) -> Grads {
    dx = d;
    return {Tensor()};
  });
  if (const Var y = f(inner); y.node) backward(y, dy);
  return dx;
}

}  // namespace

Var recompute(std::function<Var(const Var&)> f, const Var& x) {
  if (!recording) return f(x);
  Tensor y;
  {
    const NoGrad off;
    y = f(x).value;
  }
  // f's parameters want gradients even where x does not, so there is always a node to start from.
  const Var start = x.node ? x : leaf(x.value);
  return record(
      "recompute", std::move(y), {start},
      [f = std::move(f), xv = x.value](const Tensor& dy) -> Grads { return {backward_through(f, xv, dy)}; });
}

}  // namespace llatte
