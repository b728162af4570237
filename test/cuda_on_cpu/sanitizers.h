// AddressSanitizer and ThreadSanitizer have to be told when a program changes its stack.
#pragma once
#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace cuda_on_cpu {

struct FiberShadow {
  const void* bottom = nullptr;
  size_t size = 0;
  void* handle = nullptr;  // ASan: the fake stack; TSan: the fiber
};

#if defined(__SANITIZE_ADDRESS__)
inline void new_stack(FiberShadow& f, const void* bottom, size_t size) { f = {bottom, size, nullptr}; }
inline void remember_os_stack(FiberShadow& f) {
  thread_local const FiberShadow own = [] {
    pthread_attr_t attributes;
    void* bottom = nullptr;
    size_t size = 0;
    pthread_getattr_np(pthread_self(), &attributes);
    pthread_attr_getstack(&attributes, &bottom, &size);
    pthread_attr_destroy(&attributes);
    return FiberShadow{bottom, size, nullptr};
  }();
  f = own;
}
inline void start_switch(FiberShadow& from, const FiberShadow& to) {
  __sanitizer_start_switch_fiber(&from.handle, to.bottom, to.size);
}
inline void finish_switch(FiberShadow& now) { __sanitizer_finish_switch_fiber(now.handle, nullptr, nullptr); }
#elif defined(__SANITIZE_THREAD__)
inline void new_stack(FiberShadow& f, const void*, size_t) {
  if (!f.handle) f.handle = __tsan_create_fiber(0);
}
inline void remember_os_stack(FiberShadow& f) { f.handle = __tsan_get_current_fiber(); }
inline void start_switch(FiberShadow&, const FiberShadow& to) { __tsan_switch_to_fiber(to.handle, 0); }
inline void finish_switch(FiberShadow&) {}
#else
inline void new_stack(FiberShadow&, const void*, size_t) {}
inline void remember_os_stack(FiberShadow&) {}
inline void start_switch(FiberShadow&, const FiberShadow&) {}
inline void finish_switch(FiberShadow&) {}
#endif

}  // namespace cuda_on_cpu
