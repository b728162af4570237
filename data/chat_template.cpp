// Walks a template's tree. Values are Python's, as far as templates look: undefined, none, bool, int, text,
// list, mapping; strings and lists are shared, so that naming one copies nothing. Every step and every byte
// made is paid for from one budget: no template runs for long or grows without end.
#include "data/chat_template.h"
#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <variant>
#include "data/chat_template_parser.h"
#include "data/json.h"  // printable
#include "tensor/check.h"

namespace llatte {
namespace {
using namespace jinja;

constexpr int64_t kBudget = int64_t{1} << 28;  // bytes, or 16 for a step: at most a second or two of work

struct Value;
using List = std::vector<Value>;
using Mapping = std::map<std::string, Value>;

struct Undefined {
  std::string name;
};
struct None {};
struct Loop {  // what `loop` is inside a for
  int64_t index0, length;
};
struct Value {
  std::variant<Undefined, None, bool, int64_t, std::shared_ptr<const std::string>,
               std::shared_ptr<const List>, std::shared_ptr<const Mapping>, Loop>
      v;

  template <class T>
  const T* as() const {
    return std::get_if<T>(&v);
  }
  const std::string* text() const {
    const auto* p = as<std::shared_ptr<const std::string>>();
    return p ? p->get() : nullptr;
  }
  const List* list() const {
    const auto* p = as<std::shared_ptr<const List>>();
    return p ? p->get() : nullptr;
  }
  const Mapping* mapping() const {
    const auto* p = as<std::shared_ptr<const Mapping>>();
    return p ? p->get() : nullptr;
  }
  bool undefined() const { return as<Undefined>(); }
};

Value text_value(std::string s) { return {std::make_shared<const std::string>(std::move(s))}; }
Value list_value(List l) { return {std::make_shared<const List>(std::move(l))}; }

const char* type_name(const Value& x) {
  constexpr const char* names[] = {"undefined", "none",   "a bool",    "an int",
                                   "text",      "a list", "a mapping", "loop"};
  return names[x.v.index()];
}

bool truthy(const Value& x) {
  if (const auto* b = x.as<bool>()) return *b;
  if (const auto* n = x.as<int64_t>()) return *n != 0;
  if (const auto* t = x.text()) return !t->empty();
  if (const auto* l = x.list()) return !l->empty();
  if (const auto* m = x.mapping()) return !m->empty();
  return x.as<Loop>();
}

// A bool counts as 0 or 1, as in Python.
std::optional<int64_t> as_int(const Value& x) {
  if (const auto* b = x.as<bool>()) return *b;
  if (const auto* n = x.as<int64_t>()) return *n;
  return std::nullopt;
}

bool equal(const Value& a, const Value& b) {
  if (as_int(a) && as_int(b)) return *as_int(a) == *as_int(b);
  if (a.v.index() != b.v.index()) return false;
  if (a.text()) return *a.text() == *b.text();
  if (a.list())
    return std::equal(a.list()->begin(), a.list()->end(), b.list()->begin(), b.list()->end(), equal);
  if (a.mapping())
    return std::equal(
        a.mapping()->begin(), a.mapping()->end(), b.mapping()->begin(), b.mapping()->end(),
        [](const auto& x, const auto& y) { return x.first == y.first && equal(x.second, y.second); });
  return true;  // both undefined, or both none
}

int64_t characters(const std::string& utf8) {
  return std::count_if(utf8.begin(), utf8.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xc0) != 0x80; });
}

class Renderer {
 public:
  Renderer(const std::string& where, Mapping variables) : where_(where) {
    scopes_.push_back(std::move(variables));
  }

  std::string run(const Block& all) {
    run_block(all);
    return std::move(out_);
  }

 private:
  template <class... Parts>
  [[noreturn]] void fail(int line, const Parts&... parts) const {
    LLATTE_FAIL(where_, ": line ", line, ": ", parts...);
  }
  void spend(int64_t n, int line) {
    if ((spent_ += n) > kBudget)
      fail(line, "rendering takes too long or makes too much text; the template is broken");
  }

  // ---- statements ---------------------------------------------------------------------------------------
  void run_block(const Block& block) {
    for (const Statement& s : block) run_statement(s);
  }

  void run_statement(const Statement& s) {
    spend(16, s.line);
    switch (s.kind) {
      case Statement::text: return write(s.text_or_name, s.line);
      case Statement::output: return write(shown(eval(*s.expr), s.line), s.line);
      case Statement::assign: scopes_.back()[s.text_or_name] = eval(*s.expr); return;
      case Statement::branch: return run_branch(s);
      case Statement::loop: return run_loop(s);
    }
  }

  void write(const std::string& text, int line) {
    spend(static_cast<int64_t>(text.size()), line);
    out_ += text;
  }

  void run_branch(const Statement& s) {
    for (const Branch& b : s.branches)
      if (!b.condition || truthy(eval(*b.condition))) return run_block(b.body);
  }

  // What the body sets is forgotten after each round.
  void run_loop(const Statement& s) {
    const Value over = eval(*s.expr);
    if (over.undefined()) return;
    if (!over.list()) fail(s.line, "a for over ", type_name(over), " is not supported");
    if (s.unpacks) fail(s.line, "a for with several variables is not supported");
    const List& items = *over.list();
    for (size_t i = 0; i < items.size(); ++i) {
      scopes_.emplace_back();
      scopes_.back()[s.text_or_name] = items[i];
      scopes_.back()["loop"] = {Loop{static_cast<int64_t>(i), static_cast<int64_t>(items.size())}};
      run_block(s.branches[0].body);
      scopes_.pop_back();
    }
  }

  // ---- expressions --------------------------------------------------------------------------------------
  Value eval(const Expr& e) {
    spend(16, e.line);
    switch (e.kind) {
      case Expr::text: return made(e.word, e.line);
      case Expr::integer: return {e.number};
      case Expr::truth: return {e.number != 0};
      case Expr::none: return {None{}};
      case Expr::name: return lookup(e);
      case Expr::list: return items(e);
      case Expr::attribute: return attribute(defined(eval(*e.parts[0]), e), e);
      case Expr::index: return element(e);
      case Expr::slice: return slice(e);
      case Expr::call: return call(e);
      case Expr::filter: return filter(e);
      case Expr::test: return {test(eval(*e.parts[0]), e)};
      case Expr::not_: return {!truthy(eval(*e.parts[0]))};
      case Expr::compare: return {compare_all(e)};
      case Expr::choice: return choice(e);
      case Expr::and_:
      case Expr::or_: return either(e);
      default: return arithmetic(e);
    }
  }

  // No list holds another: values stay shallow, so that walking one is cheap and safe.
  Value items(const Expr& e) {
    List all;
    for (const ExprPtr& p : e.parts) {
      all.push_back(eval(*p));
      if (all.back().list()) fail(e.line, "a list inside a list is not supported");
    }
    return list_value(std::move(all));
  }

  // Text of a template's making, paid for.
  Value made(std::string s, int line) {
    spend(static_cast<int64_t>(s.size()), line);
    return text_value(std::move(s));
  }

  Value lookup(const Expr& e) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (const auto found = scope->find(e.word); found != scope->end()) return found->second;
    return {Undefined{e.word}};
  }

  Value defined(Value x, const Expr& e) const {
    if (const auto* u = x.as<Undefined>()) fail(e.line, "'", printable(u->name), "' is undefined");
    return x;
  }

  Value member(const Value& x, const std::string& name, const Expr& e) const {
    if (const auto* loop = x.as<Loop>()) return of_loop(*loop, name, e);
    if (const Mapping* m = x.mapping())
      if (const auto found = m->find(name); found != m->end()) return found->second;
    return {Undefined{name}};
  }

  // Python's own attributes (text.strip, mapping.items) are not values here.
  Value attribute(const Value& x, const Expr& e) const {
    static const std::set<std::string> methods = {"clear", "copy",    "fromkeys",   "get",    "items", "keys",
                                                  "pop",   "popitem", "setdefault", "update", "values"};
    if (x.text() || x.list() || (x.mapping() && methods.count(e.word)))
      fail(e.line, "the attribute '", printable(e.word), "' of ", type_name(x), " is not supported");
    return member(x, e.word, e);
  }

  Value of_loop(const Loop& loop, const std::string& name, const Expr& e) const {
    if (name == "first") return {loop.index0 == 0};
    if (name == "last") return {loop.index0 + 1 == loop.length};
    if (name == "index") return {loop.index0 + 1};
    if (name == "index0") return {loop.index0};
    if (name == "length") return {loop.length};
    fail(e.line, "loop.", printable(name), " is not supported");
  }

  Value element(const Expr& e) {
    const Value x = defined(eval(*e.parts[0]), e), at = eval(*e.parts[1]);
    if (const std::string* name = at.text()) return member(x, *name, e);
    const auto n = as_int(at);
    if (!n || !x.list()) fail(e.line, type_name(x), " indexed by ", type_name(at), " is not supported");
    const auto size = static_cast<int64_t>(x.list()->size()), i = *n < 0 ? *n + size : *n;
    if (i < 0 || i >= size) return {Undefined{str("element ", *n, " of ", size)}};
    return (*x.list())[static_cast<size_t>(i)];
  }

  Value slice(const Expr& e) {
    const Value x = defined(eval(*e.parts[0]), e);
    if (!x.list()) fail(e.line, "a slice of ", type_name(x), " is not supported");
    const auto size = static_cast<int64_t>(x.list()->size());
    const auto bound = [&](const ExprPtr& p, int64_t open) {
      if (!p) return open;
      const Value v = eval(*p);
      const auto n = as_int(v);
      if (!n) fail(e.line, "the bound of a slice is ", type_name(v), ", not an int");
      return std::clamp<int64_t>(*n < 0 ? *n + size : *n, 0, size);
    };
    const int64_t first = bound(e.parts[1], 0), last = std::max(first, bound(e.parts[2], size));
    spend(16 * (last - first), e.line);
    return list_value(List(x.list()->begin() + first, x.list()->begin() + last));
  }

  Value call(const Expr& e) {
    const Expr& f = *e.parts[0];
    if (f.kind == Expr::attribute) return method(e, f);
    const std::string name = f.kind == Expr::name ? f.word : "";
    if (name != "raise_exception" || e.parts.size() != 2)
      fail(e.line, "the function '", printable(name), "' is not supported");
    fail(e.line, "the template refuses this conversation: ", shown(eval(*e.parts[1]), e.line));
  }

  Value method(const Expr& e, const Expr& f) {
    const Value x = defined(eval(*f.parts[0]), f);
    if (!x.text() || f.word != "strip" || e.parts.size() != 1)
      fail(e.line, "the method '", printable(f.word), "' of ", type_name(x), " is not supported");
    return made(std::string(strip(*x.text())), e.line);
  }

  Value filter(const Expr& e) {
    const Value x = eval(*e.parts[0]);
    const std::string& name = e.word;
    if (e.parts.size() > 1) fail(e.line, "arguments of the filter '", printable(name), "' are not supported");
    if (name == "trim") return made(std::string(strip(shown(x, e.line))), e.line);
    if (name == "upper" || name == "lower")
      return made(cased(shown(x, e.line), name == "upper", e.line), e.line);
    if (name == "length" || name == "count") return {length(x, e.line)};
    fail(e.line, "the filter '", printable(name), "' is not supported");
  }

  int64_t length(const Value& x, int line) const {
    if (x.undefined()) return 0;
    if (x.text()) return characters(*x.text());
    if (x.list()) return static_cast<int64_t>(x.list()->size());
    if (x.mapping()) return static_cast<int64_t>(x.mapping()->size());
    fail(line, type_name(x), " has no length");
  }

  std::string cased(std::string text, bool upper, int line) const {
    for (char& c : text) {
      if (c < 0) fail(line, "upper and lower of text that is not ASCII are not supported");
      if (upper ? 'a' <= c && c <= 'z' : 'A' <= c && c <= 'Z') c = static_cast<char>(c ^ 0x20);
    }
    return text;
  }

  bool test(const Value& x, const Expr& e) const {
    const std::string& name = e.word;
    if (e.parts.size() > 1) fail(e.line, "an argument of the test '", printable(name), "' is not supported");
    if (name == "defined") return !x.undefined();
    if (name == "undefined") return x.undefined();
    if (name == "none") return x.as<None>();
    if (name == "string") return x.text();
    if (name == "mapping") return x.mapping();
    if (name == "iterable") return x.text() || x.list() || x.mapping() || x.undefined() || x.as<Loop>();
    if (name == "true" || name == "false") return x.as<bool>() && *x.as<bool>() == (name == "true");
    fail(e.line, "the test '", printable(name), "' is not supported");
  }

  // The operand that decided, as in Python.
  Value either(const Expr& e) {
    Value first = eval(*e.parts[0]);
    return truthy(first) == (e.kind == Expr::or_) ? first : eval(*e.parts[1]);
  }

  Value choice(const Expr& e) {
    if (truthy(eval(*e.parts[0]))) return eval(*e.parts[1]);
    return e.parts[2] ? eval(*e.parts[2]) : Value{Undefined{"the missing else"}};
  }

  // a < b < c is a < b and b < c.
  bool compare_all(const Expr& e) {
    Value left = eval(*e.parts[0]);
    for (size_t i = 0; i < e.comparisons.size(); ++i) {
      Value right = eval(*e.parts[i + 1]);
      if (!compare(left, e.comparisons[i], right, e.line)) return false;
      left = std::move(right);
    }
    return true;
  }

  bool compare(const Value& a, const std::string& op, const Value& b, int line) {
    if (op == "==" || op == "!=") return (spend(size(a), line), equal(a, b)) == (op == "==");
    if (op == "in" || op == "not in") return contains(b, a, line) == (op == "in");
    int order = 0;  // the sign of a - b
    if (as_int(a) && as_int(b)) order = *as_int(a) < *as_int(b) ? -1 : *as_int(a) > *as_int(b);
    else if (a.text() && b.text()) order = a.text()->compare(*b.text());
    else fail(line, type_name(a), " ", op, " ", type_name(b), " has no meaning");
    return op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
  }

  // What looking at all of x costs.
  static int64_t size(const Value& x) {
    if (x.text()) return static_cast<int64_t>(x.text()->size());
    int64_t sum = 1;
    if (x.list())
      for (const Value& item : *x.list()) sum += size(item);
    if (x.mapping())
      for (const auto& [key, value] : *x.mapping()) sum += size(value);
    return sum;
  }

  bool contains(const Value& all, const Value& x, int line) {
    spend(size(all), line);
    if (all.undefined()) return false;
    if (all.text() && x.text()) return all.text()->find(*x.text()) != std::string::npos;
    if (all.mapping() && x.text()) return all.mapping()->count(*x.text());
    if (!all.list()) fail(line, type_name(x), " in ", type_name(all), " has no meaning");
    return std::any_of(all.list()->begin(), all.list()->end(), [&](const Value& y) { return equal(x, y); });
  }

  Value arithmetic(const Expr& e) {
    if (e.kind == Expr::negative) return negative(e);
    const Value a = eval(*e.parts[0]), b = eval(*e.parts[1]);
    if (e.kind == Expr::concat) return made(shown(a, e.line) + shown(b, e.line), e.line);
    defined(a, e), defined(b, e);
    if (e.kind == Expr::add && a.text() && b.text()) return made(*a.text() + *b.text(), e.line);
    const auto *x = a.as<int64_t>(), *y = b.as<int64_t>();
    const char* op = e.kind == Expr::add ? "+" : e.kind == Expr::subtract ? "-" : "%";
    if (!x || !y) fail(e.line, type_name(a), " ", op, " ", type_name(b), " is not supported");
    if (e.kind == Expr::modulo) return {modulo(*x, *y, e.line)};
    int64_t z;
    if (e.kind == Expr::add ? __builtin_add_overflow(*x, *y, &z) : __builtin_sub_overflow(*x, *y, &z))
      fail(e.line, *x, " ", op, " ", *y, " is beyond 64 bits");
    return {z};
  }

  Value negative(const Expr& e) {
    const Value x = defined(eval(*e.parts[0]), e);
    if (!x.as<int64_t>() || *x.as<int64_t>() == INT64_MIN)
      fail(e.line, "- of ", type_name(x), " is not supported");
    return {-*x.as<int64_t>()};
  }

  // With the sign of y, as in Python.
  int64_t modulo(int64_t x, int64_t y, int line) const {
    if (y == 0) fail(line, "division by zero");
    const int64_t r = y == -1 ? 0 : x % y;
    return r && (r < 0) != (y < 0) ? r + y : r;
  }

  // As {{ x }} prints it.
  std::string shown(const Value& x, int line) {
    if (x.text()) return *x.text();
    if (x.undefined()) return "";
    if (x.as<None>()) return "None";
    if (const auto* b = x.as<bool>()) return *b ? "True" : "False";
    if (const auto* n = x.as<int64_t>()) return std::to_string(*n);
    fail(line, type_name(x), " cannot be shown as text");
  }

  const std::string& where_;
  std::vector<Mapping> scopes_;  // the innermost last
  std::string out_;
  int64_t spent_ = 0;
};

Value messages_value(const std::vector<ChatMessage>& messages) {
  List all;
  for (const ChatMessage& m : messages) {
    Mapping one = {{"role", text_value(m.role)}, {"content", text_value(m.content)}};
    all.push_back({std::make_shared<const Mapping>(std::move(one))});
  }
  return list_value(std::move(all));
}

}  // namespace

std::string render_chat(const std::string& jinja, const std::vector<ChatMessage>& messages,
                        bool add_generation_prompt, const std::string& bos, const std::string& eos,
                        const std::string& where) {
  Mapping variables = {{"messages", messages_value(messages)},
                       {"add_generation_prompt", {add_generation_prompt}},
                       {"bos_token", text_value(bos)},
                       {"eos_token", text_value(eos)},
                       {"tools", {None{}}},
                       {"documents", {None{}}}};
  return Renderer(where, std::move(variables)).run(parse(jinja, where));
}

}  // namespace llatte
