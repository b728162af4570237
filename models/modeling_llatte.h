// The text of models/modeling_llatte.py, which CMake puts into the library.
#pragma once

namespace llatte {

const char* modeling_llatte();

}  // namespace llatte
