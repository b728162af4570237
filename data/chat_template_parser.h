// Tokens -> the tree of a template. The subset of Jinja2 that chat templates are made of:
//   text  {{ expr }}  {% for x in expr %}  {% if %} {% elif %} {% else %}  {% set x = expr %}
//   literals (strings, integers, true, false, none, lists), names, a.b, a['b'], a[0], a[1:], f(x), a |
//   filter, a is [not] test, + - % ~, == != < > <= >= in, not in, and, or, not, a if b else c
// Other tags and operators are refused here by name and line; unknown filters, tests and functions when they
// are reached, as many templates name some for tools that a plain conversation never calls.
// Precedence is Jinja's, from loose to tight: if-else, or, and, not, comparisons, + -, ~, %, unary -, | and
// is.
#pragma once
#include <memory>
#include "data/chat_template_lexer.h"

namespace llatte::jinja {

// No tree is deeper, so walking one by recursion is safe whatever the template.
constexpr int kMaxDepth = 100;

struct Expr {
  enum Kind {
    text,
    integer,
    truth,
    none,
    name,
    list,
    attribute,
    index,
    slice,
    call,
    filter,
    test,
    negative,
    not_,
    and_,
    or_,
    compare,
    add,
    subtract,
    modulo,
    concat,
    choice
  };
  Kind kind = none;
  int line = 0, depth = 1;
  std::string word;    // text, or the name of the variable, attribute, filter or test
  int64_t number = 0;  // integer; truth: 0 or 1
  // list: its items. attribute, filter, test: the subject, then arguments. index: subject, index. slice:
  // subject, first, last (null: open). call: what is called, then arguments. choice: condition, then, else
  // (may be null).
  std::vector<std::unique_ptr<Expr>> parts;
  std::vector<std::string> comparisons;  // parts[0] comparisons[0] parts[1] comparisons[1] parts[2] ...
};
using ExprPtr = std::unique_ptr<Expr>;

struct Statement;
using Block = std::vector<Statement>;

struct Branch {
  ExprPtr condition;  // null: else
  Block body;
};

struct Statement {
  enum Kind { text, output, loop, branch, assign };
  Kind kind;
  int line;
  std::string text_or_name;      // text; loop and assign: the variable
  bool unpacks = false;          // loop over several variables at once
  ExprPtr expr;                  // output, loop, assign
  std::vector<Branch> branches;  // branch; a loop has one
};

Block parse(const std::string& source, const std::string& where);

}  // namespace llatte::jinja
