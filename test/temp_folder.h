// A folder of its own for one test, gone with it; and the text of the Error that a call must throw.
#pragma once
#include <stdlib.h>
#include <filesystem>
#include <string>
#include "test/on_device.h"

namespace llatte::test {

struct TempFolder {
  std::filesystem::path path;
  TempFolder() {
    const std::string pattern = "llatte-test-" + std::string(6, 'X');  // mkdtemp replaces the six
    std::string name = (std::filesystem::temp_directory_path() / pattern).string();
    LLATTE_CHECK(::mkdtemp(name.data()), "no temporary folder ", name);
    path = name;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path / name; }
  int entries() const {
    int n = 0;
    for ([[maybe_unused]] const auto& e : std::filesystem::directory_iterator(path)) ++n;
    return n;
  }
};

// What a device finds while it works is thrown where the host waits.
template <class F>
std::string error_of(F&& f) {
  try {
    f();
    if (test_device() == Device::cuda) cuda::synchronize();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error was thrown";
}

inline bool has(const std::string& text, const std::string& piece) { return text.find(piece) != text.npos; }

}  // namespace llatte::test
