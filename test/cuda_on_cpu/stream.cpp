// Streams that really are asynchronous: what is enqueued runs when somebody waits for it, not before, and
// work of other streams runs before, after or between as the seed decides, unless an event orders it.
//   1. The null stream waits for all blocking streams, and they for it, as CUDA's legacy default stream does.
//   2. After a fault all that was still waiting is dropped: the context of a GPU would be lost too.
//   3. Where all that is left waits for other processes, the caller naps, and another thread of its process
//      may play the device meanwhile.
//   4. CUDA_LAUNCH_BLOCKING=1 runs everything at once, as with the real driver: for gdb.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <deque>
#include <thread>
#include "machine.h"
#include "streams.h"

namespace cuda_on_cpu {
namespace {

constexpr size_t kDepth = 1024;  // work that may wait; a driver's queue is as long, roughly

struct Streams {
  std::shared_ptr<Stream> null = std::make_shared<Stream>(Stream{true, {}, 0, 0});
  std::vector<std::shared_ptr<Stream>> all{null};
  Random random{seed()};
  size_t waiting = 0;
  bool blocking = std::getenv("CUDA_LAUNCH_BLOCKING") && std::getenv("CUDA_LAUNCH_BLOCKING")[0] == '1';
};
Streams& streams() {
  static auto* s = new Streams;
  return *s;
}

bool its_turn(const Stream& s) {
  return !s.queue.empty() && std::all_of(s.queue.front().after.begin(), s.queue.front().after.end(),
                                         [](const Point& p) { return p.passed(); });
}

void drop_everything() {
  for (const auto& s : streams().all) {
    s->done = s->enqueued;
    s->queue.clear();
  }
  streams().waiting = 0;
}

void run_front(Stream& s) {
  const Item item = std::move(s.queue.front());
  s.queue.pop_front();
  --streams().waiting;
  ++s.done;  // also where it throws
  if (item.work) item.work();
}

// False: all that has its turn waits for other processes.
bool run_one() {
  std::vector<Stream*> able;
  bool waits = false;
  for (const auto& s : streams().all) {
    if (!its_turn(*s)) continue;
    const Item& front = s->queue.front();
    if (!front.ready || front.ready()) able.push_back(s.get());
    else waits = true;
  }
  if (able.empty() && waits) return false;
  if (able.empty()) throw Fault("cuda_on_cpu: streams wait for one another in a circle");
  run_front(*able[streams().random.below(able.size())]);
  return true;
}

template <class Run>
void or_drop_everything(Run&& run) {
  const DeviceAccess access;
  try {
    run();
  } catch (...) {
    drop_everything();
    throw;
  }
}

void nap() {
  device_lock().nap([] { std::this_thread::sleep_for(std::chrono::microseconds(100)); });
}

template <class Finished>
void run_until(Finished&& finished) {
  if (finished()) return;
  or_drop_everything([&] {
    while (!finished())
      if (!run_one()) nap();
  });
}

}  // namespace

std::shared_ptr<Stream> stream_of(cudaStream_t handle) { return handle ? handle->stream : streams().null; }

Point now(cudaStream_t handle) {
  const auto s = stream_of(handle);
  return {s, s->enqueued};
}

void enqueue_after(cudaStream_t handle, std::vector<Point> after, Work work, std::function<bool()> ready) {
  const auto stream = stream_of(handle);
  if (!handle) {
    for (const auto& s : streams().all)
      if (s != stream && s->blocking) after.push_back({s, s->enqueued});
  } else if (stream->blocking) {
    after.push_back({streams().null, streams().null->enqueued});
  }
  stream->queue.push_back({std::move(work), std::move(after), std::move(ready)});
  ++stream->enqueued;
  ++streams().waiting;
}

void enqueue(cudaStream_t handle, Work work) { enqueue_after(handle, {}, std::move(work)); }

void keep_up(cudaStream_t handle) {
  if (streams().blocking) return wait_for(handle);
  if (streams().waiting > kDepth) run_until([] { return streams().waiting <= kDepth / 2; });
}

void wait_until(const Point& point) {
  run_until([&] { return point.passed(); });
}
void wait_for(cudaStream_t handle) { wait_until(now(handle)); }
void wait_for_everything() {
  run_until([] { return streams().waiting == 0; });
}

void progress() {
  if (streams().waiting > 0) or_drop_everything(run_one);
}

cudaStream_t new_stream(bool blocking) {
  auto s = std::make_shared<Stream>(Stream{blocking, {}, 0, 0});
  streams().all.push_back(s);
  return new CUstream_st{s};
}

void delete_stream(cudaStream_t handle) {
  wait_for(handle);
  auto& all = streams().all;
  all.erase(std::find(all.begin(), all.end(), handle->stream));
  delete handle;
}

uint64_t seed() {
  static const uint64_t value = [] {
    const char* text = std::getenv("LLATTE_CUDA_SEED");
    return text ? std::strtoull(text, nullptr, 10) : 0;
  }();
  return value;
}

DeviceLock& device_lock() {
  static auto* lock = new DeviceLock;
  return *lock;
}

}  // namespace cuda_on_cpu
