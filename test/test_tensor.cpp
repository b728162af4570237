// Tensor handles: views share, copies do not, casts round as IEEE says, and misuse is told in a sentence.
// Also the allocator under them: reuse, alignment and what it counts. No gradients here, and no kernel beyond
// copy and fill. Results are compared exactly: every number used is exact in its type.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include "tensor/alloc.h"
#include "tensor/tensor.h"
#include "test/temp_folder.h"  // error_of

using namespace llatte;
using test::error_of;

namespace {

// 0, 1, 2, ... in the given shape.
Tensor counting(const Shape& shape) {
  std::vector<float> v(static_cast<size_t>(numel_of(shape)));
  std::iota(v.begin(), v.end(), 0.f);
  return Tensor::from(v, shape);
}

float through_bf16(float x) { return Tensor::from(std::vector<float>{x}, {1}).to(DType::bf16).item(); }
uint16_t bits_of(float x) { return bf16(x).bits; }

}  // namespace

TEST_CASE("a view shares numbers, a clone does not") {
  Tensor x = counting({2, 3});
  Tensor view = x.transpose(0, 1), copy = x.clone();
  x.data<float>()[1] = 50;
  CHECK(view.shape() == Shape{3, 2});
  CHECK(view.strides() == Shape{1, 3});
  CHECK(view.to_vector<float>() == std::vector<float>{0, 3, 50, 4, 2, 5});
  CHECK(copy.to_vector<float>() == std::vector<float>{0, 1, 2, 3, 4, 5});
  CHECK_FALSE(x.is_sole_owner());
  CHECK(copy.is_sole_owner());
}

TEST_CASE("slice, transpose and reshape agree with index arithmetic") {
  const Tensor x = counting({2, 3, 5, 4});
  const Tensor v = x.slice(1, 1, 3).transpose(1, 3).slice(-1, 0, 2);  // (2,4,5,2)
  const std::vector<float> got = v.to_vector<float>();
  size_t at = 0;
  for (int a = 0; a < 2; ++a)
    for (int b = 0; b < 4; ++b)
      for (int c = 0; c < 5; ++c)
        for (int d = 0; d < 2; ++d) REQUIRE(got[at++] == float(((a * 3 + d + 1) * 5 + c) * 4 + b));
  CHECK(x.reshape({6, -1}).shape() == Shape{6, 20});
  CHECK(x.reshape({-1}).to_vector<float>() == x.to_vector<float>());
  CHECK(counting({1}).reshape({}).ndim() == 0);
}

TEST_CASE("contiguity is computed, whatever made the strides") {
  const Tensor x = counting({2, 1, 3});
  CHECK(x.transpose(0, 1).is_contiguous());  // a dimension of 1 has no stride that matters
  CHECK(x.slice(0, 1, 2).is_contiguous());
  CHECK_FALSE(x.slice(2, 0, 2).is_contiguous());
  CHECK(x.slice(2, 1, 1).is_contiguous());  // nothing there
  CHECK(x.slice(2, 1, 1).clone().numel() == 0);
  CHECK(x.contiguous().raw() == x.raw());
  CHECK(x.transpose(0, 2).contiguous().raw() != x.raw());
}

TEST_CASE("bf16 rounds to nearest even and keeps what has no neighbour") {
  CHECK(through_bf16(1.00390625f) == 1.f);        // 1 + 2^-8: a tie, 1 is even
  CHECK(through_bf16(1.01171875f) == 1.015625f);  // 1 + 3 2^-8: a tie, up to even
  CHECK(through_bf16(1.0039064f) == 1.0078125f);  // just above the tie
  CHECK(through_bf16(-1.00390625f) == -1.f);
  CHECK(through_bf16(3.4e38f) ==
        std::numeric_limits<float>::infinity());  // above the largest bf16's half step
  CHECK(through_bf16(-INFINITY) == -INFINITY);
  CHECK(std::signbit(through_bf16(-0.f)));
  CHECK(bits_of(1e-40f) == 1);  // a subnormal: 1e-40 / 2^-133 = 1.09
}

TEST_CASE("NaN stays NaN in every conversion, even when its payload would round away") {
  const float payload_low = std::bit_cast<float>(0x7f800001u);
  CHECK(std::isnan(float(bf16(payload_low))));
  CHECK(std::isnan(float(bf16(std::bit_cast<float>(0xffffffffu)))));
  Tensor x = Tensor::full({40}, NAN);  // 40: the vectorised part and the remainder
  for (float v : x.to(DType::bf16).to(DType::f32).to_vector<float>()) REQUIRE(std::isnan(v));
  for (double v : x.to(DType::bf16).to(DType::f64).to_vector<double>()) REQUIRE(std::isnan(v));
}

TEST_CASE("casts between all types keep what both can hold") {
  const std::vector<DType> types = {DType::f32, DType::bf16, DType::f64, DType::i32};
  const Tensor x = counting({4, 5});  // 0..19 are exact in all of them
  for (DType a : types)
    for (DType b : types) {
      const Tensor back = x.to(a).transpose(0, 1).to(b).transpose(0, 1).to(DType::f32);
      CHECK_MESSAGE(back.to_vector<float>() == x.to_vector<float>(), name(a), " to ", name(b));
    }
  CHECK(x.to(DType::f32).raw() == x.raw());
  CHECK(Tensor::full({1}, -2.75).to(DType::i32).item() == -2);
  CHECK(Tensor::full({1}, 0.1, DType::f64).item() == 0.1);
}

TEST_CASE("copy_from writes through a view and nowhere else") {
  Tensor x = Tensor::zeros({3, 4});
  Tensor middle = x.slice(1, 1, 3);
  middle.copy_from(counting({2, 3}).transpose(0, 1));
  CHECK(x.to_vector<float>() == std::vector<float>{0, 0, 3, 0, 0, 1, 4, 0, 0, 2, 5, 0});
}

TEST_CASE("an error names the shapes and the cure") {
  const Tensor x = counting({2, 3});
  Tensor y = x.transpose(0, 1);
  CHECK(error_of([&] { y.data<float>(); }) ==
        "data(): call contiguous() first, strides (1,3) do not match shape (3,2)");
  CHECK(error_of([&] { y.reshape({6}); }) ==
        "reshape: call contiguous() first, strides (1,3) do not match shape (3,2)");
  CHECK(error_of([&] { x.reshape({4, -1}); }) == "reshape: (2,3) has 6 elements, which do not fill (4,-1)");
  CHECK(error_of([&] { x.reshape({0, -1}); }) == "tensor: shape (0,-1) has a negative entry");
  CHECK(error_of([&] { x.slice(1, 2, 4); }) == "slice: [2,4) of dimension 1 of a tensor of shape (2,3)");
  CHECK(error_of([&] { x.slice(2, 0, 1); }) == "slice: dimension 2 of a tensor of shape (2,3)");
  CHECK(error_of([&] { x.transpose(0, 2); }) == "transpose: dimensions 0 and 2 of a tensor of shape (2,3)");
  CHECK(error_of([&] { x.data<bf16>(); }) == "data(): tensor holds f32, asked for bf16");
  CHECK(error_of([&] { x.item(); }) == "item: a tensor of shape (2,3) has 6 elements, not one");
  CHECK(error_of([&] { y.copy_from(x); }) == "copy_from: (2,3) does not fit (3,2)");
  CHECK(error_of([&] { Tensor().data<float>(); }) == "data of a tensor that was never set");
  CHECK(error_of([&] {
          Tensor::from(std::vector<float>{1, 2}, {3});
        }) == "tensor: 2 values given for shape (3)");
}

TEST_CASE("impossible shapes are refused before any memory is asked for") {
  const int64_t big = int64_t(1) << 62;
  CHECK(error_of([&] { Tensor::empty({2, -1}); }) == "tensor: shape (2,-1) has a negative entry");
  CHECK(error_of([&] {
          Tensor::empty({big, 4});
        }).find("more elements than fit in 63 bits") != std::string::npos);
  CHECK(error_of([&] { Tensor::empty({big}); }).find("more bytes than fit in 63 bits") != std::string::npos);
}

TEST_CASE("LLATTE_SHAPE names the tensor, its shape and the letters") {
  const int64_t B = 2, T = 5;
  const Tensor x_BT = counting({2, 3});
  CHECK(error_of([&] { LLATTE_SHAPE(x_BT, B, T); }) == "x_BT is (2,3), expected (B, T) = (2,5)");
}

TEST_CASE("borrowed memory is used in place and kept alive by its owner") {
  auto owner = std::make_shared<std::vector<float>>(std::vector<float>{1, 2, 3, 4});
  std::weak_ptr<std::vector<float>> watch = owner;
  float* data = owner->data();
  Tensor x = Tensor::borrow(data, {2, 2}, DType::f32, std::move(owner));
  CHECK(x.raw() == data);
  CHECK_FALSE(x.is_sole_owner());
  Tensor row = x.slice(0, 1, 2);
  x = Tensor();
  CHECK_FALSE(watch.expired());
  CHECK(row.to_vector<float>() == std::vector<float>{3, 4});
  row = Tensor();
  CHECK(watch.expired());
  CHECK(error_of([&] { Tensor::borrow(data, {1}, DType::f32, nullptr); }) ==
        "tensor: borrowed memory needs an owner");
}

TEST_CASE("the allocator counts what is in use and hands freed blocks out again") {
  release_cached_blocks(Device::cpu);
  reset_alloc_stats(Device::cpu);
  const AllocStats start = alloc_stats(Device::cpu);
  const size_t bytes = 3 << 20;
  void* first = allocate(bytes, Device::cpu);
  CHECK(alloc_stats(Device::cpu).bytes - start.bytes == int64_t(bytes));
  release(first, bytes, Device::cpu);
  void* second = allocate(bytes - 100, Device::cpu);
  CHECK(second == first);
  release(second, bytes - 100, Device::cpu);
  const AllocStats end = alloc_stats(Device::cpu);
  CHECK(end.bytes == start.bytes);
  CHECK(end.requests == 2);
  CHECK(end.system_requests <= 1);  // none where an earlier test's tensor holds a segment with room
  CHECK(end.largest_request == int64_t(bytes));
  CHECK(end.peak_bytes - start.bytes == int64_t(bytes));
}

TEST_CASE("middling blocks are cut from segments, and pieces merge again when freed") {
  release_cached_blocks(Device::cpu);
  const int64_t reserved = alloc_stats(Device::cpu).reserved_bytes;
  const size_t whole = size_t(12) << 20, part = whole / 4, segment = size_t(16) << 20;
  void* first = allocate(whole, Device::cpu);
  CHECK(alloc_stats(Device::cpu).reserved_bytes - reserved == int64_t(segment));
  release(first, whole, Device::cpu);
  reset_alloc_stats(Device::cpu);
  std::vector<void*> parts;
  for (int i = 0; i < 4; ++i) parts.push_back(allocate(part, Device::cpu));
  for (const size_t i : {1, 3, 0, 2}) release(parts[i], part, Device::cpu);  // merges right, left and both
  CHECK(allocate(whole, Device::cpu) == first);
  CHECK(alloc_stats(Device::cpu).system_requests == 0);
  release(first, whole, Device::cpu);
  release_cached_blocks(Device::cpu);
  CHECK(alloc_stats(Device::cpu).reserved_bytes == reserved);
}

TEST_CASE("very large blocks begin on a huge page's boundary and are kept whole") {
  const size_t bytes = size_t(40) << 20;
  void* first = allocate(bytes, Device::cpu);
  CHECK(reinterpret_cast<uintptr_t>(first) % (2 << 20) == 0);
  release(first, bytes, Device::cpu);
  void* small = allocate(size_t(1) << 20, Device::cpu);
  CHECK(allocate(bytes - 100, Device::cpu) == first);
  release(first, bytes, Device::cpu);
  release(small, size_t(1) << 20, Device::cpu);
  release_cached_blocks(Device::cpu);
}

TEST_CASE("blocks never overlap, whatever the order of sizes and releases") {
  std::mt19937 random(1);
  struct Block {
    unsigned char* at;
    size_t bytes;
    unsigned char mark;
  };
  std::vector<Block> held;
  const auto drop = [&](size_t i) {
    const Block b = held[i];
    REQUIRE(std::all_of(b.at, b.at + b.bytes, [&](unsigned char c) { return c == b.mark; }));
    release(b.at, b.bytes, Device::cpu);
    held.erase(held.begin() + static_cast<std::ptrdiff_t>(i));
  };
  const int64_t before = alloc_stats(Device::cpu).bytes;
  for (int round = 0; round < 3000; ++round) {
    const size_t bytes = size_t(1) << (random() % 19) | random() % 4096;
    auto* at = static_cast<unsigned char*>(allocate(bytes, Device::cpu));
    held.push_back({at, bytes, static_cast<unsigned char>(round)});
    std::fill(at, at + bytes, held.back().mark);
    if (held.size() > 40) drop(random() % held.size());
  }
  while (!held.empty()) drop(held.size() - 1);
  CHECK(alloc_stats(Device::cpu).bytes == before);
}

TEST_CASE("peak is the highest sum at any one time, not the sum of all requests") {
  reset_alloc_stats(Device::cpu);
  const int64_t before = alloc_stats(Device::cpu).bytes;
  for (int i = 0; i < 10; ++i) Tensor::empty({1 << 18});  // 1 MiB, freed at once
  CHECK(alloc_stats(Device::cpu).peak_bytes - before == 1 << 20);
  CHECK(alloc_stats(Device::cpu).requests == 10);
}

TEST_CASE("every block is aligned to a cache line") {
  for (int64_t n : {1, 17, 100, 4097}) {
    const Tensor x = Tensor::empty({n}, DType::bf16);
    CHECK(reinterpret_cast<uintptr_t>(x.raw()) % 64 == 0);
  }
}
