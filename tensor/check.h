// How llatte says no: one exception, one macro. The message is a sentence for the person at the keyboard:
// what was asked, both values, and the cure. Where in the source it was found out is kept aside, for
// debuggers.
//   LLATTE_CHECK(x.ndim() == 3, "attention: q must be (B,T,H,E), got ", x.shape());
#pragma once
#include <cstdint>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace llatte {

using Shape = std::vector<int64_t>;

inline std::ostream& operator<<(std::ostream& os, const Shape& s) {
  os << '(';
  for (size_t i = 0; i < s.size(); ++i) os << (i ? "," : "") << s[i];
  return os << ')';
}

// All pieces, streamed one after the other (g++ 12 has no <format>).
template <class... Parts>
std::string str(const Parts&... parts) {
  std::ostringstream os;
  (os << ... << parts);
  return os.str();
}

class Error : public std::runtime_error {
 public:
  Error(const std::string& sentence, const char* file, int line)
      : std::runtime_error(sentence), file_(file), line_(line) {}
  const char* file() const { return file_; }
  int line() const { return line_; }

 private:
  const char* file_;
  int line_;
};

}  // namespace llatte

#define LLATTE_FAIL(...) throw ::llatte::Error(::llatte::str(__VA_ARGS__), __FILE__, __LINE__)
#define LLATTE_CHECK(cond, ...)            \
  do {                                     \
    if (!(cond)) LLATTE_FAIL(__VA_ARGS__); \
  } while (0)

// A shape comment the compiler keeps honest: LLATTE_SHAPE(q_BTHE, B, T, H, E);
#define LLATTE_SHAPE(t, ...)                                                          \
  LLATTE_CHECK((t).shape() == (::llatte::Shape{__VA_ARGS__}), #t " is ", (t).shape(), \
               ", expected (" #__VA_ARGS__ ") = ", (::llatte::Shape{__VA_ARGS__}))
