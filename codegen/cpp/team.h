// In: a number of threads. Out: af::Team, which runs one function on all of them, the caller included, and lets
// them meet inside it; af::WorkCounter, which hands out pieces of work.
//
// Waiting is the same everywhere: spin for about 50 us, then give the processor away a few times, then sleep in the
// kernel. So a meeting costs 0.1 us on idle processors and nothing stalls with fewer processors than threads.
// Threads are started by the first run and kept. After a fork the child starts its own. Nothing is pinned.
#pragma once

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace af {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield" ::: "memory");
#endif
}

inline int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

// A number that only grows; threads wait for it to move on.
class alignas(64) Gate {
  public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }

    void advance() {
        value_.fetch_add(1);               // sequentially consistent: a sleeper either sees the new value
        if (sleepers_.load() > 0) wake();  // or is counted here
    }

    void wait_past(uint32_t seen) {
        if (!spin(seen) && !yield(seen)) sleep(seen);
    }

  private:
    static constexpr int64_t kSpinNs = 50000;
    static constexpr int kYields = 32;

    bool spin(uint32_t seen) const {
        for (int i = 0; i < 64; i++) {
            if (value() != seen) return true;
            relax();
        }
        const int64_t end = now_ns() + kSpinNs;
        do {
            for (int i = 0; i < 32; i++) {
                if (value() != seen) return true;
                relax();
            }
        } while (now_ns() < end);
        return false;
    }

    bool yield(uint32_t seen) const {
        for (int i = 0; i < kYields; i++) {
            if (value() != seen) return true;
            sched_yield();
        }
        return false;
    }

    void sleep(uint32_t seen) {
        sleepers_.fetch_add(1);
        while (value_.load() == seen) {
#if defined(__linux__)
            syscall(SYS_futex, &value_, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
            timespec pause{0, 50000};
            nanosleep(&pause, nullptr);
#endif
        }
        sleepers_.fetch_sub(1);
    }

    void wake() {
#if defined(__linux__)
        syscall(SYS_futex, &value_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#endif
    }

    std::atomic<uint32_t> value_{0};
    std::atomic<int32_t> sleepers_{0};
};

// The function of a run: its argument, and which of the threads 0..size()-1 it is on. It must not throw and not run
// the same team again.
typedef void (*TeamFunction)(void* argument, int thread);

class Team {
  public:
    explicit Team(int threads) : size_(threads < 1 ? 1 : threads > kMost ? kMost : threads) {}
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    ~Team() {
        if (state_ == nullptr || owner_ != getpid()) return;  // a forked child owns no threads; their state is let go
        state_->stop = true;
        state_->start.advance();
        for (int i = 1; i < size_; i++) pthread_join(state_->seats[i].handle, nullptr);
        delete state_;
    }

    int size() const { return size_; }

    // Runs function(argument, 0..size()-1), each on a thread, and returns when all have ended. Calls from several
    // threads take turns. False where the threads could not be started: nothing has been run then.
    bool run(TeamFunction function, void* argument) {
        if (size_ == 1) {
            function(argument, 0);
            return true;
        }
        std::lock_guard<std::mutex> turn(turn_);
        if (!ready()) return false;
        State& s = *state_;
        s.function = function;
        s.argument = argument;
        s.running.store(size_ - 1, std::memory_order_relaxed);
        const uint32_t before = s.done.value();
        s.start.advance();
        function(argument, 0);
        s.done.wait_past(before);
        return true;
    }

    // Inside a run: every thread waits here until all have come. What each wrote before is seen by all after.
    void barrier() {
        if (size_ == 1) return;
        State& s = *state_;
        const uint32_t before = s.meeting.value();
        if (s.arrived.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
            s.arrived.store(0, std::memory_order_relaxed);
            s.meeting.advance();
        } else {
            s.meeting.wait_past(before);
        }
    }

  private:
    static constexpr int kMost = 256;
    struct State;
    struct Seat {
        State* state;
        int thread;
        pthread_t handle;
    };
    struct State {
        Gate start, done, meeting;
        alignas(64) std::atomic<int> arrived{0};
        alignas(64) std::atomic<int> running{0};
        alignas(64) TeamFunction function = nullptr;
        void* argument = nullptr;
        bool stop = false;
        Seat seats[kMost];
    };

    static void* work(void* place) {
        Seat& seat = *static_cast<Seat*>(place);
        State& s = *seat.state;
        for (uint32_t seen = 0;; seen++) {
            s.start.wait_past(seen);
            if (s.stop) return nullptr;
            s.function(s.argument, seat.thread);
            if (s.running.fetch_sub(1, std::memory_order_acq_rel) == 1) s.done.advance();
        }
    }

    bool ready() {
        if (state_ != nullptr && owner_ == getpid()) return true;
        state_ = new (std::nothrow) State;
        if (state_ == nullptr) return false;
        owner_ = getpid();
        return start_threads();
    }

    bool start_threads() {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);  // signals belong to the program's own threads
        int started = 1;
        for (; started < size_; started++) {
            Seat& seat = state_->seats[started];
            seat.state = state_;
            seat.thread = started;
            if (pthread_create(&seat.handle, nullptr, work, &seat) != 0) break;
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        if (started == size_) return true;
        state_->stop = true;
        state_->start.advance();
        for (int i = 1; i < started; i++) pthread_join(state_->seats[i].handle, nullptr);
        delete state_;
        state_ = nullptr;
        return false;
    }

    const int size_;
    pid_t owner_ = 0;
    State* state_ = nullptr;
    std::mutex turn_;
};

// Hands out 0, step, 2 step, ... to whoever asks first.
class alignas(64) WorkCounter {
  public:
    long take(long step = 1) { return next_.fetch_add(step, std::memory_order_relaxed); }
    void reset() { next_.store(0, std::memory_order_relaxed); }

  private:
    std::atomic<long> next_{0};
};

}  // namespace af
