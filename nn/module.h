// A module lists its parameters once, in params(). Initialisation, the optimizer, clipping, all-reduce,
// checkpoints and the parameter count are all loops over that one list. Names are the Hugging Face ones on
// disk. What else it computes with, index tables and such, it lists in buffers(): they follow from the config
// and are in no file. Both lists together are what to() moves to another device.
#pragma once
#include <functional>
#include <string>
#include "autograd/var.h"

namespace llatte {

using ParamFn = std::function<void(const std::string& name, Var& param)>;
using BufferFn = std::function<void(Tensor& buffer)>;

class Module {
 public:
  virtual ~Module() = default;
  virtual void params(const std::string& prefix, const ParamFn& f) = 0;
  virtual void buffers(const BufferFn&) {}  // those that were never set included
  // Parameters and buffers, before an optimizer is made over them; gradients stay behind.
  void to(Device d);
};

int64_t param_count(Module& m);

}  // namespace llatte
