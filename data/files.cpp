#include "data/files.h"
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <utility>
#include "tensor/check.h"

namespace llatte {
namespace fs = std::filesystem;
namespace {

std::string why(int error) { return std::generic_category().message(error); }

fs::path folder_of(const fs::path& p) {
  const fs::path clean = p.has_filename() ? p : p.parent_path();  // "a/b/" is b in a
  return clean.has_parent_path() ? clean.parent_path() : fs::path(".");
}

// An open descriptor that closes itself.
struct Fd {
  int fd;
  Fd(const fs::path& path, int flags) : fd(::open(path.c_str(), flags | O_CLOEXEC)) {
    LLATTE_CHECK(fd >= 0, "cannot open ", path.string(), ": ", why(errno));
  }
  ~Fd() { ::close(fd); }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
};

size_t size_of_regular(const Fd& f, const fs::path& file) {
  struct stat s;
  LLATTE_CHECK(::fstat(f.fd, &s) == 0, "cannot examine ", file.string(), ": ", why(errno));
  LLATTE_CHECK(!S_ISDIR(s.st_mode), "cannot read ", file.string(), ": it is a folder, not a file");
  LLATTE_CHECK(S_ISREG(s.st_mode), "cannot read ", file.string(), ": it is not a regular file");
  return static_cast<size_t>(s.st_size);
}

// O_NONBLOCK: opening a pipe by mistake must be an error, not a wait for a writer.
constexpr int kRead = O_RDONLY | O_NONBLOCK;

}  // namespace

std::string read_file(const fs::path& file) {
  const Fd f(file, kRead);
  std::string text(size_of_regular(f, file), '\0');
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(f.fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    LLATTE_CHECK(n >= 0, "cannot read ", file.string(), ": ", why(errno));
    LLATTE_CHECK(n > 0, "cannot read ", file.string(), ": it ended after ", done, " of ", text.size(),
                 " bytes; is someone writing it?");
    done += static_cast<size_t>(n);
  }
  return text;
}

MappedFile map_file(const fs::path& file) {
  const Fd f(file, kRead);
  const size_t size = size_of_regular(f, file);
  if (size == 0) return {{}, std::make_shared<int>(0)};  // mmap refuses a length of 0
  void* p = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, f.fd, 0);
  LLATTE_CHECK(p != MAP_FAILED, "cannot map ", file.string(), " (", size, " bytes): ", why(errno));
  return {{static_cast<const std::byte*>(p), size},
          std::shared_ptr<const void>(p, [size](const void* q) { ::munmap(const_cast<void*>(q), size); })};
}

void release_pages(std::span<const std::byte> bytes) {
  if (bytes.size() < kReleaseFrom) return;
  // Whole pages only: those at the borders hold a neighbour's bytes too.
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto at = reinterpret_cast<uintptr_t>(bytes.data());
  const uintptr_t begin = (at + page - 1) / page * page, end = (at + bytes.size()) / page * page;
  ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);  // a hint: failure changes nothing
}

FolderLock::FolderLock(const fs::path& folder)
    : fd_(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
  LLATTE_CHECK(fd_ >= 0, "cannot open ", folder.string(), ": ", why(errno));
  if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
  const int error = errno;
  ::close(fd_);
  LLATTE_CHECK(error != EWOULDBLOCK, folder.string(),
               " is in use by another process; wait for it or stop it");
  fd_ = -1;  // a file system that has no locks
}

FolderLock::~FolderLock() {
  if (fd_ >= 0) ::close(fd_);
}

AtomicFile::AtomicFile(const fs::path& file) : file_(file) {
  static std::atomic<int> count{0};
  LLATTE_CHECK(file.has_filename(), "cannot write '", file.string(), "': a file name is missing");
  temp_ = folder_of(file) / str('.', file.filename().string(), ".tmp-", ::getpid(), '-', ++count);
  fd_ = ::open(temp_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  LLATTE_CHECK(fd_ >= 0, "cannot write ", file.string(), ": ", why(errno));
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temp_.empty()) ::unlink(temp_.c_str());
}

void AtomicFile::write(const void* data, size_t bytes) {
  constexpr size_t kBuffer = 1 << 16;
  if (buffer_.size() + bytes > kBuffer) flush();
  if (bytes > kBuffer) put(static_cast<const char*>(data), bytes);
  else buffer_.append(static_cast<const char*>(data), bytes);
}

void AtomicFile::flush() {
  put(buffer_.data(), buffer_.size());
  buffer_.clear();
}

void AtomicFile::put(const char* data, size_t bytes) {
  while (bytes > 0) {
    const ssize_t n = ::write(fd_, data, bytes);
    if (n < 0 && errno == EINTR) continue;
    LLATTE_CHECK(n > 0, "cannot write ", file_.string(), ": ", why(n < 0 ? errno : ENOSPC));
    data += n;
    bytes -= static_cast<size_t>(n);
  }
}

void AtomicFile::commit() {
  flush();
  LLATTE_CHECK(::fsync(fd_) == 0, "cannot write ", file_.string(), ": ", why(errno));
  const int fd = std::exchange(fd_, -1);
  LLATTE_CHECK(::close(fd) == 0, "cannot write ", file_.string(), ": ", why(errno));
  LLATTE_CHECK(::rename(temp_.c_str(), file_.c_str()) == 0, "cannot write ", file_.string(), ": ",
               why(errno));
  temp_.clear();
  fsync_path(folder_of(file_));
}

void write_file_atomic(const fs::path& file, std::string_view contents) {
  AtomicFile out(file);
  out.write(contents);
  out.commit();
}

uint64_t checksum(std::span<const std::byte> bytes, uint64_t before) {
  uint64_t h = 0x9e3779b97f4a7c15ull ^ bytes.size() ^ before;
  for (size_t i = 0; i < bytes.size(); i += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + i, std::min<size_t>(8, bytes.size() - i));
    h = (h ^ word) * 0xff51afd7ed558ccdull;
    h ^= h >> 32;
  }
  return h;
}

void fsync_path(const fs::path& file_or_folder) {
  const Fd f(file_or_folder, O_RDONLY);
  LLATTE_CHECK(::fsync(f.fd) == 0, "cannot make ", file_or_folder.string(), " durable: ", why(errno));
}

void publish_folder(const fs::path& temp, const fs::path& final_name) {
  fsync_path(temp);
  int failed = ::renameat2(AT_FDCWD, temp.c_str(), AT_FDCWD, final_name.c_str(), RENAME_NOREPLACE);
  if (failed && (errno == EINVAL || errno == ENOSYS)) {  // a file system without RENAME_NOREPLACE
    std::error_code ignored;
    errno = EEXIST;
    if (!fs::exists(fs::symlink_status(final_name, ignored)))
      failed = ::rename(temp.c_str(), final_name.c_str());
  }
  LLATTE_CHECK(!failed, "cannot move ", temp.string(), " to ", final_name.string(), ": ", why(errno));
  fsync_path(folder_of(final_name));
}

NewFolder::NewFolder(const fs::path& final_name)
    : final_(final_name.has_filename() ? final_name : final_name.parent_path()),
      temp_(folder_of(final_) / str('.', final_.filename().string(), ".tmp-", ::getpid())) {
  fs::create_directories(temp_);
}

NewFolder::~NewFolder() {
  std::error_code ignored;
  fs::remove_all(temp_, ignored);
}

}  // namespace llatte
