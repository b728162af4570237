// llatte-tokenize: text in, token files out; also learns tokenizers, and shows ids and texts line by line.
// A document is a whole file, or one line of a .jsonl file (its .text). Invalid UTF-8 in plain text is read
// as U+FFFD; in .jsonl it is an error, as in any JSON.
#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>
#include "apps/common.h"
#include "data/files.h"
#include "data/json.h"
#include "data/token_file.h"
#include "data/tokenizer.h"

namespace {

using namespace llatte;
using nlohmann::json;
namespace fs = std::filesystem;

struct Options {
  std::vector<std::string> inputs;
  std::string tokenizer, out, cases;
  int64_t train_bpe = 0;
  bool eos = false, decode = false;
};

struct Line {
  std::string_view text;
  std::string where;  // file:number
};

// Lines that are not blank.
std::vector<Line> lines_of(std::string_view contents, const std::string& file) {
  std::vector<Line> lines;
  for (int64_t number = 1; !contents.empty(); ++number) {
    const size_t end = std::min(contents.find('\n'), contents.size());
    const std::string_view line = contents.substr(0, end);
    if (line.find_first_not_of(" \t\r") != line.npos) lines.push_back({line, str(file, ":", number)});
    contents.remove_prefix(std::min(end + 1, contents.size()));
  }
  return lines;
}

std::string text_of(const json& object, const std::string& where) {
  LLATTE_CHECK(object.is_object() && object.contains("text") && object["text"].is_string(), where,
               ": not an object with a string .text");
  return object["text"].get<std::string>();
}

std::vector<int32_t> ids_of(const json& array, const std::string& where) {
  LLATTE_CHECK(array.is_array(), where, ": not an array of ids");
  std::vector<int32_t> ids;
  for (const json& id : array) {
    LLATTE_CHECK(id.is_number_unsigned() && id.get<uint64_t>() <= INT32_MAX, where, ": ", id.dump(),
                 " is not an id");
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

// Calls f(i) for all i on all threads; the error of the smallest i is thrown after.
template <class F>
void in_parallel(size_t n, F f) {
  std::vector<std::exception_ptr> errors(n);
#pragma omp parallel for schedule(dynamic, 16)
  for (size_t i = 0; i < n; ++i) {
    try {
      f(i);
    } catch (...) {
      errors[i] = std::current_exception();
    }
  }
  for (const auto& e : errors)
    if (e) std::rethrow_exception(e);
}

// tokenizer.json does not say which token ends a text: tokenizer_config.json beside it does, else its name.
int32_t eos_id(const Tokenizer& t, const fs::path& path) {
  const fs::path config = (fs::is_directory(path) ? path : path.parent_path()) / "tokenizer_config.json";
  std::vector<std::string> names{"<|endoftext|>", "<|end_of_text|>", "</s>"};
  if (fs::exists(config)) {
    const json c = read_json(config);
    const json eos = c.is_object() && c.contains("eos_token") ? c["eos_token"] : json();
    if (eos.is_string()) names = {eos.get<std::string>()};
    if (eos.is_object() && eos.contains("content") && eos["content"].is_string()) names = {eos["content"]};
  }
  for (const std::string& name : names)
    if (const auto id = t.id_of(name)) return *id;
  LLATTE_FAIL("--eos: ", path.string(), " has no token ", names.front(),
              "; name its end-of-text token as eos_token in ", config.string());
}

struct Corpus {
  std::vector<int32_t> ids;
  int64_t documents = 0, bytes = 0;
};

void add_document(Corpus& corpus, const std::vector<int32_t>& ids, std::optional<int32_t> eos) {
  corpus.ids.insert(corpus.ids.end(), ids.begin(), ids.end());
  if (eos) corpus.ids.push_back(*eos);
  ++corpus.documents;
}

void add_jsonl(Corpus& corpus, const Tokenizer& t, std::string_view contents, const std::string& file,
               std::optional<int32_t> eos) {
  const std::vector<Line> lines = lines_of(contents, file);
  std::vector<std::vector<int32_t>> ids(lines.size());
  in_parallel(lines.size(), [&](size_t i) {
    ids[i] = t.encode(text_of(parse_json(lines[i].text, lines[i].where), lines[i].where));
  });
  for (const auto& document : ids) add_document(corpus, document, eos);
}

void tokenize(const Options& o, const App& app) {
  const auto start = std::chrono::steady_clock::now();
  const Tokenizer t = Tokenizer::load(o.tokenizer);
  const std::optional<int32_t> eos = o.eos ? std::optional(eos_id(t, o.tokenizer)) : std::nullopt;
  Corpus corpus;
  for (const std::string& file : o.inputs) {
    const std::string contents = read_file(file);
    corpus.bytes += contents.size();
    if (fs::path(file).extension() == ".jsonl") add_jsonl(corpus, t, contents, file, eos);
    else add_document(corpus, t.encode(contents), eos);
    std::cerr << file << ": " << corpus.ids.size() << " tokens so far\n";
  }
  LLATTE_CHECK(!corpus.ids.empty(), "tokenize: the input is empty, and a token file must not be");
  write_token_file(o.out, corpus.ids, t.vocab_size());
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (app.json)
    app.print_json({{"out", o.out},
                    {"tokens", corpus.ids.size()},
                    {"documents", corpus.documents},
                    {"bytes", corpus.bytes},
                    {"vocab_size", t.vocab_size()},
                    {"seconds", seconds.count()}});
}

void train(const Options& o, const App& app) {
  std::string text;
  for (const std::string& file : o.inputs) {
    const std::string contents = read_file(file);
    const bool jsonl = fs::path(file).extension() == ".jsonl";
    if (!jsonl) text += contents + "<|endoftext|>";
    else
      for (const Line& line : lines_of(contents, file))
        text += text_of(parse_json(line.text, line.where), line.where) + "<|endoftext|>";
  }
  write_file_atomic(o.out, train_bpe(text, o.train_bpe));
  if (app.json) app.print_json({{"out", o.out}, {"vocab_size", o.train_bpe}, {"bytes", text.size()}});
}

// {"text": ...} -> [id, ...], one line each.
void print_ids(const Options& o) {
  const Tokenizer t = Tokenizer::load(o.tokenizer);
  const std::string contents = read_file(o.cases);
  for (const Line& line : lines_of(contents, o.cases))
    std::cout << json(t.encode(text_of(parse_json(line.text, line.where), line.where))).dump() << '\n';
}

// [id, ...] (or an object with such .ids, or with only a .text to encode first) -> "text", in ASCII with
// escapes, so that one line stays one line for every reader.
void print_texts(const Tokenizer& t, std::string_view contents, const std::string& file) {
  for (const Line& line : lines_of(contents, file)) {
    const json value = parse_json(line.text, line.where);
    std::vector<int32_t> ids;
    if (!value.is_object()) ids = ids_of(value, line.where);
    else if (value.contains("ids")) ids = ids_of(value["ids"], line.where);
    else ids = t.encode(text_of(value, line.where));
    std::cout << json(t.decode(ids)).dump(-1, ' ', true) << '\n';
  }
}

void decode(Options o) {
  const Tokenizer t = Tokenizer::load(o.tokenizer);
  if (!o.cases.empty()) o.inputs.push_back(o.cases);
  for (const std::string& file : o.inputs) print_texts(t, read_file(file), file);
  if (!o.inputs.empty()) return;
  const std::string all{std::istreambuf_iterator<char>(std::cin), {}};
  print_texts(t, all, "stdin");
}

void need(bool ok, const std::string& what) {
  if (!ok) throw UsageError(what);
}

void run(const Options& o, const App& app) {
  const bool learns = o.train_bpe != 0, shows = o.decode || !o.cases.empty();
  need(!(learns && shows), "--train-bpe does not go with --cases or --decode");
  need(!(shows && (o.eos || !o.out.empty())), "--cases and --decode print to stdout: no --out, no --eos");
  need(learns || !o.tokenizer.empty(), "--tokenizer is required");
  need(!learns || (o.tokenizer.empty() && !o.eos), "--train-bpe makes a tokenizer: no --tokenizer, no --eos");
  need(o.decode || o.cases.empty() || o.inputs.empty(), "--cases takes no INPUT beside its file");
  need(shows || !o.inputs.empty(), "INPUT is required");
  need(shows || !o.out.empty(), "--out is required");
  if (o.decode) decode(o);
  else if (shows) print_ids(o);
  else if (learns) train(o, app);
  else tokenize(o, app);
}

}  // namespace

int main(int argc, char** argv) {
  llatte::App app("tokenize",
                  "Turns text (or .jsonl with .text) into a token file, or learns a tokenizer from it.",
                  "llatte-tokenize book.txt more.jsonl --tokenizer assets/tokenizer --out books.ds --eos\n"
                  "  llatte-tokenize book.txt --train-bpe 4096 --out tokenizer.json");
  Options o;
  app.cli.add_option("INPUT", o.inputs, "text files, or .jsonl files whose lines have a .text");
  app.cli.add_option("--tokenizer", o.tokenizer, "tokenizer.json, or a folder that holds one");
  app.cli.add_option("--out", o.out, "token file (.ds): u16 for vocabularies up to 65536, else u32");
  app.cli.add_flag("--eos", o.eos, "end each document (file, or line of .jsonl) with the end-of-text token");
  app.cli
      .add_option("--train-bpe", o.train_bpe, "learn this many tokens and write a tokenizer.json to --out")
      ->check(CLI::Range(int64_t(257), int64_t(1) << 24));
  app.cli.add_option("--cases", o.cases, "for each line's .text, print its ids as one JSON array");
  app.cli.add_flag("--decode", o.decode,
                   "for each line's JSON array of ids (INPUT or stdin), print its text");
  return app.run(argc, argv, [&] { run(o, app); });
}
