// Scalars for TensorBoard: an append-only file of events in a run's folder. The format is TFRecord framing
// (length and masked crc32c) around protobuf messages of four fields, written by hand here; nothing else of
// protobuf is needed. Each scalar is one write, so a killed run loses nothing but perhaps its last record,
// and a resumed run opens a file of its own, which TensorBoard shows as the same curve.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace llatte {

// CRC-32C (Castagnoli), RFC 3720 appendix B.4.
uint32_t crc32c(std::string_view bytes);

class TfEventWriter {
 public:
  explicit TfEventWriter(const std::filesystem::path& folder);  // makes the folder if need be
  ~TfEventWriter();
  TfEventWriter(const TfEventWriter&) = delete;
  TfEventWriter& operator=(const TfEventWriter&) = delete;

  void scalar(const std::string& tag, int64_t step, float value);
  const std::filesystem::path& path() const { return path_; }

 private:
  void record(const std::string& event);
  std::filesystem::path path_;
  int fd_ = -1;
};

}  // namespace llatte
