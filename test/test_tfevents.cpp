// TensorBoard events: read back by a second, independent walk over the bytes.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>
#include "data/files.h"
#include "data/tfevents.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;

namespace {

struct Scalar {
  double wall_time = 0;
  int64_t step = -1;
  std::string version, tag;
  float value = 0;
};

template <class T>
T take(std::string_view& s) {
  REQUIRE(s.size() >= sizeof(T));
  T v;
  std::memcpy(&v, s.data(), sizeof v);
  s.remove_prefix(sizeof v);
  return v;
}

uint64_t take_varint(std::string_view& s) {
  uint64_t v = 0;
  for (int shift = 0;; shift += 7) {
    const auto b = take<unsigned char>(s);
    v |= uint64_t(b & 0x7f) << shift;
    if (b < 0x80) return v;
  }
}

std::string_view take_bytes(std::string_view& s, size_t n) {
  REQUIRE(s.size() >= n);
  const std::string_view r = s.substr(0, n);
  s.remove_prefix(n);
  return r;
}

// `at`: 0 in Event, 1 in Summary, 2 in Value.
void parse(std::string_view s, int at, Scalar& out) {
  while (!s.empty()) {
    const uint64_t key = take_varint(s);
    if (at == 0 && key == (1 << 3 | 1)) out.wall_time = take<double>(s);
    else if (at == 0 && key == (2 << 3 | 0)) out.step = static_cast<int64_t>(take_varint(s));
    else if (at == 0 && key == (3 << 3 | 2)) out.version = take_bytes(s, take_varint(s));
    else if (at == 0 && key == (5 << 3 | 2)) parse(take_bytes(s, take_varint(s)), 1, out);
    else if (at == 1 && key == (1 << 3 | 2)) parse(take_bytes(s, take_varint(s)), 2, out);
    else if (at == 2 && key == (1 << 3 | 2)) out.tag = take_bytes(s, take_varint(s));
    else if (at == 2 && key == (2 << 3 | 5)) out.value = take<float>(s);
    else FAIL("unexpected field key " << key << " at level " << at);
  }
}

uint32_t unmask(uint32_t m) {
  m -= 0xa282ead8u;
  return m << 15 | m >> 17;
}

std::vector<Scalar> read_events(const std::filesystem::path& file) {
  const std::string text = read_file(file);
  std::string_view s = text;
  std::vector<Scalar> all;
  while (!s.empty()) {
    const std::string_view length_bytes = s.substr(0, 8);
    const auto n = take<uint64_t>(s);
    CHECK(unmask(take<uint32_t>(s)) == crc32c(length_bytes));
    const std::string_view event = take_bytes(s, n);
    CHECK(unmask(take<uint32_t>(s)) == crc32c(event));
    parse(event, 0, all.emplace_back());
  }
  return all;
}

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

TEST_CASE("crc32c: the check value, and RFC 3720's examples") {
  CHECK(crc32c("123456789") == 0xe3069283u);
  CHECK(crc32c("") == 0);
  CHECK(crc32c(std::string(32, '\0')) == 0x8a9136aau);
  CHECK(crc32c(std::string(32, '\xff')) == 0x62a8ab43u);
}

TEST_CASE("scalars are read back, after the version record") {
  const TempFolder dir;
  const double before = now();
  TfEventWriter w(dir / "run/events");
  w.scalar("loss", 1, 10.8125f);
  w.scalar("lr", int64_t(1) << 40, 1e-4f);
  w.scalar(std::string(300, 't'), 0, std::numeric_limits<float>::quiet_NaN());
  const auto events = read_events(w.path());  // while the writer is open: nothing is held back
  REQUIRE(events.size() == 4);
  CHECK(events[0].version == "brain.Event:2");
  CHECK(events[1].tag == "loss");
  CHECK(events[1].step == 1);
  CHECK(events[1].value == 10.8125f);
  CHECK(events[2].step == int64_t(1) << 40);
  CHECK(events[2].value == 1e-4f);
  CHECK(events[3].tag == std::string(300, 't'));
  CHECK(std::isnan(events[3].value));
  for (const auto& e : events) CHECK((e.wall_time >= before && e.wall_time <= now()));
}

TEST_CASE("every writer has a file of its own, named as TensorBoard looks for it") {
  const TempFolder dir;
  const TfEventWriter a(dir.path), b(dir.path);
  CHECK(a.path() != b.path());
  CHECK(has(a.path().filename().string(), "events.out.tfevents."));
  CHECK(dir.entries() == 2);
}

TEST_CASE("a folder that cannot be made is named") {
  const TempFolder dir;
  write_file_atomic(dir / "file", "x");
  CHECK(has(error_of([&] { TfEventWriter(dir / "file/events"); }),
            "cannot make the folder " + (dir / "file/events").string()));
}
