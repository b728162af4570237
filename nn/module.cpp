// What every module can do because it lists its parameters.
#include "nn/module.h"

namespace llatte {

int64_t param_count(Module& m) {
  int64_t n = 0;
  m.params("", [&](const std::string&, Var& p) { n += p.value.numel(); });
  return n;
}

}  // namespace llatte
