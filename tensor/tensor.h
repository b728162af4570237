// A Tensor is a cheap handle: (shared storage, offset, shape, strides, dtype, device).
//   1. Copying a Tensor never copies numbers. clone(), contiguous() and to() do.
//   2. Views (transpose, slice, reshape) are free and share storage; contiguity is computed, never stored.
//   3. data<T>() is for contiguous tensors of that very type and throws otherwise; ptr<T>() is for kernels
//   that
//      follow strides() themselves.
// Knows nothing of gradients: those are in autograd/.
#pragma once
#include <memory>
#include <span>
#include "tensor/check.h"
#include "tensor/device.h"
#include "tensor/dtype.h"

namespace llatte {

// Memory from the caching allocator, or borrowed from `owner` (a mapped file) and then read-only by
// agreement.
struct Storage {
  Storage(size_t bytes, Device device);
  Storage(void* borrowed, size_t bytes, std::shared_ptr<const void> owner);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* const block;
  const size_t bytes;
  const Device device;
  const std::shared_ptr<const void> owner;
};

class Tensor {
 public:
  Tensor() = default;  // undefined: "no tensor here", tested with defined()

  static Tensor empty(const Shape& shape, DType t = DType::f32, Device d = Device::cpu);
  static Tensor zeros(const Shape& shape, DType t = DType::f32, Device d = Device::cpu);
  static Tensor full(const Shape& shape, double value, DType t = DType::f32, Device d = Device::cpu);
  static Tensor empty_like(const Tensor& x) { return empty(x.shape(), x.dtype(), x.device()); }
  static Tensor zeros_like(const Tensor& x) { return zeros(x.shape(), x.dtype(), x.device()); }
  // Copies `values` (row-major) into a new CPU tensor.
  template <class T>
  static Tensor from(std::span<const T> values, const Shape& shape);
  template <class T>
  static Tensor from(const std::vector<T>& values, const Shape& shape) {
    return from(std::span<const T>(values), shape);
  }
  // Numbers that live elsewhere, kept alive by `owner`.
  static Tensor borrow(void* data, const Shape& shape, DType t, std::shared_ptr<const void> owner);

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  const Shape& strides() const { return strides_; }  // in elements
  int ndim() const { return static_cast<int>(shape_.size()); }
  int64_t size(int d) const { return shape_[d < 0 ? d + ndim() : d]; }
  int64_t stride(int d) const { return strides_[d < 0 ? d + ndim() : d]; }
  int64_t numel() const;
  size_t bytes() const { return static_cast<size_t>(numel()) * size_of(dtype_); }
  DType dtype() const { return dtype_; }
  Device device() const { return storage_ ? storage_->device : Device::cpu; }
  bool is_contiguous() const;
  // Nobody else can see these numbers: no other handle or view shares the storage, and it is not a mapped
  // file.
  bool is_sole_owner() const { return storage_.use_count() == 1 && !storage_->owner; }

  Tensor transpose(int a, int b) const;                     // swaps two dimensions
  Tensor slice(int dim, int64_t begin, int64_t end) const;  // [begin, end) of one dimension
  Tensor reshape(const Shape& shape) const;                 // contiguous only; one entry may be -1
  Tensor contiguous() const;                                // itself if contiguous, else a copy
  Tensor clone() const;                                     // always a copy, contiguous
  Tensor to(DType t) const;                                 // itself if already t, else a cast copy
  Tensor to(Device d) const;                                // itself if already there, else a contiguous copy
  void copy_from(const Tensor& x);  // in place; same shape, any dtype, strides and device
  void zero();                      // in place; contiguous only

  double item() const;  // the only element, any dtype; waits for the device
  template <class T>
  std::vector<T> to_vector() const;  // row-major copy on the host; dtype must be T's

  template <class T>
  T* data() {
    LLATTE_CHECK(is_contiguous(), "data(): call contiguous() first, strides ", strides_,
                 " do not match shape ", shape_);
    return ptr<T>();
  }
  template <class T>
  const T* data() const {
    return const_cast<Tensor*>(this)->data<T>();
  }
  template <class T>
  T* ptr() {
    LLATTE_CHECK(defined(), "data of a tensor that was never set");
    LLATTE_CHECK(dtype_ == dtype_of<T>(), "data(): tensor holds ", name(dtype_), ", asked for ",
                 name(dtype_of<T>()));
    return static_cast<T*>(storage_->block) + offset_;
  }
  template <class T>
  const T* ptr() const {
    return const_cast<Tensor*>(this)->ptr<T>();
  }
  void* raw() {
    return static_cast<char*>(storage_->block) + offset_ * static_cast<int64_t>(size_of(dtype_));
  }
  const void* raw() const { return const_cast<Tensor*>(this)->raw(); }

 private:
  std::shared_ptr<Storage> storage_;
  int64_t offset_ = 0;  // elements
  Shape shape_, strides_;
  DType dtype_ = DType::f32;
};

// Product of the entries; refuses negative ones and overflow.
int64_t numel_of(const Shape& shape);

}  // namespace llatte
