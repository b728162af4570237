#include "data/tfevents.h"
#include <fcntl.h>
#include <unistd.h>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <ctime>
#include <system_error>
#include "tensor/check.h"

namespace llatte {
namespace fs = std::filesystem;
namespace {

std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = c >> 1 ^ (c & 1 ? 0x82f63b78u : 0u);  // the polynomial, reflected
    table[i] = c;
  }
  return table;
}

// TFRecord stores crcs rotated and offset, because a crc of data that holds its own crc is a weak one.
uint32_t masked(uint32_t crc) { return std::rotr(crc, 15) + 0xa282ead8u; }

template <class T>
void put(std::string& out, T v) {
  out.append(reinterpret_cast<const char*>(&v), sizeof v);  // little-endian, as this machine
}

// ---- protobuf's wire format: a field is (number << 3 | type), then its value ----
enum Wire { varint_type = 0, fixed64 = 1, bytes_type = 2, fixed32 = 5 };

void put_varint(std::string& out, uint64_t v) {
  for (; v >= 0x80; v >>= 7) out += static_cast<char>(v | 0x80);
  out += static_cast<char>(v);
}
void put_key(std::string& out, int field, Wire type) {
  put_varint(out, static_cast<uint64_t>(field << 3 | type));
}
void put_bytes(std::string& out, int field, std::string_view bytes) {
  put_key(out, field, bytes_type);
  put_varint(out, bytes.size());
  out += bytes;
}

// Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5; }
std::string event_now() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  std::string e;
  put_key(e, 1, fixed64);
  put(e, std::chrono::duration<double>(now).count());
  return e;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static const auto table = crc_table();
  uint32_t c = ~0u;
  for (unsigned char b : bytes) c = table[(c ^ b) & 0xff] ^ c >> 8;
  return ~c;
}

TfEventWriter::TfEventWriter(const fs::path& folder) {
  std::error_code failed;
  fs::create_directories(folder, failed);
  LLATTE_CHECK(!failed, "cannot make the folder ", folder.string(), ": ", failed.message());
  for (int n = 0; fd_ < 0; ++n) {  // a second writer within a second takes the next number
    path_ = folder / str("events.out.tfevents.", std::time(nullptr), ".llatte.", ::getpid(), ".", n);
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
    LLATTE_CHECK(fd_ >= 0 || errno == EEXIST, "cannot write ", path_.string(), ": ",
                 std::generic_category().message(errno));
  }
  std::string e = event_now();
  put_bytes(e, 3, "brain.Event:2");  // must be the first record
  record(e);
}

TfEventWriter::~TfEventWriter() { ::close(fd_); }

// Summary { repeated Value value = 1; }   Value { string tag = 1; float simple_value = 2; }
void TfEventWriter::scalar(const std::string& tag, int64_t step, float value) {
  std::string v;
  put_bytes(v, 1, tag);
  put_key(v, 2, fixed32);
  put(v, value);
  std::string summary;
  put_bytes(summary, 1, v);
  std::string e = event_now();
  put_key(e, 2, varint_type);
  put_varint(e, static_cast<uint64_t>(step));
  put_bytes(e, 5, summary);
  record(e);
}

void TfEventWriter::record(const std::string& event) {
  std::string r;
  put(r, uint64_t(event.size()));
  put(r, masked(crc32c(r)));
  r += event;
  put(r, masked(crc32c(event)));
  ssize_t n = 0;
  do n = ::write(fd_, r.data(), r.size());
  while (n < 0 && errno == EINTR);
  LLATTE_CHECK(n == static_cast<ssize_t>(r.size()), "cannot write ", path_.string(), ": ",
               std::generic_category().message(n < 0 ? errno : ENOSPC));
}

}  // namespace llatte
