// Streams and events, for the runtime's functions.
#pragma once
#include <chrono>
#include <deque>
#include "machine.h"

namespace cuda_on_cpu {

struct Stream;
struct Point {  // in the work of a stream: the first `count` items
  std::shared_ptr<Stream> stream;
  uint64_t count = 0;
  bool passed() const;
};
struct Item {
  Work work;  // may be empty: only waits
  std::vector<Point> after;
  std::function<bool()> ready;  // what another process has to do first; empty: nothing
};
struct Stream {
  bool blocking;  // waits for the null stream, and the other way round
  std::deque<Item> queue;
  uint64_t enqueued, done;
};
inline bool Point::passed() const { return !stream || stream->done >= count; }

Point now(cudaStream_t stream);
void enqueue_after(cudaStream_t stream, std::vector<Point> after, Work work,
                   std::function<bool()> ready = {});
void wait_until(const Point& point);
void progress();  // one item of any stream if one may run, for those who poll
cudaStream_t new_stream(bool blocking);
void delete_stream(cudaStream_t stream);

}  // namespace cuda_on_cpu

struct CUstream_st {
  std::shared_ptr<cuda_on_cpu::Stream> stream;
};
struct CUevent_st {
  cuda_on_cpu::Point point;
  std::shared_ptr<std::chrono::steady_clock::time_point> time;
};
