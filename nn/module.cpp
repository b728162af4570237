// What every module can do because it lists its parameters.
#include "nn/module.h"

namespace llatte {

void Module::to(Device d) {
  params("", [d](const std::string&, Var& p) { p.value = p.value.to(d); });
  buffers([d](Tensor& t) {
    if (t.defined()) t = t.to(d);
  });
}

int64_t param_count(Module& m) {
  int64_t n = 0;
  m.params("", [&](const std::string&, Var& p) { n += p.value.numel(); });
  return n;
}

}  // namespace llatte
