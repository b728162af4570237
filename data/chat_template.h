// The prompt of a conversation: what a model's chat template, written in Jinja2, makes of the messages. A
// small, honest subset (data/chat_template_parser.h): what is rendered is rendered as Jinja2 would inside
// transformers' apply_chat_template, and everything else is refused by name and line.
#pragma once
#include <string>
#include <vector>

namespace llatte {

struct ChatMessage {
  std::string role, content;  // system, user, assistant
};

// The template sees messages, add_generation_prompt, bos_token, eos_token, and tools and documents as none.
// strftime_now is not defined (a prompt is a function of the conversation): templates then use their own
// date. `where` opens the sentence of every Error. A template costs bounded time and memory.
std::string render_chat(const std::string& jinja, const std::vector<ChatMessage>& messages,
                        bool add_generation_prompt, const std::string& bos, const std::string& eos,
                        const std::string& where);

}  // namespace llatte
