// Recursive descent, one function per level of precedence, after Jinja2's own parser.
#include "data/chat_template_parser.h"
#include <algorithm>
#include <utility>
#include "data/json.h"  // printable
#include "tensor/check.h"

namespace llatte::jinja {
namespace {

using Names = std::vector<std::string>;

bool one_of(const std::string& word, const Names& names) {
  return std::find(names.begin(), names.end(), word) != names.end();
}

class Parser {
 public:
  Parser(const std::string& source, const std::string& where)
      : tokens_(tokenize(source, where)), where_(where) {}

  Block run() {
    Block all = block({});
    if (now().kind != Token::end) fail("unexpected ", shown());
    return all;
  }

 private:
  // Counts how deep the parser itself is in recursion.
  struct Level {
    explicit Level(Parser& p) : parser(p) {
      if (++parser.level_ > kMaxDepth)
        parser.fail("the template is nested deeper than ", kMaxDepth, " levels");
    }
    ~Level() { --parser.level_; }
    Parser& parser;
  };

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    LLATTE_FAIL(where_, ": line ", now().line, ": ", parts...);
  }

  // ---- tokens -------------------------------------------------------------------------------------------
  const Token& now() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  Token take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool is(Token::Kind kind, const std::string& word) const {
    return now().kind == kind && now().word == word;
  }
  bool is_op(const std::string& word) const { return is(Token::op, word); }
  bool is_name(const std::string& word) const { return is(Token::name, word); }
  bool take_op(const std::string& word) { return is_op(word) && (take(), true); }
  bool take_name(const std::string& word) { return is_name(word) && (take(), true); }
  std::string shown() const {
    switch (now().kind) {
      case Token::end: return "end of the template";
      case Token::output_end:
      case Token::tag_end: return "end of the tag";
      case Token::output_begin: return "'{{'";
      case Token::tag_begin: return str("tag '", printable(ahead().word), "'");
      default: return str("'", printable(now().word), "'");
    }
  }
  void expect(Token::Kind kind, const std::string& word, const std::string& what) {
    if (now().kind != kind || (!word.empty() && now().word != word))
      fail("unexpected ", shown(), ", wanted ", what);
    take();
  }
  void expect_op(const std::string& word) { expect(Token::op, word, str("'", word, "'")); }
  std::string expect_name(const char* what) {
    const Token t = now();
    expect(Token::name, "", what);
    return t.word;
  }
  void end_tag() { expect(Token::tag_end, "", "the end of the tag"); }

  // ---- statements ---------------------------------------------------------------------------------------
  // Up to a tag named in `ends`, whose '{%' and name are taken too, or the end of the template.
  Block block(const Names& ends) {
    const Level level(*this);
    Block body;
    while (now().kind != Token::end) {
      if (now().kind == Token::tag_begin && one_of(ahead().word, ends)) break;
      body.push_back(statement());
    }
    return body;
  }

  Statement statement() {
    Statement s{Statement::text, now().line, "", false, nullptr, {}};
    const Token first = take();
    if (first.kind == Token::text) {
      s.text_or_name = first.word;
    } else if (first.kind == Token::output_begin) {
      s.kind = Statement::output;
      s.expr = expression();
      expect(Token::output_end, "", "'}}'");
    } else {
      tag(s);
    }
    return s;
  }

  void tag(Statement& s) {
    const std::string name = expect_name("the name of a tag");
    if (name == "for") return loop(s);
    if (name == "if") return branch(s);
    if (name == "set") return assign(s);
    --at_;
    fail("the tag '", printable(name), "' is ",
         one_of(name, {"elif", "else", "endif", "endfor"}) ? "out of place" : "not supported");
  }

  void loop(Statement& s) {
    s.kind = Statement::loop;
    s.text_or_name = variable();
    while (take_op(",")) {
      s.unpacks = true;
      variable();
    }
    expect(Token::name, "in", "'in'");
    s.expr = either();
    if (is_name("if") || is_name("recursive")) fail("'", now().word, "' in a for tag is not supported");
    end_tag();
    s.branches.push_back({nullptr, block({"endfor", "else"})});
    close("endfor", s);
  }

  void branch(Statement& s) {
    s.kind = Statement::branch;
    do {
      ExprPtr condition = either();
      end_tag();
      s.branches.push_back({std::move(condition), block({"elif", "else", "endif"})});
    } while (now().kind == Token::tag_begin && ahead().word == "elif" && (take(), take(), true));
    if (now().kind == Token::tag_begin && ahead().word == "else") {
      take(), take();
      end_tag();
      s.branches.push_back({nullptr, block({"endif"})});
    }
    close("endif", s);
  }

  void close(const char* end, const Statement& s) {
    if (now().kind == Token::end) fail("the tag of line ", s.line, " has no {% ", end, " %}");
    take();
    if (!take_name(end)) fail("the tag 'else' of a for is not supported");
    end_tag();
  }

  void assign(Statement& s) {
    s.kind = Statement::assign;
    s.text_or_name = variable();
    if (!is_op("="))
      fail("a set tag is {% set name = value %}; ", shown(), " after the name is not supported");
    take();
    s.expr = expression();
    end_tag();
  }

  std::string variable() {
    const std::string name = expect_name("the name of a variable");
    if (one_of(name, {"loop", "true", "false", "none", "True", "False", "None", "and", "or", "not", "in",
                      "is", "if", "else"}))
      --at_, fail("'", name, "' cannot be the name of a variable");
    return name;
  }

  // ---- expressions, from loose to tight -----------------------------------------------------------------
  ExprPtr make(Expr::Kind kind, std::vector<ExprPtr> parts, std::string word = "") const {
    auto e = std::make_unique<Expr>();
    e->kind = kind;
    e->line = tokens_[at_ - 1].line;
    e->word = std::move(word);
    for (const ExprPtr& p : parts)
      if (p) e->depth = std::max(e->depth, p->depth + 1);
    if (e->depth > kMaxDepth) fail("an expression is nested deeper than ", kMaxDepth, " levels");
    e->parts = std::move(parts);
    return e;
  }
  template <class... P>
  static std::vector<ExprPtr> list(P... parts) {
    std::vector<ExprPtr> all;
    (all.push_back(std::move(parts)), ...);
    return all;
  }

  ExprPtr expression() {
    const Level level(*this);
    ExprPtr e = either();
    while (take_name("if")) {
      ExprPtr condition = either(), otherwise = take_name("else") ? expression() : nullptr;
      e = make(Expr::choice, list(std::move(condition), std::move(e), std::move(otherwise)));
    }
    return e;
  }

  ExprPtr either() {
    ExprPtr e = both();
    while (take_name("or")) e = make(Expr::or_, list(std::move(e), both()));
    return e;
  }

  ExprPtr both() {
    ExprPtr e = negation();
    while (take_name("and")) e = make(Expr::and_, list(std::move(e), negation()));
    return e;
  }

  ExprPtr negation() {
    if (!take_name("not")) return comparison();
    const Level level(*this);
    return make(Expr::not_, list(negation()));
  }

  ExprPtr comparison() {
    std::vector<ExprPtr> parts = list(sum());
    std::vector<std::string> operators;
    while (true) {
      if (now().kind == Token::op && one_of(now().word, {"==", "!=", "<", ">", "<=", ">="})) {
        operators.push_back(take().word);
      } else if (take_name("in")) {
        operators.push_back("in");
      } else if (is_name("not") && ahead().kind == Token::name && ahead().word == "in") {
        take(), take();
        operators.push_back("not in");
      } else {
        break;
      }
      parts.push_back(sum());
    }
    if (operators.empty()) return std::move(parts[0]);
    ExprPtr e = make(Expr::compare, std::move(parts));
    e->comparisons = std::move(operators);
    return e;
  }

  ExprPtr sum() {
    ExprPtr e = joined();
    while (is_op("+") || is_op("-")) {
      const Expr::Kind kind = take().word == "+" ? Expr::add : Expr::subtract;
      e = make(kind, list(std::move(e), joined()));
    }
    return e;
  }

  ExprPtr joined() {
    ExprPtr e = product();
    while (take_op("~")) e = make(Expr::concat, list(std::move(e), product()));
    return e;
  }

  ExprPtr product() {
    ExprPtr e = unary(true);
    while (take_op("%")) e = make(Expr::modulo, list(std::move(e), unary(true)));
    if (now().kind == Token::op && one_of(now().word, {"*", "/", "//", "**"}))
      fail("the operator ", now().word, " is not supported");
    return e;
  }

  ExprPtr unary(bool filters) {
    ExprPtr e;
    if (take_op("-")) {
      const Level level(*this);
      e = make(Expr::negative, list(unary(false)));
    } else {
      e = primary();
    }
    e = postfix(std::move(e));
    return filters ? filtered(std::move(e)) : std::move(e);
  }

  ExprPtr primary() {
    const Token t = now();
    if (take_op("(")) {
      ExprPtr e = expression();
      expect_op(")");
      return e;
    }
    if (take_op("[")) return make(Expr::list, items("]"));
    if (t.kind == Token::string) return literal();
    if (t.kind == Token::integer) return number(std::stoll(take().word), Expr::integer);
    if (t.kind != Token::name) fail("unexpected ", shown(), ", wanted a value");
    if (one_of(t.word, {"and", "or", "in", "is", "if", "else", "not"})) fail("unexpected ", shown());
    take();
    if (t.word == "true" || t.word == "True") return number(1, Expr::truth);
    if (t.word == "false" || t.word == "False") return number(0, Expr::truth);
    if (t.word == "none" || t.word == "None") return make(Expr::none, {});
    return make(Expr::name, {}, t.word);
  }

  // As in Jinja, strings side by side are one.
  ExprPtr literal() {
    std::string text;
    while (now().kind == Token::string) text += take().word;
    return make(Expr::text, {}, text);
  }

  ExprPtr number(int64_t n, Expr::Kind kind) const {
    ExprPtr e = make(kind, {});
    e->number = n;
    return e;
  }

  // a, b, ... and the closing bracket; an argument may have a name.
  std::vector<ExprPtr> items(const std::string& closing) {
    std::vector<ExprPtr> parts;
    while (!take_op(closing)) {
      if (!parts.empty()) expect_op(",");
      if (take_op(closing)) break;
      ExprPtr e = expression();
      if (closing == ")" && take_op("=")) e = expression();
      parts.push_back(std::move(e));
    }
    return parts;
  }

  ExprPtr with_arguments(Expr::Kind kind, ExprPtr subject, std::string word = "") {
    std::vector<ExprPtr> parts = list(std::move(subject));
    if (take_op("("))
      for (ExprPtr& e : items(")")) parts.push_back(std::move(e));
    return make(kind, std::move(parts), std::move(word));
  }

  ExprPtr postfix(ExprPtr e) {
    while (true) {
      if (take_op(".")) {
        if (now().kind == Token::integer) {
          ExprPtr n = number(std::stoll(take().word), Expr::integer);
          e = make(Expr::index, list(std::move(e), std::move(n)));
        } else {
          std::string name = expect_name("the name of an attribute");
          e = make(Expr::attribute, list(std::move(e)), std::move(name));
        }
      } else if (take_op("[")) {
        e = subscript(std::move(e));
      } else if (is_op("(")) {
        e = with_arguments(Expr::call, std::move(e));
      } else {
        return e;
      }
    }
  }

  ExprPtr subscript(ExprPtr subject) {
    ExprPtr first = is_op(":") ? nullptr : expression();
    if (!take_op(":")) {
      expect_op("]");
      return make(Expr::index, list(std::move(subject), std::move(first)));
    }
    ExprPtr last = is_op("]") || is_op(":") ? nullptr : expression();
    if (is_op(":")) fail("a slice with a step is not supported");
    expect_op("]");
    return make(Expr::slice, list(std::move(subject), std::move(first), std::move(last)));
  }

  ExprPtr filtered(ExprPtr e) {
    while (true) {
      if (take_op("|")) {
        std::string name = expect_name("the name of a filter");
        e = with_arguments(Expr::filter, std::move(e), std::move(name));
      } else if (take_name("is")) {
        e = tested(std::move(e));
      } else {
        return e;
      }
    }
  }

  ExprPtr tested(ExprPtr e) {
    const bool negated = take_name("not");
    std::string name = expect_name("the name of a test");
    const bool argument = now().kind == Token::string || now().kind == Token::integer || is_op("[") ||
                          (now().kind == Token::name && !one_of(now().word, {"and", "or", "else"}));
    if (is_name("is")) fail("tests cannot be chained");
    if (argument) fail("an argument of the test '", printable(name), "' is not supported");
    e = with_arguments(Expr::test, std::move(e), std::move(name));
    return negated ? make(Expr::not_, list(std::move(e))) : std::move(e);
  }

  std::vector<Token> tokens_;
  const std::string& where_;
  size_t at_ = 0;
  int level_ = 0;
};

}  // namespace

Block parse(const std::string& source, const std::string& where) { return Parser(source, where).run(); }

}  // namespace llatte::jinja
