// A module lists its parameters once, in params(). Initialisation, the optimizer, clipping, all-reduce,
// checkpoints and the parameter count are all loops over that one list. Names are the Hugging Face ones on
// disk.
#pragma once
#include <functional>
#include <string>
#include "autograd/var.h"

namespace llatte {

using ParamFn = std::function<void(const std::string& name, Var& param)>;

class Module {
 public:
  virtual ~Module() = default;
  virtual void params(const std::string& prefix, const ParamFn& f) = 0;
};

int64_t param_count(Module& m);

}  // namespace llatte
