// config.json, field by field: values by their type, and Errors that name file, field and value.
#pragma once
#include <string>
#include <vector>
#include "data/json.h"
#include "tensor/check.h"

namespace llatte {

// The value as an Error shows it.
inline std::string shown(const nlohmann::json& v) {
  return printable(v.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
}

// A field that is absent or null takes its default.
class Fields {
  using json = nlohmann::json;

 public:
  Fields(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    LLATTE_CHECK(object_.is_object(), where_, " must be a JSON object, it is ", shown(object_));
  }

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }
  const json& at(const char* key) const { return object_.at(key); }

  int64_t integer(const char* key) const {
    LLATTE_CHECK(has(key), where_, ": ", key, " is missing");
    return integer_of(key, object_.at(key));
  }
  int64_t integer(const char* key, int64_t otherwise) const { return has(key) ? integer(key) : otherwise; }

  double number(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    LLATTE_CHECK(object_.at(key).is_number(), where_, ": ", key, " is ", shown(object_.at(key)),
                 ", expected a number");
    return object_.at(key).get<double>();
  }

  bool flag(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    LLATTE_CHECK(object_.at(key).is_boolean(), where_, ": ", key, " is ", shown(object_.at(key)),
                 ", expected true or false");
    return object_.at(key).get<bool>();
  }

  std::string text(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    LLATTE_CHECK(object_.at(key).is_string(), where_, ": ", key, " is ", shown(object_.at(key)),
                 ", expected a string");
    return object_.at(key).get<std::string>();
  }

  // Token ids may be one number or a list; a negative one means there is none.
  std::vector<int64_t> ids(const char* key) const {
    std::vector<int64_t> r;
    if (!has(key)) return r;
    const json& v = object_.at(key);
    for (const json& id : v.is_array() ? v : json::array({v}))
      if (const int64_t n = integer_of(key, id); n >= 0) r.push_back(n);
    return r;
  }

  const std::string& where() const { return where_; }

 private:
  int64_t integer_of(const char* key, const json& v) const {
    const bool fits =
        v.is_number_integer() && !(v.is_number_unsigned() && v.get<uint64_t>() > uint64_t(INT64_MAX));
    LLATTE_CHECK(fits, where_, ": ", key, " is ", shown(v), ", expected an integer");
    return v.get<int64_t>();
  }

  const json& object_;
  std::string where_;
};

}  // namespace llatte
