// Zero-shot multiple choice by summed log-likelihood, as lm-eval does it: every choice is scored as the
// continuation " " + choice of its context.
//   acc       the most likely choice is the label
//   acc_norm  the same after dividing by the choice's length in characters
// Of equally good choices the first counts.
#pragma once
#include <filesystem>
#include <string>
#include <vector>
#include "data/tokenizer.h"
#include "eval/score.h"

namespace llatte {

struct ChoiceItem {
  std::string context;
  std::vector<std::string> choices;
  int64_t label = 0;
  std::string where;  // file:line, for error messages
};

// A jsonl file of {context, choices, label}; other keys and blank lines are passed over. What is wrong with a
// line is an Error that names it.
std::vector<ChoiceItem> read_choice_items(const std::filesystem::path& file);

// Context and continuation as one sequence: spaces at the end of the context go to the continuation, whose
// tokens are those that context + continuation has beyond the context's own number. A context that is empty
// (or all spaces) is the prefix token. Longer than window + 1: the left is cut.
struct ChoiceTokens {
  std::vector<int32_t> tokens;
  int64_t scored = 0;  // index of the continuation's first token
};
ChoiceTokens encode_choice(const Tokenizer& tokenizer, int32_t prefix_token, const std::string& context,
                           const std::string& continuation, int64_t window);

struct ChoiceScore {
  std::vector<double> loglikelihoods;
  bool acc = false, acc_norm = false;
};
struct Choices {
  double acc = 0, acc_norm = 0;  // means over items
  std::vector<ChoiceScore> items;
  double seconds = 0;
};

// window: tokens the model reads at most.
Choices score_choices(Llama& model, const Tokenizer& tokenizer, int32_t prefix_token,
                      const std::vector<ChoiceItem>& items, int64_t window, const ScoreSettings& s = {});

}  // namespace llatte
