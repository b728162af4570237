// Chat templates: what Jinja2 itself makes of them (test/golden/chat_templates.json), what is refused and in
// which words, and that no template, however broken or greedy, does worse than an Error.
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>
#include <random>
#include "data/chat_template.h"
#include "data/json.h"
#include "test/temp_folder.h"

using namespace llatte;
using namespace llatte::test;
using nlohmann::json;

namespace {

const json& golden() {
  static const json all = read_json("test/golden/chat_templates.json");
  return all;
}

std::vector<ChatMessage> messages_of(const json& list) {
  std::vector<ChatMessage> messages;
  for (const json& m : list) messages.push_back({m.at("role"), m.at("content")});
  return messages;
}

std::string render(const std::string& jinja, const std::vector<ChatMessage>& messages = {{"user", "hi"}}) {
  return render_chat(jinja, messages, true, "<s>", "</s>", "m/chat_template");
}

std::string why(const std::string& jinja) {
  return error_of([&] { render(jinja); });
}

std::string repeat(const std::string& piece, int n) {
  std::string all;
  for (int i = 0; i < n; ++i) all += piece;
  return all;
}

}  // namespace

TEST_CASE("templates render as Jinja2 renders them, and fail where it fails") {
  const json& cases = golden().at("cases");
  REQUIRE(cases.size() > 100);
  for (const json& c : cases) {
    const std::string source = c.at("template"), name = c.at("name");
    CAPTURE(name);
    CAPTURE(source);
    const auto run = [&] {
      return render_chat(source, messages_of(c.at("messages")), c.at("add_generation_prompt"),
                         golden().at("bos_token"), golden().at("eos_token"), "m/chat_template");
    };
    if (c.at("want").is_null()) CHECK(has(error_of(run), "m/chat_template: line "));
    else CHECK(run() == c.at("want").get<std::string>());
  }
}

TEST_CASE("what is not in the subset is refused by name and line") {
  const auto refuses = [](const std::string& jinja, const std::string& sentence) {
    CHECK_MESSAGE(why(jinja) == "m/chat_template: line " + sentence, jinja);
  };
  refuses("{% macro f() %}{% endmacro %}", "1: the tag 'macro' is not supported");
  refuses("\n\n{% raw %}{{{% endraw %}", "3: the tag 'raw' is not supported");
  refuses("{% break %}", "1: the tag 'break' is not supported");
  refuses("{% set ns.x = 1 %}",
          "1: a set tag is {% set name = value %}; '.' after the name is not supported");
  refuses("a\n{{ namespace(x=1) }}", "2: the function 'namespace' is not supported");
  refuses("{{ messages | tojson }}", "1: the filter 'tojson' is not supported");
  refuses("{{ 'x' | trim('y') }}", "1: arguments of the filter 'trim' are not supported");
  refuses("{{ 4 is even }}", "1: the test 'even' is not supported");
  refuses("{{ 4 is divisibleby 2 }}", "1: an argument of the test 'divisibleby' is not supported");
  refuses("{{ 'a'.title() }}", "1: the method 'title' of text is not supported");
  refuses("{{ 'a'.strip }}", "1: the attribute 'strip' of text is not supported");
  refuses("{{ messages[0].items }}", "1: the attribute 'items' of a mapping is not supported");
  refuses("{{ 2 * 3 }}", "1: the operator * is not supported");
  refuses("{{ 1.5 }}", "1: the number that begins with 1 is not a decimal integer of at most 18 digits");
  refuses("{{ {'a': 1} }}", "1: unexpected '{', wanted a value");
  refuses("{{ messages }}", "1: a list cannot be shown as text");
  refuses("{{ 'abc'[0] }}", "1: text indexed by an int is not supported");
  refuses("{{ 'abc'[1:] }}", "1: a slice of text is not supported");
  refuses("{% set loop = 1 %}", "1: 'loop' cannot be the name of a variable");
  refuses("{{ messages[::2] }}", "1: a slice with a step is not supported");
  refuses("{{ [[1]] }}", "1: a list inside a list is not supported");
  refuses("{{ 'É' | lower }}", "1: upper and lower of text that is not ASCII are not supported");
  refuses("{% for m in messages if m %}{% endfor %}", "1: 'if' in a for tag is not supported");
  refuses("{% for a, b in messages %}{% endfor %}", "1: a for with several variables is not supported");
  refuses("{% for m in [] %}{% else %}{% endfor %}", "1: the tag 'else' of a for is not supported");
  refuses("{% for m in messages %}{{ loop.previtem }}{% endfor %}", "1: loop.previtem is not supported");
  refuses("{% for c in 'abc' %}{% endfor %}", "1: a for over text is not supported");
}

TEST_CASE("mistakes of a template are named with their line") {
  CHECK(has(why("\n{% if true %}\nx"), "line 3: the tag of line 2 has no {% endif %}"));
  CHECK(has(why("a\n{{ 'x'"), "line 2: the tag opened in line 2 is not closed"));
  CHECK(has(why("{{ nobody.role }}"), "line 1: 'nobody' is undefined"));
  CHECK(has(why("{{ messages[7].role }}"), "line 1: 'element 7 of 1' is undefined"));
  CHECK(has(why("{{ raise_exception('Only user!') }}"),
            "line 1: the template refuses this conversation: Only user!"));
  CHECK(has(why("{{ 'a' + 1 }}"), "line 1: text + an int is not supported"));
  CHECK(has(why("\xff"), "m/chat_template: the template is not valid UTF-8"));
}

TEST_CASE("a greedy template is stopped") {
  const std::string deep = "nested deeper than 100 levels";
  for (const int n : {101, 100'000}) {
    CHECK(has(why("{{ " + repeat("(", n) + "1" + repeat(")", n) + " }}"), deep));
    CHECK(has(why("{{ " + repeat("not ", n) + "1 }}"), deep));
    CHECK(has(why("{{ " + repeat("-", n) + "1 }}"), deep));
    CHECK(has(why("{{ 1" + repeat("+1", n) + " }}"), deep));
    CHECK(has(why("{{ a" + repeat(".b", n) + " }}"), deep));
    CHECK(has(why("{{ 1" + repeat("|trim", n) + " }}"), deep));
    CHECK(has(why("{{ a" + repeat(" if a else a", n) + " }}"), deep));
    CHECK(has(why("{{ " + repeat("[", n) + repeat("]", n) + " }}"), deep));
    CHECK(has(why(repeat("{% if true %}", n) + repeat("{% endif %}", n)), deep));
  }
  const std::string greedy = "rendering takes too long or makes too much text";
  CHECK(has(why("{% set x = 'abcdefgh' %}" + repeat("{% set x = x + x %}", 60)), greedy));
  CHECK(has(why("{% set x = [1" + repeat(",1", 99) + "] %}" + repeat("{% for a in x %}", 8) + "a" +
                repeat("{% endfor %}", 8)),
            greedy));
  CHECK(render(repeat("{{ 1 }}", 10'000)) == repeat("1", 10'000));  // long is not deep
}

TEST_CASE("fuzz: mutated templates render or are refused, nothing else") {
  const json& cases = golden().at("cases");
  const std::vector<ChatMessage> messages = {{"system", "s"}, {"user", "u\xc3\xa9"}, {"assistant", ""}};
  const std::string pieces[] = {"{%", "%}",   "{{",   "}}",   "-",           "'",
                                "\\", "(",    ")",    "[",    "]",           "|",
                                ".",  " in ", "not ", "1",    "{% endif %}", "{% for x in messages %}",
                                "\n", "{#",   "#}",   "\xc3", "if ",         "="};
  std::mt19937 rng(7);  // raw outputs only: the same everywhere
  int rendered = 0, refused = 0;
  for (int i = 0; i < 20'000; ++i) {
    std::string t = cases[rng() % cases.size()].at("template");
    for (unsigned edits = 1 + rng() % 4; edits; --edits) {
      const size_t at = rng() % (t.size() + 1), n = rng() % 8;
      if (rng() % 3) t.insert(at, pieces[rng() % std::size(pieces)]);
      else t.erase(at, n);
    }
    try {
      render(t, messages);
      ++rendered;
    } catch (const Error&) {
      ++refused;
    }
  }
  CHECK(rendered > 1000);
  CHECK(refused > 1000);
}
