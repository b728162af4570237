// NCCL for the ranks of one machine, through memory that they share.
//   1. Every rank has a slot there. A collective is cut into pieces that fit; for each, a rank puts its part
//      into its slot, and when all have done so takes what it is to get from the slots, sums in the order of
//      ranks. Both are work of the stream that waits for the others without holding up other streams.
//   2. The memory has no name: the unique id says which process holds it open, so nothing is left behind
//      whoever is killed.
//   3. Pointers are checked when they are passed; that all ranks ask for the same when they meet.
#include <fcntl.h>
#include <nccl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include "streams.h"

using namespace cuda_on_cpu;

namespace {

constexpr int kMaxRanks = 16;
constexpr size_t kSlot = size_t(1) << 16;
constexpr int kMagic = 0x6c6c6e63;

enum class Kind { all_reduce, reduce_scatter, all_gather, broadcast };
constexpr const char* kNames[] = {"ncclAllReduce", "ncclReduceScatter", "ncclAllGather", "ncclBroadcast"};

struct Call {  // what all ranks have to say alike
  Kind kind;
  ncclDataType_t type;
  size_t count;
  int root;
  bool operator==(const Call&) const = default;
};

// ---- the memory that ranks share
struct Place {
  std::atomic<uint64_t> put, taken;  // pieces
  Call call;                         // of the piece in the slot
  alignas(64) char slot[kSlot];
};
struct Shared {
  std::atomic<int> attached;
  Place places[kMaxRanks];  // of absent ranks: never touched, so they take no memory
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

struct Id {
  int magic, process, file;
};

class Group {
 public:
  // Null `shared`: the memory is not to be had.
  Group(const Id& id, int size) : size(size) {
    const std::string path = sentence("/proc/", id.process, "/fd/", id.file);
    const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (file < 0) return;
    void* at = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (at != MAP_FAILED) shared = static_cast<Shared*>(at);
  }
  ~Group() {
    if (shared) munmap(shared, sizeof(Shared));
  }
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  Place& place(int rank) const { return shared->places[rank]; }
  bool all_have(std::atomic<uint64_t> Place::*what, uint64_t pieces) const {
    for (int r = 0; r < size; ++r)
      if ((place(r).*what).load(std::memory_order_acquire) < pieces) return false;
    return true;
  }

  const int size;
  Shared* shared = nullptr;
  bool aborted = false;
};

// ---- one collective
size_t item_of(ncclDataType_t type) { return type == ncclFloat64 ? 8 : type == ncclBfloat16 ? 2 : 4; }

struct Operation {
  Call call;
  const char* send;
  char* receive;
  std::shared_ptr<Group> group;
  int rank;

  size_t item() const { return item_of(call.type); }
  size_t parts() const { return call.kind == Kind::reduce_scatter ? size_t(group->size) : 1; }
  size_t piece() const { return kSlot / item() / parts(); }  // numbers of a part that go at once
};

std::string text(const Call& c) {
  return sentence(kNames[int(c.kind)], " of ", c.count, " numbers of type ", int(c.type),
                  c.kind == Kind::broadcast ? sentence(" from rank ", c.root) : "");
}

void put(const Operation& o, size_t begin, size_t n) {
  Place& mine = o.group->place(o.rank);
  mine.call = o.call;
  const bool speaks = o.call.kind != Kind::broadcast || o.call.root == o.rank;
  for (size_t q = 0; speaks && q < o.parts(); ++q)
    memcpy(mine.slot + q * n * o.item(), o.send + (q * o.call.count + begin) * o.item(), n * o.item());
  mine.put.fetch_add(1, std::memory_order_release);
}

template <class T>
void add_up(const Operation& o, size_t first, size_t begin, size_t n) {
  T* out = reinterpret_cast<T*>(o.receive) + begin;
  for (size_t i = 0; i < n; ++i) {
    T sum = 0;
    for (int r = 0; r < o.group->size; ++r)
      sum += reinterpret_cast<const T*>(o.group->place(r).slot)[first + i];
    out[i] = sum;
  }
}

void check_same(const Operation& o) {
  for (int r = 0; r < o.group->size; ++r)
    if (const Call& other = o.group->place(r).call; !(other == o.call))
      throw Fault(sentence("NCCL: rank ", o.rank, " asks for ", text(o.call), " where rank ", r, " asks for ",
                           text(other)));
}

void take(const Operation& o, size_t begin, size_t n) {
  check_same(o);
  const size_t first = o.call.kind == Kind::reduce_scatter ? size_t(o.rank) * n : 0;
  const auto copy = [&](int r, size_t to) {
    memcpy(o.receive + to * o.item(), o.group->place(r).slot, n * o.item());
  };
  if (o.call.kind == Kind::all_gather) {
    for (int r = 0; r < o.group->size; ++r) copy(r, size_t(r) * o.call.count + begin);
  } else if (o.call.kind == Kind::broadcast) {
    copy(o.call.root, begin);
  } else if (o.call.type == ncclFloat64) {
    add_up<double>(o, first, begin, n);
  } else {
    add_up<float>(o, first, begin, n);
  }
  o.group->place(o.rank).taken.fetch_add(1, std::memory_order_release);
}

}  // namespace

struct ncclComm {
  std::shared_ptr<Group> group;
  int rank;
  uint64_t pieces = 0;  // asked for so far
  Point last{};         // collectives of a group go in order, whatever their streams
};

namespace {

void enqueue_piece(ncclComm& comm, const Operation& o, size_t begin, size_t n, cudaStream_t stream) {
  const auto& group = o.group;
  const auto step = [&](std::atomic<uint64_t> Place::*what, uint64_t pieces, const Work& work) {
    enqueue_after(
        stream, {comm.last},
        [group, work] {
          if (!group->aborted) work();
        },
        [group, what, pieces] { return group->aborted || group->all_have(what, pieces); });
    comm.last = now(stream);
  };
  step(&Place::taken, comm.pieces, [=] { put(o, begin, n); });  // of the piece before this
  step(&Place::put, ++comm.pieces, [=] { take(o, begin, n); });
}

// In place where NCCL allows it, else apart.
void check_apart(const Operation& o, size_t sends, size_t receives) {
  const size_t item = o.item(), mine = size_t(o.rank) * o.call.count * item;
  const char* in_place = o.call.kind == Kind::all_gather       ? o.receive + mine
                         : o.call.kind == Kind::reduce_scatter ? o.receive - mine
                                                               : o.receive;
  const bool apart = o.send + sends * item <= o.receive || o.receive + receives * item <= o.send;
  if (!apart && o.send != in_place)
    throw Fault(sentence(text(o.call), ": the numbers sent and those received overlap"));
}

ncclResult_t ask(Kind kind, const void* send, void* receive, size_t count, ncclDataType_t type, int root,
                 ncclComm_t comm, cudaStream_t stream) {
  const auto guard = lock();
  const bool sums = kind == Kind::all_reduce || kind == Kind::reduce_scatter;
  if (!comm || root < 0 || root >= comm->group->size) return ncclInvalidArgument;
  if (sums && type != ncclFloat32 && type != ncclFloat64) return ncclInvalidArgument;  // others: unused
  const auto ranks = size_t(comm->group->size);
  const size_t sends = count * (kind == Kind::reduce_scatter ? ranks : 1);
  const size_t receives = count * (kind == Kind::all_gather ? ranks : 1);
  const Operation o{{kind, type, count, root},
                    static_cast<const char*>(send),
                    static_cast<char*>(receive),
                    comm->group,
                    comm->rank};
  check_device_range(text(o.call) + ", what is sent", send, sends * o.item());
  check_device_range(text(o.call) + ", what is received", receive, receives * o.item());
  check_apart(o, sends, receives);
  for (size_t begin = 0; begin < count; begin += o.piece())
    enqueue_piece(*comm, o, begin, std::min(o.piece(), count - begin), stream);
  return keep_up(stream), ncclSuccess;
}

}  // namespace

const char* ncclGetErrorString(ncclResult_t result) {
  switch (result) {
    case ncclSuccess: return "no error";
    case ncclSystemError: return "unhandled system error";
    case ncclInvalidArgument: return "invalid argument";
    case ncclInvalidUsage: return "invalid usage";
    default: return "unknown result code";
  }
}

// ---- groups
ncclResult_t ncclGetUniqueId(ncclUniqueId* out) {
  const int file = memfd_create("cuda_on_cpu nccl", MFD_CLOEXEC);  // open until this process has joined
  if (file < 0 || ftruncate(file, sizeof(Shared)) != 0) return ncclSystemError;
  const Id id{kMagic, getpid(), file};
  *out = {};
  return memcpy(out, &id, sizeof id), ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t* comm, int ranks, ncclUniqueId unique, int rank) {
  Id id;
  memcpy(&id, &unique, sizeof id);
  if (id.magic != kMagic || rank < 0 || rank >= ranks || ranks > kMaxRanks) return ncclInvalidArgument;
  auto group = std::make_shared<Group>(id, ranks);
  if (!group->shared) return ncclSystemError;
  const int before = group->shared->attached.fetch_add(1);
  if (before >= ranks) return ncclInvalidUsage;
  while (group->shared->attached < ranks) std::this_thread::sleep_for(std::chrono::microseconds(100));
  if (rank == 0 && id.process == getpid()) close(id.file);
  return *comm = new ncclComm{group, rank}, ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
  const auto guard = lock();
  wait_until(comm->last);
  return delete comm, ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t comm) {
  const auto guard = lock();
  comm->group->aborted = true;
  return delete comm, ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* error) {
  return *error = ncclSuccess, ncclSuccess;
}

// ---- collectives
ncclResult_t ncclAllReduce(const void* send, void* receive, size_t count, ncclDataType_t type, ncclRedOp_t,
                           ncclComm_t comm, cudaStream_t stream) {
  return ask(Kind::all_reduce, send, receive, count, type, 0, comm, stream);
}
ncclResult_t ncclReduceScatter(const void* send, void* receive, size_t receive_count, ncclDataType_t type,
                               ncclRedOp_t, ncclComm_t comm, cudaStream_t stream) {
  return ask(Kind::reduce_scatter, send, receive, receive_count, type, 0, comm, stream);
}
ncclResult_t ncclAllGather(const void* send, void* receive, size_t send_count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
  return ask(Kind::all_gather, send, receive, send_count, type, 0, comm, stream);
}
ncclResult_t ncclBroadcast(const void* send, void* receive, size_t count, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream) {
  return ask(Kind::broadcast, send, receive, count, type, root, comm, stream);
}
