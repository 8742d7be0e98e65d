// Teams under test: meetings with checks in between, shared work, sleeping workers, times.
#include "team.h"

using namespace af;

struct Meeting {
    Team* team;
    long rounds;
    std::atomic<long> faults{0};
    std::atomic<long> arrived[2];
    long plain[64];  // written by one thread, read by the others after the barrier
};

static void meet(void* argument, int thread) {
    Meeting& m = *(Meeting*)argument;
    const int n = m.team->size();
    for (long round = 0; round < m.rounds; round++) {
        m.plain[thread] = round + thread;
        m.arrived[round & 1]++;
        m.team->barrier();
        if (m.arrived[round & 1] != n) m.faults++;
        for (int i = 0; i < n; i++)
            if (m.plain[i] != round + i) m.faults++;
        m.team->barrier();
        if (thread == 0) m.arrived[round & 1] = 0;
    }
}

extern "C" void* team_new(int n) { return new Team(n); }
extern "C" void team_delete(void* team) { delete (Team*)team; }

extern "C" long team_meet(void* team, long rounds) {
    Meeting m;
    m.team = (Team*)team;
    m.rounds = rounds;
    m.arrived[0] = m.arrived[1] = 0;
    if (!m.team->run(meet, &m)) return -1;
    return m.faults;
}

struct Pieces {
    WorkCounter counter;
    long count, step;
    std::atomic<int>* taken;
};

static void take_all(void* argument, int) {
    Pieces& p = *(Pieces*)argument;
    for (long i = p.counter.take(p.step); i < p.count; i = p.counter.take(p.step))
        for (long j = i; j < i + p.step && j < p.count; j++) p.taken[j]++;
}

// How many of `count` pieces were not taken exactly once.
extern "C" long team_pieces(void* team, long count, long step) {
    Pieces p;
    p.count = count;
    p.step = step;
    p.taken = new std::atomic<int>[size_t(count)]();
    ((Team*)team)->run(take_all, &p);
    long wrong = 0;
    for (long i = 0; i < count; i++) wrong += p.taken[i] != 1;
    delete[] p.taken;
    return wrong;
}

static void visit(void* argument, int thread) { ((std::atomic<long>*)argument)[thread]++; }

// Runs `runs` times with a pause in between; how many (thread, run) pairs were missed or doubled.
extern "C" long team_visits(void* team, long runs, long pause_us) {
    std::atomic<long> seen[64] = {};
    for (long i = 0; i < runs; i++) {
        ((Team*)team)->run(visit, seen);
        timespec pause{0, pause_us * 1000};
        if (pause_us > 0) nanosleep(&pause, nullptr);
    }
    long wrong = 0;
    for (int i = 0; i < 64; i++) wrong += seen[i] != (i < ((Team*)team)->size() ? runs : 0);
    return wrong;
}

static void nothing(void*, int) {}

extern "C" double team_run_ns(void* team, long runs) {
    const int64_t start = now_ns();
    for (long i = 0; i < runs; i++) ((Team*)team)->run(nothing, nullptr);
    return double(now_ns() - start) / double(runs);
}

static void only_meet(void* argument, int) {
    Meeting& m = *(Meeting*)argument;
    for (long i = 0; i < m.rounds; i++) m.team->barrier();
}

extern "C" double team_barrier_ns(void* team, long rounds) {
    Meeting m;
    m.team = (Team*)team;
    m.rounds = rounds;
    const int64_t start = now_ns();
    m.team->run(only_meet, &m);
    return double(now_ns() - start) / double(rounds);
}
