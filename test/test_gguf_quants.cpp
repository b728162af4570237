// GGUF's block types against the gguf package's own results on random blocks, and what is quantised here
// against the bytes it writes. All comparisons are of bits: reading is exact arithmetic, writing is rounding
// by fixed rules, so there is no tolerance to choose.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include "data/gguf_quants.h"
#include "data/half.h"
#include "data/safetensors.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;

namespace {

const GgufType kBlockTypes[] = {GgufType::Q8_0, GgufType::Q4_0, GgufType::Q4_1, GgufType::Q5_0,
                                GgufType::Q5_1, GgufType::Q4_K, GgufType::Q5_K, GgufType::Q6_K};

std::vector<uint32_t> bits(const std::vector<float>& v) {
  std::vector<uint32_t> b(v.size());
  std::memcpy(b.data(), v.data(), v.size() * sizeof(float));
  return b;
}

std::vector<std::byte> quantized(GgufType t, const std::vector<float>& v) {
  std::vector<std::byte> out(v.size() / info_of(t).block * info_of(t).bytes);
  quantize(t, v.data(), static_cast<int64_t>(v.size()), out.data());
  return out;
}

std::vector<float> dequantized(GgufType t, const std::vector<std::byte>& b) {
  std::vector<float> out(b.size() / info_of(t).bytes * info_of(t).block);
  dequantize(t, b.data(), static_cast<int64_t>(out.size()), out.data());
  return out;
}

std::vector<float> random_floats(size_t n, float scale) {
  std::mt19937 rng(7);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> v(n);
  for (float& x : v) x = normal(rng);
  return v;
}

}  // namespace

TEST_CASE("random blocks of every type give the package's values, bit for bit") {
  const auto file = SafetensorsFile::open("test/fixtures/gguf/blocks.safetensors");
  for (const GgufType t : kBlockTypes) {
    const std::string type = info_of(t).name;
    CAPTURE(type);
    const SafetensorsEntry& blocks = file.entries().at(type + ".blocks");
    REQUIRE(blocks.shape == Shape{6, info_of(t).bytes});
    const auto want = file.read(type + ".values").to_vector<float>();
    REQUIRE(want.size() == static_cast<size_t>(6 * info_of(t).block));
    CHECK(bits(dequantized(t, {blocks.data, blocks.data + blocks.bytes})) == bits(want));
  }
}

TEST_CASE("half precision: every half comes back, and rounding is to nearest even") {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float f = f16_to_f32(static_cast<uint16_t>(h));
    if (std::isnan(f)) CHECK(std::isnan(f16_to_f32(f32_to_f16(f))));
    else CHECK(f32_to_f16(f) == h);
  }
  // Between each two neighbours: the middle goes to the even one, a float less or more to the nearer.
  for (uint16_t h = 0; h < 0x7bff; ++h) {
    const float low = f16_to_f32(h), high = f16_to_f32(h + 1), middle = (low + high) / 2;
    const uint16_t even = h % 2 ? h + 1 : h;
    CHECK(f32_to_f16(middle) == even);
    CHECK(f32_to_f16(std::nextafter(middle, 0.0f)) == h);
    CHECK(f32_to_f16(std::nextafter(middle, INFINITY)) == h + 1);
    CHECK(f32_to_f16(-middle) == (even | 0x8000));
  }
  CHECK(f32_to_f16(65519.99f) == 0x7bff);
  CHECK(f32_to_f16(65520) == 0x7c00);
  CHECK(f32_to_f16(1e30f) == 0x7c00);
}

TEST_CASE("quantised numbers come back within half a step") {
  const std::vector<float> v = random_floats(64 * 32, 0.7f);
  const std::vector<float> back = dequantized(GgufType::Q8_0, quantized(GgufType::Q8_0, v));
  for (size_t b = 0; b < v.size(); b += 32) {
    float most = 0;
    for (size_t i = b; i < b + 32; ++i) most = std::max(most, std::abs(v[i]));
    // Half a step of d = most/127, and the rounding of d to 11 bits: 2^-12 of a value of at most `most`
    // (2^-11 leaves room for the rounding of the products in float).
    for (size_t i = b; i < b + 32; ++i) CHECK(std::abs(back[i] - v[i]) <= most / 254 + most * 0x1p-11f);
  }
  CHECK(bits(dequantized(GgufType::F32, quantized(GgufType::F32, v))) == bits(v));
  const std::vector<float> half = dequantized(GgufType::F16, quantized(GgufType::F16, v));
  const std::vector<float> brain = dequantized(GgufType::BF16, quantized(GgufType::BF16, v));
  for (size_t i = 0; i < v.size(); ++i) {
    CHECK(std::abs(half[i] - v[i]) <= std::abs(v[i]) * 0x1p-11f + 0x1p-25f);  // half a last place, 11 bits
    CHECK(std::abs(brain[i] - v[i]) <= std::abs(v[i]) * 0x1p-8f);             // 8 bits
  }
}

TEST_CASE("Q8_0 at its edges") {
  std::vector<float> v(32, 0.0f);
  CHECK(quantized(GgufType::Q8_0, v) == std::vector<std::byte>(34));
  v[3] = std::numeric_limits<float>::denorm_min();  // 1/d would be infinite
  CHECK(quantized(GgufType::Q8_0, v) == std::vector<std::byte>(34));
  v[3] = 127, v[4] = -0.5f, v[5] = 2.5f, v[6] = -127;  // halves go away from zero
  const auto b = quantized(GgufType::Q8_0, v);
  CHECK(b[0] == std::byte{0x00});
  CHECK(b[1] == std::byte{0x3c});  // 1 as f16
  CHECK(b[2 + 3] == std::byte{127});
  CHECK(b[2 + 4] == std::byte{0xff});
  CHECK(b[2 + 5] == std::byte{3});
  CHECK(b[2 + 6] == std::byte{0x81});
}

TEST_CASE("what a type cannot hold is refused, with the value and the cure") {
  const auto error = [](GgufType t, std::vector<float> v) { return error_of([&] { quantized(t, v); }); };
  std::vector<float> v(32, 1.0f);
  v[9] = NAN;
  CHECK(has(error(GgufType::Q8_0, v), "Q8_0 cannot hold nan; choose F32, F16 or BF16"));
  v[9] = 1e30f;
  CHECK(has(error(GgufType::Q8_0, v), "Q8_0 cannot hold 1e+30"));
  CHECK(has(error(GgufType::F16, v), "F16 cannot hold 1e+30, its largest number is 65504"));
  CHECK(has(error(GgufType::Q4_0, v), "Q4_0 is not written; have F32, F16, BF16, Q8_0"));
  std::vector<std::byte> out(64);
  CHECK(has(error_of([&] { quantize(GgufType::Q8_0, v.data(), 31, out.data()); }),
            "31 values are no whole number of Q8_0 blocks of 32"));
  CHECK(has(error_of([&] { dequantize(GgufType::Q6_K, out.data(), 32, v.data()); }),
            "no whole number of Q6_K blocks of 256"));
}

TEST_CASE("types by number") {
  CHECK(find_gguf_type(14)->type == GgufType::Q6_K);
  CHECK(find_gguf_type(4) == nullptr);
  CHECK(gguf_type_name(30) == "BF16");
  CHECK(gguf_type_name(10) == "Q2_K");
  CHECK(gguf_type_name(999) == "999");
}
