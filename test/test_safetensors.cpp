// data/safetensors: every fixture file as its json says, what is written is read back, and the writer's bytes
// are the safetensors library's.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <limits>
#include "data/files.h"
#include "data/half.h"
#include "data/json.h"
#include "data/safetensors.h"
#include "test/sha256.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
namespace fs = std::filesystem;

namespace {
const fs::path kFixtures = "test/fixtures/safetensors";

std::string bytes_of(const SafetensorsEntry& e) {
  return std::string(reinterpret_cast<const char*>(e.data), e.bytes);
}

// A file of one tensor "x" with these bytes.
fs::path raw_file(const TempFolder& dir, const std::string& dtype, const Shape& shape,
                  const std::string& data) {
  write_safetensors_raw(dir / "raw.safetensors", {{"x", dtype, shape, data}});
  return dir / "raw.safetensors";
}

// Without the fsyncs, which would make thousands of files slow.
void write_plainly(const fs::path& file, const std::string& text) { std::ofstream(file) << text; }

template <class T>
std::string bytes(const std::vector<T>& v) {
  return std::string(reinterpret_cast<const char*>(v.data()), v.size() * sizeof(T));
}
}  // namespace

TEST_CASE("sha256 itself") {
  CHECK(sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST_CASE("every valid file: dtype, shape, bytes, metadata") {
  const auto cases = read_json(kFixtures / "valid.json");
  REQUIRE(cases.size() == 16);
  for (const auto& [file, want] : cases.items()) {
    CAPTURE(file);
    const auto f = SafetensorsFile::open(kFixtures / "valid" / file);
    std::map<std::string, std::string> metadata;
    if (!want["metadata"].is_null()) metadata = want["metadata"].get<decltype(metadata)>();
    CHECK(f.metadata() == metadata);
    REQUIRE(f.entries().size() == want["tensors"].size());
    for (const auto& [name, t] : want["tensors"].items()) {
      CAPTURE(name);
      REQUIRE(f.has(name));
      const auto& e = f.entries().at(name);
      CHECK(e.dtype == t["dtype"]);
      CHECK(e.shape == t["shape"].get<Shape>());
      CHECK(sha256(bytes_of(e)) == t["sha256"]);
    }
  }
}

TEST_CASE("every malformed file is refused with its name and a reason") {
  const auto cases = read_json(kFixtures / "malformed.json")["cases"];
  REQUIRE(cases.size() >= 60);
  for (const auto& [file, why] : cases.items()) {
    const fs::path path = kFixtures / "malformed" / file;
    const std::string e = error_of([&] { SafetensorsFile::open(path); });
    CAPTURE(e);
    CHECK(e.rfind(path.string() + ": ", 0) == 0);
    CHECK(e.size() > path.string().size() + 15);
    CHECK(e.size() < 600);
  }
}

TEST_CASE("the reason is the right one") {
  const std::pair<std::string, std::string> cases[] = {
      {"empty_file", "0 bytes are too few"},
      {"length_zero", "must begin with '{'"},
      {"leading_space", "must begin with '{'"},
      {"header_past_end", "beyond the end of the file"},
      {"header_len_max", "above the limit"},
      {"header_len_2_63", "above the limit"},
      {"duplicate_key", "twice in one object"},
      {"duplicate_key_escaped", "\"x\" twice in one object"},
      {"duplicate_metadata_key", "twice in one object"},
      {"deep_nesting", "nested deeper than 64"},
      {"nul_padding", "not valid JSON"},
      {"lone_surrogate", "not valid JSON"},
      {"extra_field", "a field besides dtype, shape and data_offsets"},
      {"tensor_is_list", "must be an object, not array"},
      {"tensor_is_null", "must be an object, not null"},
      {"missing_shape", "tensor 'x' has no shape"},
      {"bad_dtype", "unknown dtype 'F33'"},
      {"dtype_lowercase", "unknown dtype 'f32'"},
      {"shape_negative", "holds -1"},
      {"shape_overflow", "overflows"},
      {"shape_overflow_bytes", "overflows"},
      {"shape_overflow_zero", "overflows"},
      {"size_mismatch_small", "shape and dtype need"},
      {"offsets_reversed", "end before they begin"},
      {"offsets_three", "3 entries, not 2"},
      {"overlap", "overlaps another"},
      {"identical_span", "overlaps another"},
      {"hole", "hole in the data"},
      {"first_not_zero", "hole in the data"},
      {"past_end", "cut short"},
      {"truncated_data", "cut short"},
      {"trailing_bytes", "belong to none"},
      {"data_but_no_tensors", "belong to none"},
      {"metadata_not_string", "must be a string, not number"},
      {"metadata_list", "__metadata__ must be an object"},
  };
  for (const auto& [file, reason] : cases) {
    const fs::path path = kFixtures / "malformed" / (file + ".safetensors");
    const std::string e = error_of([&] { SafetensorsFile::open(path); });
    CAPTURE(file);
    CAPTURE(e);
    CHECK(has(e, reason));
  }
}

TEST_CASE("a file cut short anywhere, or with any one byte of its header changed, never crashes") {
  const TempFolder dir;
  const std::string good = read_file(kFixtures / "valid/by_library.safetensors");
  uint64_t header = 0;
  std::memcpy(&header, good.data(), 8);
  for (size_t n = 0; n < good.size(); ++n) {
    write_plainly(dir / "f", good.substr(0, n));
    CHECK(has(error_of([&] { SafetensorsFile::open(dir / "f"); }), (dir / "f").string()));
  }
  for (size_t i = 0; i < 8 + header; ++i)
    for (char c : {'\0', '"', '9', '\xff'}) {
      std::string bad = good;
      bad[i] = c;
      write_plainly(dir / "f", bad);
      try {
        const auto f = SafetensorsFile::open(dir / "f");  // a changed name or digit may still be a good file
        for (const auto& [name, e] : f.entries()) CHECK(bytes_of(e).size() == e.bytes);
      } catch (const Error& e) {
        CHECK(has(e.what(), (dir / "f").string()));
      }
    }
}

TEST_CASE("an index and its shards") {
  const fs::path dir = kFixtures / "index_malformed";
  const auto good = SafetensorsFile::open_index(dir / "good.index.json");
  CHECK(good.entries().size() == 2);
  CHECK(good.read("a").defined());
  CHECK(good.path() == dir / "good.index.json");
  // transformers ignores a wrong total_size; so do we, with a line on stderr
  CHECK(SafetensorsFile::open_index(dir / "wrong_total.index.json").entries().size() == 2);
  const std::pair<std::string, std::string> cases[] = {
      {"missing_file", "m-2.safetensors: No such file"},
      {"missing_tensor", "tensor 'zzz' is not in its shard m-1.safetensors"},
      {"path_escape", "must be the name of a file in the same folder"},
      {"absolute_path", "must be the name of a file in the same folder"},
      {"no_weight_map", "there is no weight_map"},
      {"weight_map_list", "weight_map must be an object, not array"},
      {"not_json", "not valid JSON"},
  };
  for (const auto& [file, reason] : cases) {
    const std::string e = error_of([&] { SafetensorsFile::open_index(dir / (file + ".index.json")); });
    CAPTURE(e);
    CHECK(has(e, reason));
    CHECK(has(e, dir.string()));
  }
}

TEST_CASE("a folder: one file, or an index, or an error that names both") {
  const TempFolder dir;
  CHECK(has(error_of([&] { SafetensorsFile::open_folder(dir.path); }), "neither model.safetensors nor"));
  write_safetensors(dir / "s-1.safetensors", {{"a", Tensor::from<float>({1, 2}, {2})}});
  write_safetensors(dir / "s-2.safetensors",
                    {{"b", Tensor::from<float>({3}, {1})}, {"c", Tensor::from<float>({4}, {1})}});
  write_file_atomic(
      dir / "model.safetensors.index.json",
      R"({"metadata":{"total_size":12},"weight_map":{"a":"s-1.safetensors","b":"s-2.safetensors"}})");
  const auto sharded = SafetensorsFile::open_folder(dir.path);
  CHECK(sharded.entries().size() == 2);  // c is not in the map
  CHECK(sharded.read("b").item() == 3);
  write_safetensors(dir / "model.safetensors", {{"one", Tensor::from<float>({5}, {1})}});
  CHECK(SafetensorsFile::open_folder(dir.path).read("one").item() == 5);
}

TEST_CASE("reading widens and narrows as promised, at any alignment") {
  const auto f = SafetensorsFile::open(kFixtures / "valid/unaligned.safetensors");
  for (const auto& [name, e] : f.entries()) {
    if (e.dtype == "F32") {
      std::vector<float> want(e.bytes / 4);
      std::memcpy(want.data(), e.data, e.bytes);
      CHECK(f.read(name).to_vector<float>() == want);
    }
    if (e.dtype == "F64") CHECK(f.read(name).dtype() == DType::f64);
    if (e.dtype == "F16") CHECK(f.read(name).dtype() == DType::f32);
    if (e.dtype == "U8") CHECK(f.read(name).dtype() == DType::i32);
  }
  const TempFolder dir;
  const auto floats = SafetensorsFile::open(raw_file(dir, "F32", {3}, bytes<float>({1.5f, -0.1f, 3e38f})));
  CHECK(floats.read("x", DType::f64).to_vector<double>() ==
        std::vector<double>{1.5, double(-0.1f), double(3e38f)});
  CHECK(float(floats.read("x", DType::bf16).to_vector<bf16>()[1]) == float(bf16(-0.1f)));
  CHECK(has(error_of([&] { floats.read("x", DType::i32); }), "is F32, which cannot be read as i32"));
  CHECK(has(error_of([&] { floats.read("y"); }), "there is no tensor 'y'"));
  CHECK(has(error_of([&] { floats.read("y", DType::f32); }), "raw.safetensors: there is no tensor 'y'"));
}

TEST_CASE("I64 becomes i32 only if every value fits") {
  const TempFolder dir;
  const auto good = SafetensorsFile::open(raw_file(dir, "I64", {2}, bytes<int64_t>({INT32_MIN, INT32_MAX})));
  CHECK(good.read("x").to_vector<int32_t>() == std::vector<int32_t>{INT32_MIN, INT32_MAX});
  CHECK(good.read("x", DType::f64).to_vector<double>()[0] == double(INT32_MIN));
  const auto bad =
      SafetensorsFile::open(raw_file(dir, "I64", {2}, bytes<int64_t>({7, int64_t(INT32_MAX) + 1})));
  CHECK(has(error_of([&] { bad.read("x"); }), "holds 2147483648 at position 1, which does not fit"));
  const auto other = SafetensorsFile::open(raw_file(dir, "U16", {1}, "ab"));
  CHECK(has(error_of([&] { other.read("x"); }), "is U16; only"));
}

TEST_CASE("F16 widens exactly: all 65536 values") {
  for (uint32_t h = 0; h < 65536; ++h) {
    const float got = f16_to_f32(static_cast<uint16_t>(h));
    const int exponent = h >> 10 & 31, mantissa = h & 1023;
    if (exponent == 31 && mantissa) {
      REQUIRE(std::isnan(got));
      continue;
    }
    double want = exponent == 31
                      ? std::numeric_limits<double>::infinity()
                      : std::ldexp(exponent ? 1024 + mantissa : mantissa, (exponent ? exponent : 1) - 25);
    if (h >> 15) want = -want;
    REQUIRE(double(got) == want);
    REQUIRE(std::signbit(got) == bool(h >> 15));
  }
}

TEST_CASE("a tensor that was read may be written to; the file does not change") {
  const TempFolder dir;
  write_safetensors(dir / "f", {{"x", Tensor::from<float>({1, 2}, {2})}});
  const auto f = SafetensorsFile::open(dir / "f");
  Tensor x = f.read("x");
  CHECK(x.is_sole_owner());
  x.data<float>()[0] = 9;
  CHECK(f.read("x").to_vector<float>() == std::vector<float>{1, 2});
}

TEST_CASE("round trip: every dtype, empty and 0-dimensional tensors, views, metadata") {
  const TempFolder dir;
  const Tensor m = Tensor::from<float>({1, 2, 3, 4, 5, 6}, {2, 3});
  write_safetensors(dir / "f",
                    {{"z", m},
                     {"t", m.transpose(0, 1)},
                     {"s", m.slice(1, 1, 2)},
                     {"half", m.to(DType::bf16)},
                     {"wide", m.to(DType::f64)},
                     {"ids", Tensor::from<int32_t>({1, -2}, {2})},
                     {"none", Tensor::empty({0, 7})},
                     {"scalar", Tensor::from<float>({8}, {})},
                     {"caf\xc3\xa9 \"q\"\n", Tensor::from<float>({9}, {1})}},
                    {{"k", "v\n"}, {"step", "12"}});
  const auto f = SafetensorsFile::open(dir / "f");
  CHECK(f.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"k", "v\n"}, {"step", "12"}});
  CHECK(f.read("z").to_vector<float>() == m.to_vector<float>());
  CHECK(f.read("t").to_vector<float>() == std::vector<float>{1, 4, 2, 5, 3, 6});
  CHECK(f.read("t").shape() == Shape{3, 2});
  CHECK(f.read("s").to_vector<float>() == std::vector<float>{2, 5});
  CHECK(f.read("half").dtype() == DType::bf16);
  CHECK(f.read("half", DType::f32).to_vector<float>() == m.to_vector<float>());  // small integers: exact
  CHECK(f.read("wide").to_vector<double>() == std::vector<double>{1, 2, 3, 4, 5, 6});
  CHECK(f.read("ids").to_vector<int32_t>() == std::vector<int32_t>{1, -2});
  CHECK(f.read("none").shape() == Shape{0, 7});
  CHECK(f.read("scalar").shape() == Shape{});
  CHECK(f.read("caf\xc3\xa9 \"q\"\n").item() == 9);
  const std::string file = read_file(dir / "f");
  uint64_t n = 0;
  std::memcpy(&n, file.data(), 8);
  CHECK(n % 8 == 0);
}

TEST_CASE("the writer's bytes are the library's") {
  const TempFolder dir;
  const fs::path theirs = kFixtures / "valid/by_library.safetensors";
  const auto f = SafetensorsFile::open(theirs);
  std::vector<RawTensor> tensors;
  for (const auto& [name, e] : f.entries()) tensors.push_back({name, e.dtype, e.shape, bytes_of(e)});
  write_safetensors_raw(dir / "ours", tensors);
  CHECK(read_file(dir / "ours") == read_file(theirs));
}

TEST_CASE("what cannot be written is refused, and no file is left") {
  const TempFolder dir;
  const Tensor x = Tensor::from<float>({1}, {1});
  const auto refused = [&](const std::vector<std::pair<std::string, Tensor>>& t) {
    return error_of([&] { write_safetensors(dir / "f", t); });
  };
  CHECK(has(refused({{"x", x}, {"x", x}}), "two tensors are named 'x'"));
  CHECK(has(refused({{"__metadata__", x}}), "no tensor may be named __metadata__"));
  CHECK(has(refused({{"x", Tensor()}}), "tensor 'x' was never set"));
  CHECK(has(refused({{"\xff", x}}), "not valid UTF-8"));
  CHECK(has(error_of([&] {
              write_safetensors(dir / "no/f", {{"x", x}});
            }),
            "cannot write " + (dir / "no/f").string()));
  CHECK(has(error_of([&] {
              write_safetensors_raw(dir / "f", {{"x", "F17", {1}, "ab"}});
            }),
            "unknown dtype 'F17'"));
  CHECK(has(error_of([&] {
              write_safetensors_raw(dir / "f", {{"x", "F16", {2}, "ab"}});
            }),
            "needs 4 bytes, got 2"));
  CHECK(dir.entries() == 0);
}

TEST_CASE("a full disk: one sentence, the old file whole, no half file") {
  const TempFolder dir;
  write_safetensors(dir / "f", {{"x", Tensor::from<float>({1}, {1})}});
  const std::string before = read_file(dir / "f");
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  getrlimit(RLIMIT_FSIZE, &old);
  const rlimit small{10'000, old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string e = error_of([&] { write_safetensors(dir / "f", {{"x", Tensor::zeros({100'000})}}); });
  setrlimit(RLIMIT_FSIZE, &old);
  CHECK(has(e, "cannot write " + (dir / "f").string() + ": File too large"));
  CHECK(read_file(dir / "f") == before);
  CHECK(dir.entries() == 1);
}
