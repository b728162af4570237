// data/files: all or nothing, and one sentence that names the file when it is nothing.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <csignal>
#include <cstring>
#include <fstream>
#include "data/files.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;

namespace {
// Files of this process may not grow beyond `bytes`, as on a full disk.
struct FileSizeLimit {
  explicit FileSizeLimit(rlim_t bytes) {
    std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    const rlimit now{bytes, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &now);
  }
  ~FileSizeLimit() { setrlimit(RLIMIT_FSIZE, &before); }
  rlimit before;
};
// File pages that this process holds in memory, in bytes.
int64_t resident_file_bytes() {
  int64_t size, resident, shared;
  std::ifstream("/proc/self/statm") >> size >> resident >> shared;
  return shared * sysconf(_SC_PAGESIZE);
}
}  // namespace

TEST_CASE("what was written is read, whole, by both readers; nothing else is left in the folder") {
  const TempFolder dir;
  std::string text(300'001, 'x');  // several buffers and a rest
  text[0] = '\0';
  text[150'000] = '\xff';
  for (const std::string& t : {std::string(), std::string("a"), text}) {
    write_file_atomic(dir / "f", t);
    CHECK(read_file(dir / "f") == t);
    const MappedFile m = map_file(dir / "f");
    REQUIRE(m.bytes.size() == t.size());
    CHECK((t.empty() || std::memcmp(m.bytes.data(), t.data(), t.size()) == 0));
    CHECK(dir.entries() == 1);
  }
}

TEST_CASE("small and large pieces keep their order") {
  const TempFolder dir;
  std::string all;
  AtomicFile out(dir / "f");
  for (size_t n :
       {size_t(1), size_t(70'000), size_t(3), size_t(65'536), size_t(0), size_t(65'535), size_t(2)}) {
    const std::string piece(n, static_cast<char>('a' + all.size() % 26));
    out.write(piece);
    all += piece;
  }
  CHECK_FALSE(std::filesystem::exists(dir / "f"));  // not before commit
  out.commit();
  CHECK(read_file(dir / "f") == all);
}

TEST_CASE("a mapping outlives the file's name") {
  const TempFolder dir;
  write_file_atomic(dir / "f", "hello");
  const MappedFile m = map_file(dir / "f");
  std::filesystem::remove(dir / "f");
  CHECK(std::memcmp(m.bytes.data(), "hello", 5) == 0);
}

TEST_CASE("without commit the old file stays and the temporary one goes") {
  const TempFolder dir;
  write_file_atomic(dir / "f", "old");
  {
    AtomicFile out(dir / "f");
    out.write("new");
    CHECK(dir.entries() == 2);
  }
  CHECK(read_file(dir / "f") == "old");
  CHECK(dir.entries() == 1);
}

TEST_CASE("a full disk is one sentence, and the old file stays") {
  const TempFolder dir;
  write_file_atomic(dir / "f", "old");
  std::string e;
  {
    const FileSizeLimit limit(4096);
    e = error_of([&] { write_file_atomic(dir / "f", std::string(100'000, 'x')); });
  }
  CHECK(has(e, "cannot write " + (dir / "f").string()));
  CHECK(has(e, "File too large"));
  CHECK(read_file(dir / "f") == "old");
  CHECK(dir.entries() == 1);
}

TEST_CASE("a new folder appears whole or not at all") {
  const TempFolder dir;
  const auto name = dir / "model";
  {
    const NewFolder dropped(name);
    write_file_atomic(dropped.path() / "f", "x");
  }
  CHECK(dir.entries() == 0);
  {
    NewFolder kept(name / "");  // "model/" is model
    write_file_atomic(kept.path() / "f", "x");
    CHECK_FALSE(std::filesystem::exists(name));
    kept.publish();
  }
  CHECK(dir.entries() == 1);
  CHECK(read_file(name / "f") == "x");
}

TEST_CASE("a folder's lock has one holder at a time") {
  const TempFolder dir;
  {
    const FolderLock first(dir.path);
    CHECK(has(error_of([&] { FolderLock second(dir.path); }),
              dir.path.string() + " is in use by another process"));
  }
  CHECK_NOTHROW(FolderLock(dir.path));
  CHECK(dir.entries() == 0);
  CHECK(has(error_of([&] { FolderLock none(dir / "none"); }), "cannot open"));
}

TEST_CASE("errors name the path and the cause") {
  const TempFolder dir;
  const auto none = dir / "none";
  CHECK(error_of([&] { read_file(none); }) == "cannot open " + none.string() + ": No such file or directory");
  CHECK(has(error_of([&] { map_file(none); }), none.string()));
  CHECK(has(error_of([&] { read_file(dir.path); }), "it is a folder"));
  CHECK(has(error_of([&] { map_file(dir.path); }), "it is a folder"));
  CHECK(has(error_of([&] { map_file("/dev/null"); }), "not a regular file"));
  CHECK(has(error_of([&] { write_file_atomic(none / "f", "x"); }), "cannot write " + (none / "f").string()));
  CHECK(has(error_of([&] { write_file_atomic("", "x"); }), "a file name is missing"));
  CHECK(has(error_of([&] { fsync_path(none); }), none.string()));
  REQUIRE(::mkfifo((dir / "pipe").c_str(), 0600) == 0);
  CHECK(has(error_of([&] { read_file(dir / "pipe"); }), "not a regular file"));  // and does not hang
  std::filesystem::create_directories(dir / "folder/full");
  CHECK(has(error_of([&] { write_file_atomic(dir / "folder", "x"); }), "cannot write"));
  CHECK(dir.entries() == 2);
}

TEST_CASE("publish_folder renames once and replaces nothing, not even an empty folder") {
  const TempFolder dir;
  std::filesystem::create_directory(dir / "tmp");
  write_file_atomic(dir / "tmp/f", "1");
  publish_folder(dir / "tmp", dir / "10");
  CHECK(read_file(dir / "10/f") == "1");
  CHECK(dir.entries() == 1);
  std::filesystem::create_directory(dir / "tmp");
  std::filesystem::create_directory(dir / "20");
  for (const char* taken : {"10", "20"}) {
    const std::string e = error_of([&] { publish_folder(dir / "tmp", dir / taken); });
    CHECK(has(e, (dir / taken).string() + ": File exists"));
  }
  CHECK(read_file(dir / "10/f") == "1");
  CHECK(has(error_of([&] { publish_folder(dir / "gone", dir / "30"); }), "gone"));
}

TEST_CASE("released pages leave the memory and come back with the same contents") {
  const TempFolder dir;
  constexpr int64_t kBytes = 32 << 20;
  std::string text(kBytes, 'x');
  text[12345] = 'y';
  write_file_atomic(dir / "f", text);
  const MappedFile map = map_file(dir / "f");
  const auto is_whole = [&] { return std::memcmp(map.bytes.data(), text.data(), kBytes) == 0; };
  CHECK(is_whole());
  const int64_t before = resident_file_bytes();
  release_pages(map.bytes.subspan(5, kBytes - 10));  // within pages at both ends
  CHECK(resident_file_bytes() <= before - kBytes * 9 / 10);
  CHECK(is_whole());
  release_pages(map.bytes.first(100));  // too little to be worth it
  release_pages({});
  CHECK(is_whole());
}
