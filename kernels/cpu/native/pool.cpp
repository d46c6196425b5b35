// See pool.h. One mutex and condition variable serve all waits: the fast path touches neither.
#include "pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ramet {

namespace {

// A wait spins at first, then asks the kernel again and again whether somebody else wants the core, then sleeps: to be
// woken costs some 50 us, of which a forward of one token with its 150 phases cannot afford many.
constexpr auto kSpin = std::chrono::microseconds(8);
constexpr auto kYield = std::chrono::microseconds(150);  // more than the imbalance of any phase of a small batch

void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");  // "yield" does nothing on most of these CPUs
#else
    std::this_thread::yield();
#endif
}

}  // namespace

Team::Team(int threads) : threads_(threads), stretches_(static_cast<size_t>(threads)) {
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
        wait_beyond(job_, seen, kSpin);
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

Indices Team::claim_near(int thread, int64_t count, int64_t unit) {
    for (int i = 0; i < threads_; i++) {
        const int owner = (thread + i) % threads_;
        const int64_t first = count * owner / threads_, last = count * (owner + 1) / threads_;
        std::atomic<int64_t> &taken = stretches_[static_cast<size_t>(owner)].taken;
        if (taken.load(std::memory_order_relaxed) >= last - first) continue;
        const int64_t at = first + taken.fetch_add(unit, std::memory_order_relaxed);
        if (at < last) return {at, at + unit < last ? at + unit : last};
    }
    return {count, count};
}

void Team::meet(void (*last)(void *), void *context) {
    const uint64_t seen = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 < threads_) {
        wait_beyond(phase_, seen, kYield);
        return;
    }
    if (last) last(context);
    next_.store(0, std::memory_order_relaxed);
    for (Stretch &stretch : stretches_) stretch.taken.store(0, std::memory_order_relaxed);
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

void Team::wait_beyond(const std::atomic<uint64_t> &counter, uint64_t seen, std::chrono::microseconds patience) {
    const auto start = std::chrono::steady_clock::now();
    for (auto waited = start - start; waited < patience; waited = std::chrono::steady_clock::now() - start) {
        for (int i = 0; i < 32; i++) {
            if (counter.load(std::memory_order_acquire) != seen) return;
            pause();
        }
        if (waited > kSpin) std::this_thread::yield();
    }
    std::unique_lock<std::mutex> held(mutex_);
    sleepers_.fetch_add(1);
    woken_.wait(held, [&] { return counter.load() != seen; });
    sleepers_.fetch_sub(1);
}

}  // namespace ramet
