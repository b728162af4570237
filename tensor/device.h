// Where numbers live. A process works on at most one GPU; which one is chosen at start (--device cuda:N).
#pragma once

namespace llatte {

enum class Device { cpu, cuda };
inline const char* name(Device d) { return d == Device::cpu ? "cpu" : "cuda"; }

}  // namespace llatte
