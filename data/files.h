// Files never lie: whole contents in, whole contents out or nothing. Every failure is one Error naming path
// and cause.
#pragma once
#include <filesystem>
#include <memory>
#include <span>
#include <string>

namespace llatte {

std::string read_file(const std::filesystem::path& file);
// A read-only mapping of the whole file; keeps it mapped as long as the pointer lives.
struct MappedFile {
  std::span<const std::byte> bytes;
  std::shared_ptr<const void> owner;
};
MappedFile map_file(const std::filesystem::path& file);
// temp file beside it, write, fsync, rename, fsync of the folder.
void write_file_atomic(const std::filesystem::path& file, std::string_view contents);
void fsync_path(const std::filesystem::path& file_or_folder);
// Makes a finished folder visible under its final name by one rename (replacing nothing), then fsyncs the
// parent.
void publish_folder(const std::filesystem::path& temp, const std::filesystem::path& final_name);

}  // namespace llatte
