#include "tensor/tensor.h"
#include "tensor/alloc.h"
#include "tensor/cuda.h"
#include "tensor/kernels.h"  // copy, fill

namespace llatte {

Storage::Storage(size_t n, Device d) : block(allocate(n, d)), bytes(n), device(d) {}
Storage::Storage(void* borrowed, size_t n, std::shared_ptr<const void> who)
    : block(borrowed), bytes(n), device(Device::cpu), owner(std::move(who)) {}
Storage::~Storage() {
  if (!owner) release(block, bytes, device);
}

int64_t numel_of(const Shape& shape) {
  int64_t n = 1;
  for (int64_t s : shape) {
    LLATTE_CHECK(s >= 0, "tensor: shape ", shape, " has a negative entry");
    LLATTE_CHECK(!__builtin_mul_overflow(n, s, &n), "tensor: shape ", shape,
                 " has more elements than fit in 63 bits");
  }
  return n;
}

namespace {
Shape row_major(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (int i = static_cast<int>(shape.size()) - 2; i >= 0; --i) strides[i] = strides[i + 1] * shape[i + 1];
  return strides;
}
}  // namespace

Tensor Tensor::empty(const Shape& shape, DType t, Device d) {
  const int64_t n = numel_of(shape);
  int64_t bytes = 0;
  LLATTE_CHECK(!__builtin_mul_overflow(n, static_cast<int64_t>(size_of(t)), &bytes), "tensor: shape ", shape,
               " of ", llatte::name(t), " has more bytes than fit in 63 bits");
  Tensor r;
  r.shape_ = shape;
  r.strides_ = row_major(shape);
  r.dtype_ = t;
  r.storage_ = std::make_shared<Storage>(static_cast<size_t>(bytes), d);
  return r;
}

Tensor Tensor::full(const Shape& shape, double value, DType t, Device d) {
  Tensor r = empty(shape, t, d);
  kernels::fill(r, value);
  return r;
}

Tensor Tensor::zeros(const Shape& shape, DType t, Device d) { return full(shape, 0, t, d); }

Tensor Tensor::borrow(void* data, const Shape& shape, DType t, std::shared_ptr<const void> owner) {
  LLATTE_CHECK(owner, "tensor: borrowed memory needs an owner");
  Tensor r;
  r.shape_ = shape;
  r.strides_ = row_major(shape);
  r.dtype_ = t;
  r.storage_ =
      std::make_shared<Storage>(data, static_cast<size_t>(numel_of(shape)) * size_of(t), std::move(owner));
  return r;
}

template <class T>
Tensor Tensor::from(std::span<const T> values, const Shape& shape) {
  LLATTE_CHECK(static_cast<int64_t>(values.size()) == numel_of(shape), "tensor: ", values.size(),
               " values given for shape ", shape);
  Tensor r = empty(shape, dtype_of<T>());
  std::copy(values.begin(), values.end(), r.data<T>());
  return r;
}
template Tensor Tensor::from(std::span<const float>, const Shape&);
template Tensor Tensor::from(std::span<const bf16>, const Shape&);
template Tensor Tensor::from(std::span<const double>, const Shape&);
template Tensor Tensor::from(std::span<const int32_t>, const Shape&);

int64_t Tensor::numel() const {
  int64_t n = 1;
  for (int64_t s : shape_) n *= s;
  return n;
}

bool Tensor::is_contiguous() const {
  int64_t expect = 1;
  for (int i = ndim() - 1; i >= 0; --i) {
    if (shape_[i] != 1 && strides_[i] != expect) return numel() == 0;
    expect *= shape_[i];
  }
  return true;
}

Tensor Tensor::transpose(int a, int b) const {
  if (a < 0) a += ndim();
  if (b < 0) b += ndim();
  LLATTE_CHECK(a >= 0 && b >= 0 && a < ndim() && b < ndim(), "transpose: dimensions ", a, " and ", b,
               " of a tensor of shape ", shape_);
  Tensor r = *this;
  std::swap(r.shape_[a], r.shape_[b]);
  std::swap(r.strides_[a], r.strides_[b]);
  return r;
}

Tensor Tensor::slice(int dim, int64_t begin, int64_t end) const {
  if (dim < 0) dim += ndim();
  LLATTE_CHECK(dim >= 0 && dim < ndim(), "slice: dimension ", dim, " of a tensor of shape ", shape_);
  LLATTE_CHECK(0 <= begin && begin <= end && end <= shape_[dim], "slice: [", begin, ",", end,
               ") of dimension ", dim, " of a tensor of shape ", shape_);
  Tensor r = *this;
  r.offset_ += begin * strides_[dim];
  r.shape_[dim] = end - begin;
  return r;
}

Tensor Tensor::reshape(const Shape& wanted) const {
  LLATTE_CHECK(is_contiguous(), "reshape: call contiguous() first, strides ", strides_,
               " do not match shape ", shape_);
  Shape shape = wanted;
  int64_t known = 1, open = -1;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == -1 && open < 0) open = static_cast<int64_t>(i);
    else known *= shape[i];
  }
  if (open >= 0 && known > 0) shape[open] = numel() / known;
  LLATTE_CHECK(numel_of(shape) == numel(), "reshape: ", shape_, " has ", numel(),
               " elements, which do not fill ", wanted);
  Tensor r = *this;
  r.shape_ = shape;
  r.strides_ = row_major(shape);
  return r;
}

Tensor Tensor::contiguous() const { return is_contiguous() ? *this : clone(); }

Tensor Tensor::clone() const {
  Tensor r = empty_like(*this);
  kernels::copy(*this, r);
  return r;
}

Tensor Tensor::to(DType t) const {
  if (t == dtype_) return *this;
  Tensor r = empty(shape_, t, device());
  kernels::copy(*this, r);
  return r;
}

// The bytes cross contiguous; casts and strides are the business of the side that has them.
Tensor Tensor::to(Device d) const {
  if (d == device()) return *this;
  const Tensor from = contiguous();
  Tensor r = empty(shape_, dtype_, d);
  if (d == Device::cuda) cuda::upload(r.raw(), from.raw(), bytes());
  else cuda::download(r.raw(), from.raw(), bytes());
  return r;
}

void Tensor::copy_from(const Tensor& x) {
  LLATTE_CHECK(x.shape() == shape_, "copy_from: ", x.shape(), " does not fit ", shape_);
  kernels::copy(x.to(device()), *this);
}

void Tensor::zero() { kernels::fill(*this, 0); }

double Tensor::item() const {
  LLATTE_CHECK(numel() == 1, "item: a tensor of shape ", shape_, " has ", numel(), " elements, not one");
  double v = 0;
  const Tensor here = to(Device::cpu);
  dispatch_any(dtype_, "item", [&]<class T>() { v = static_cast<double>(*here.ptr<T>()); });
  return v;
}

template <class T>
std::vector<T> Tensor::to_vector() const {
  const Tensor c = to(Device::cpu).contiguous();
  return std::vector<T>(c.data<T>(), c.data<T>() + c.numel());
}
template std::vector<float> Tensor::to_vector() const;
template std::vector<bf16> Tensor::to_vector() const;
template std::vector<double> Tensor::to_vector() const;
template std::vector<int32_t> Tensor::to_vector() const;

}  // namespace llatte
