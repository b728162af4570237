// Absorbed decoding: all H heads (and the T new tokens) score the same stream of rows, so they are the rows
// of one tile of queries, and the value columns of a tile are read right after its key columns, from cache
// (attention_decode.h: parts of the context, merged in their order). q is made f32 (f64 for proofs) once;
// rows are read as they are kept.
#include "tensor/cuda/attention_decode.h"

namespace llatte::cuda {
namespace {

// f(view) with view(begin, width): those columns of the rows, as kernels read them.
template <class F>
void dispatch_rows(const CacheRows& rows, F&& f) {
  if (rows.bits == 8)
    return f([&](int64_t begin, int64_t width) { return code_rows<8>(rows, begin, width); });
  if (rows.bits == 4)
    return f([&](int64_t begin, int64_t width) { return code_rows<4>(rows, begin, width); });
  dispatch_float(rows.data.dtype(), "latent_attention", [&]<class R>() {
    f([&](int64_t begin, int64_t width) {
      return rows_at(rows.data.ptr<R>() + begin, rows.data.stride(0), rows.data.stride(1), 1, 1, width);
    });
  });
}

}  // namespace

void latent_attention(const Tensor& q, const CacheRows& rows, int64_t S, double scale, int64_t v0,
                      Tensor& o) {
  if (q.numel() == 0) return;
  const AttentionSizes z = attention_sizes(q.size(1), S, q.size(2), 1);
  dispatch_float(q.dtype(), "latent_attention", [&]<class T>() {
    using A = acc_t<T>;
    const Tensor wide = q.to(dtype_of<A>());
    dispatch_rows(rows, [&](const auto& view) {
      decode<T, A>("latent_attention", z, wide, view(0, q.size(3)), view(v0, o.size(3)), A(scale), o,
                   static_cast<A*>(nullptr));
    });
  });
}

}  // namespace llatte::cuda
