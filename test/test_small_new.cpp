// operator new from free lists: the second of two equal rounds of small allocations calls malloc not once,
// blocks of every form of new may be deleted by any thread, and threads and statics may die in any order.
// Under a sanitizer the lists do not exist, and the first of these is not checked.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#if defined(__GLIBC__) && !defined(LLATTE_SANITIZED)
#define LLATTE_COUNTS_MALLOC 1
static std::atomic<int64_t> malloc_calls{0};
extern "C" void* __libc_malloc(size_t);
extern "C" void* malloc(size_t n) {
  ++malloc_calls;
  return __libc_malloc(n);
}
#endif

namespace {

// Destroyed after the lists of the main thread are closed.
std::map<int, std::string>& static_map() {
  static std::map<int, std::string> m;
  return m;
}

// Made first, so destroyed last: it frees after the thread's lists are gone.
struct Hoard {
  std::vector<std::string> strings;
};

// What a step of the tape allocates: closures, counted pointers, shapes.
void round_of_small_things() {
  std::vector<std::function<int64_t()>> tape;
  for (int64_t i = 0; i < 300; ++i) {
    std::vector<int64_t> shape(static_cast<size_t>(1 + i % 9), i);
    auto node = std::make_shared<std::vector<int64_t>>(shape);
    tape.push_back([node, shape, a = i, b = i, c = i] { return a + b + c + (*node)[0] + shape[0]; });
  }
  int64_t sum = 0;
  while (!tape.empty()) {
    sum += tape.back()();
    tape.pop_back();
  }
  REQUIRE(sum == 5 * 300 * 299 / 2);
}

}  // namespace

#ifdef LLATTE_COUNTS_MALLOC
TEST_CASE("a steady round calls no malloc") {
  const int64_t start = malloc_calls;
  round_of_small_things();
  CHECK(malloc_calls > start);  // the counter counts
  const int64_t before = malloc_calls;
  round_of_small_things();
  CHECK(malloc_calls == before);
}
#endif

TEST_CASE("every size is whole and its own") {
  std::vector<std::unique_ptr<unsigned char[]>> blocks;
  for (int round = 0; round < 2; ++round) {
    for (size_t n = 1; n < 6000; n += 7) {
      blocks.emplace_back(new unsigned char[n]);
      std::memset(blocks.back().get(), static_cast<int>(n % 251), n);
    }
    for (size_t i = 0, n = 1; n < 6000; n += 7, ++i) {
      REQUIRE(blocks[i][0] == n % 251);
      REQUIRE(blocks[i][n - 1] == n % 251);
      REQUIRE(reinterpret_cast<uintptr_t>(blocks[i].get()) % alignof(std::max_align_t) == 0);
    }
    blocks.clear();
  }
}

TEST_CASE("over-aligned, nothrow and impossible requests") {
  struct alignas(256) Wide {
    char c[300];
  };
  const auto w = std::make_unique<Wide>();
  CHECK(reinterpret_cast<uintptr_t>(w.get()) % 256 == 0);
  int* p = new (std::nothrow) int(3);
  CHECK(*p == 3);
  delete p;
#ifndef LLATTE_SANITIZED  // AddressSanitizer ends the program at such a request
  volatile size_t impossible = size_t(1) << 62;
  CHECK(::operator new(impossible, std::nothrow) == nullptr);
  CHECK_THROWS_AS((void)::operator new(impossible), std::bad_alloc);
#endif
}

TEST_CASE("blocks cross threads, and threads end with and without lists") {
  std::vector<std::unique_ptr<std::string>> made;
  std::thread([&] {
    static thread_local Hoard hoard;  // its destructor runs when the lists may be closed already
    for (int i = 0; i < 5000; ++i) made.push_back(std::make_unique<std::string>(100, 'x'));
    hoard.strings.assign(100, std::string(50, 'y'));
  }).join();
  for (const auto& s : made) REQUIRE(*s == std::string(100, 'x'));
  std::thread([&] { made.clear(); }).join();
  std::thread([] {}).join();
  static_map()[1] = std::string(200, 'z');
  CHECK(static_map().size() == 1);
}
