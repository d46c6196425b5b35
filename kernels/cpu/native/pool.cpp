// See pool.h. One mutex and condition variable serve all waits: the fast path touches neither.
#include "pool.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ramet {

namespace {

constexpr auto kSpin = std::chrono::microseconds(8);  // about the imbalance of a phase; longer waits give the core away

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#else
    std::this_thread::yield();
#endif
}

}  // namespace

Team::Team(int threads) : threads_(threads) {
    try {
        for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { serve(i); });
    } catch (...) {
        over_ = true;
        advance(job_);
        for (auto &worker : workers_) worker.join();
        throw;
    }
}

Team::~Team() {
    over_ = true;
    advance(job_);
    for (auto &worker : workers_) worker.join();
}

void Team::serve(int thread) {
    for (uint64_t seen = 0;; seen++) {
        wait_beyond(job_, seen);
        if (over_) return;
        body_(context_, thread);
        meet(nullptr, nullptr);
    }
}

void Team::run(void (*body)(void *, int), void *context) {
    body_ = body;
    context_ = context;
    if (threads_ > 1) advance(job_);
    body(context, 0);
    meet(nullptr, nullptr);
}

int64_t Team::claim(int64_t unit) { return next_.fetch_add(unit, std::memory_order_relaxed); }

void Team::meet(void (*last)(void *), void *context) {
    const uint64_t seen = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads_) {
        wait_beyond(phase_, seen);
        return;
    }
    if (last) last(context);
    next_.store(0, std::memory_order_relaxed);
    arrived_.store(0, std::memory_order_relaxed);
    advance(phase_);
}

// Sequentially consistent on both sides: either the waiter sees the new count before it sleeps, or advance sees a
// sleeper and wakes it under the mutex.
void Team::advance(std::atomic<uint64_t> &counter) {
    counter.fetch_add(1);
    if (sleepers_.load() == 0) return;
    { const std::lock_guard<std::mutex> held(mutex_); }
    woken_.notify_all();
}

void Team::wait_beyond(const std::atomic<uint64_t> &counter, uint64_t seen) {
    const auto start = std::chrono::steady_clock::now();
    do {
        for (int i = 0; i < 32; i++) {
            if (counter.load(std::memory_order_acquire) != seen) return;
            pause();
        }
    } while (std::chrono::steady_clock::now() - start < kSpin);
    std::unique_lock<std::mutex> held(mutex_);
    sleepers_.fetch_add(1);
    woken_.wait(held, [&] { return counter.load() != seen; });
    sleepers_.fetch_sub(1);
}

}  // namespace ramet
