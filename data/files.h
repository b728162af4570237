// Files never lie: whole contents in, whole contents out or nothing. Every failure is one Error naming path
// and cause.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace llatte {

std::string read_file(const std::filesystem::path& file);
// A read-only mapping of the whole file; keeps it mapped as long as the pointer lives.
struct MappedFile {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};
MappedFile map_file(const std::filesystem::path& file);
// 64 bits, taken 8 bytes at a time (multiply and xor-shift): it guards against disks, cables and memory, not
// against people. Goes on from `before`, the checksum of what came before.
uint64_t checksum(std::span<const std::byte> bytes, uint64_t before = 0);
// Part of a mapping that was used and will hardly be used again: its memory goes back to the system (the next
// reader would get it from the file again). Parts smaller than kReleaseFrom stay.
constexpr size_t kReleaseFrom = size_t(1) << 20;
void release_pages(std::span<const std::byte> bytes);

// A file written piece by piece under a temporary name beside `file`. commit() makes it durable and gives it
// its name by one rename; without commit() the destructor removes it, and `file` is as it was.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& file);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void write(const void* data, size_t bytes);
  void write(std::string_view text) { write(text.data(), text.size()); }
  void commit();  // flush, fsync, rename, fsync of the folder

 private:
  void flush();
  void put(const char* data, size_t bytes);
  std::filesystem::path file_, temp_;
  int fd_ = -1;
  std::string buffer_;
};

// Held by one process at a time: a second one that wants the folder gets an Error. The kernel lets go of it
// when the process ends, however it ends.
class FolderLock {
 public:
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_;
};

// temp file beside it, write, fsync, rename, fsync of the folder.
void write_file_atomic(const std::filesystem::path& file, std::string_view contents);
void fsync_path(const std::filesystem::path& file_or_folder);
// Makes a finished folder visible under its final name by one rename (replacing nothing), then fsyncs the
// parent.
void publish_folder(const std::filesystem::path& temp, const std::filesystem::path& final_name);

// A folder built under a temporary name beside its final one: publish() gives it that name; without it the
// destructor removes what is there.
class NewFolder {
 public:
  explicit NewFolder(const std::filesystem::path& final_name);
  ~NewFolder();
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;
  const std::filesystem::path& path() const { return temp_; }
  void publish() { publish_folder(temp_, final_); }

 private:
  std::filesystem::path final_, temp_;
};

}  // namespace llatte
