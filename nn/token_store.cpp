// Layout of the groups, and lengths; the numbers move in kernels.
#include "nn/token_store.h"
#include <algorithm>
#include <numeric>
#include "tensor/kernels.h"  // read_rows, write_rows

namespace llatte {
namespace {

constexpr int32_t kGroup = 32;  // columns that share a scale

// Where groups begin, and at last where the row ends.
Tensor groups_of(const std::vector<int64_t>& sections) {
  std::vector<int32_t> at{0};
  for (const int64_t section : sections) {
    const auto end = at.back() + static_cast<int32_t>(section);
    while (at.back() < end) at.push_back(std::min(at.back() + kGroup, end));
  }
  return Tensor::from(at, {static_cast<int64_t>(at.size())});
}

DType float_type(CacheType t) {
  return t == CacheType::bf16 ? DType::bf16 : t == CacheType::f64 ? DType::f64 : DType::f32;
}

CacheRows make_rows(int64_t B, int64_t S, const std::vector<int64_t>& sections, CacheType t, Device d) {
  CacheRows r;
  r.W = std::accumulate(sections.begin(), sections.end(), int64_t(0));
  r.bits = t == CacheType::int8 ? 8 : t == CacheType::int4 ? 4 : 0;
  if (r.bits == 0) {
    r.data = Tensor::empty({B, S, r.W}, float_type(t), d);
    return r;
  }
  r.groups = groups_of(sections).to(d);
  r.data = Tensor::empty({B, S, (r.W * r.bits + 31) / 32}, DType::i32, d);
  r.scales = Tensor::empty({B, S, r.groups.numel() - 1}, DType::bf16, d);
  return r;
}

}  // namespace

TokenStore::TokenStore(int64_t B, int64_t S, const std::vector<int64_t>& sections, CacheType t, Device d)
    : rows_(make_rows(B, S, sections, t, d)), B_(B), capacity_(S) {}

void TokenStore::truncate(int64_t length) {
  LLATTE_CHECK(0 <= length && length <= length_, "cache: cannot truncate ", length_, " tokens to ", length);
  length_ = length;
}

int64_t TokenStore::bytes_per_token() const {
  const int64_t tokens = B_ * capacity_;
  const size_t bytes = rows_.data.bytes() + (rows_.bits ? rows_.scales.bytes() : 0);
  return tokens ? static_cast<int64_t>(bytes) / tokens : 0;
}

void TokenStore::append(const Tensor& x_BTW) {
  LLATTE_CHECK(x_BTW.ndim() == 3 && x_BTW.size(2) == rows_.W, "cache: rows are ", rows_.W,
               " numbers a token, given ", x_BTW.shape());
  LLATTE_CHECK(x_BTW.size(0) == B_, "cache: made for ", B_, " sequences, given ", x_BTW.size(0));
  const int64_t T = x_BTW.size(1);
  LLATTE_CHECK(length_ + T <= capacity_, "cache: ", length_, " tokens held and ", T,
               " new ones exceed its capacity of ", capacity_, "; make a larger cache");
  kernels::write_rows(x_BTW.contiguous(), length_, rows_);
  length_ += T;
}

Tensor TokenStore::read(DType t, const Shape& row) const {
  Shape all{B_, capacity_};
  all.insert(all.end(), row.begin(), row.end());
  LLATTE_CHECK(numel_of(row) == rows_.W, "cache: rows of ", rows_.W, " numbers cannot be read as ", row);
  if (rows_.bits == 0) return rows_.data.reshape(all).slice(1, 0, length_).to(t);
  Tensor y_BnW = Tensor::empty({B_, length_, rows_.W}, t, rows_.data.device());
  kernels::read_rows(rows_, y_BnW);
  all[1] = length_;
  return y_BnW.reshape(all);
}

}  // namespace llatte
