// Threads that share one computation. In: a function for all threads. Out: it has run on each of them. Inside it, claim
// and claim_near hand out indices and meet is a barrier; who waits spins for a while, then yields, then blocks.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace ramet {

struct Indices {
    int64_t first, last;  // first..last-1
};

class Team {
   public:
    explicit Team(int threads);  // the caller of run is one of them; throws std::system_error
    ~Team();
    Team(const Team &) = delete;
    Team &operator=(const Team &) = delete;

    int threads() const { return threads_; }
    // body(context, thread) on every thread, 0 being the caller's; returns when all are done.
    void run(void (*body)(void *, int), void *context);
    // The first of `unit` indices that nobody else has in this phase.
    int64_t claim(int64_t unit);
    // Up to `unit` of `count` indices that nobody else has in this phase, none when all are taken. Each thread has a
    // stretch of its own and helps others when that is done: memory that it reads in one go comes up to twice as fast
    // as pieces that alternate with another thread's.
    Indices claim_near(int thread, int64_t count, int64_t unit);
    // Wait for all threads. The last one to arrive calls `last` (null: nothing) before any of them goes on.
    void meet(void (*last)(void *), void *context);

   private:
    void serve(int thread);
    void wait_beyond(const std::atomic<uint64_t> &counter, uint64_t seen, std::chrono::microseconds patience);
    void advance(std::atomic<uint64_t> &counter);

    struct alignas(64) Stretch {
        std::atomic<int64_t> taken{0};
    };

    const int threads_;
    std::vector<std::thread> workers_;
    std::vector<Stretch> stretches_;
    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint64_t> phase_{0}, job_{0};
    alignas(64) std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable woken_;
    void (*body_)(void *, int) = nullptr;
    void *context_ = nullptr;
    std::atomic<bool> over_{false};
};

}  // namespace ramet
