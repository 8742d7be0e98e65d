// Packing core: the problem as the C++ parts hold it. greedy.cpp, search.cpp and eject.cpp are compiled after it, as one.
//
// In: items with sizes, alignments, pins and runs of sections (see problem.py); pairs to keep apart. Out: a Handle.

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

using Value = int64_t;
enum Result { kFail = 0, kFound = 1, kLimit = 2 };
enum Rule {
  kSections = 1, kMonotone = 2, kUnplacedFloor = 4, kDominance = 8, kSplit = 16, kHatless = 32, kTwins = 64, kNiche = 128,
  kWeights = 256, kNogoods = 512
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Scatters a number over 64 bits (the last step of splitmix64).
uint64_t mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return x ^ (x >> 31);
}

struct Pinned {
  Value low, high;
};

struct Problem {
  int n, sections;
  std::vector<Value> size, align, pin;
  std::vector<int> run_start, run_low, run_high;       // runs of item i: run_start[i] .. run_start[i+1]
  std::vector<int> hull_low, hull_high;                // first and last section of an item
  std::vector<std::vector<int>> neighbours;            // free items that must not share bytes with a free item
  std::vector<std::vector<int>> members;               // free items of a section
  std::vector<std::vector<Pinned>> obstacles;          // pinned ranges an item must avoid, by offset
  std::vector<std::vector<Pinned>> pins_of;            // pinned ranges of a section, by offset
  bool apart = false;
};

Value round_up(Value value, Value align) {
  return align == 1 ? value : (value + align - 1) / align * align;
}

// The lowest place of item i at or above `low` that avoids pinned items.
Value lift(const Problem& p, int i, Value low) {
  Value at = round_up(low, p.align[i]);
  for (const Pinned& o : p.obstacles[i])
    if (at < o.high && at + p.size[i] > o.low) at = round_up(o.high, p.align[i]);
  return at;
}

// Items overlapping in time are found by buckets of sections.
struct Buckets {
  int width;
  std::vector<std::vector<int>> held;
  explicit Buckets(const Problem& p, bool wanted = true) : width(1) {
    if (!wanted) return;
    int64_t sum = 0;
    for (int i = 0; i < p.n; ++i) sum += p.hull_high[i] - p.hull_low[i];
    width = std::max<int>(1, static_cast<int>(sum / std::max(1, p.n)));
    held.resize(p.sections / width + 1);
  }
  void add(const Problem& p, int i) {
    if (p.hull_low[i] >= p.hull_high[i]) return;
    for (int b = p.hull_low[i] / width; b <= (p.hull_high[i] - 1) / width; ++b) held[b].push_back(i);
  }
};

bool overlap(const Problem& p, int a, int b) {
  if (p.hull_low[a] >= p.hull_high[b] || p.hull_low[b] >= p.hull_high[a]) return false;
  for (int r = p.run_start[a]; r < p.run_start[a + 1]; ++r)
    for (int q = p.run_start[b]; q < p.run_start[b + 1]; ++q)
      if (p.run_low[r] < p.run_high[q] && p.run_low[q] < p.run_high[r]) return true;
  return false;
}

struct Handle {
  Problem p;
  std::vector<std::pair<int, int>> apart;
  bool linked = false;
  std::vector<int64_t> weight;                         // failures of each section so far: looked at first
  std::vector<uint64_t> nogoods;                       // keys of parts known to have no packing, by their low bits
  std::vector<uint64_t> item_key, section_key;
  bool pins = false, one_run = true;                   // some item is pinned; none lives in several runs
  double near = 0;                                     // items that overlap an item, on average

  // Whether one look at all items is cheaper than finding and sorting those that overlap one.
  bool crowded() const { return near * 12 > p.n; }

  void count() {
    std::vector<int> begin(p.sections + 1, 0), end(p.sections + 1, 0);
    for (int i = 0; i < p.n; ++i) {
      ++begin[p.hull_low[i]];
      ++end[p.hull_high[i]];
      pins = pins || p.pin[i] >= 0;
      one_run = one_run && p.run_start[i + 1] - p.run_start[i] <= 1;
    }
    double live = 0;
    for (int s = 0; s <= p.sections; ++s) {
      live -= end[s];
      near += 2.0 * live * begin[s] + static_cast<double>(begin[s]) * begin[s];
      live += begin[s];
    }
    near /= std::max(1, p.n);
  }

  // Neighbour lists, members of sections and obstacles: only the search needs them.
  void link() {
    if (linked) return;
    linked = true;
    weight.assign(p.sections, 1);
    for (int s = 0; s < p.sections; ++s) section_key.push_back(mix(s) | 1);
    for (int i = 0; i < p.n; ++i)
      item_key.push_back(mix(mix(mix(p.size[i]) ^ static_cast<uint64_t>(p.hull_low[i])) ^ static_cast<uint64_t>(p.hull_high[i])));
    p.neighbours.resize(p.n);
    p.members.resize(p.sections);
    p.obstacles.resize(p.n);
    p.pins_of.resize(p.sections);
    for (int i = 0; i < p.n; ++i)
      for (int r = p.run_start[i]; r < p.run_start[i + 1]; ++r)
        for (int s = p.run_low[r]; s < p.run_high[r]; ++s) {
          if (p.pin[i] < 0) p.members[s].push_back(i);
          else p.pins_of[s].push_back({p.pin[i], p.pin[i] + p.size[i]});
        }
    Buckets buckets(p);
    std::vector<int> seen(p.n, -1);
    for (int i = 0; i < p.n; ++i) {
      if (p.hull_low[i] >= p.hull_high[i]) continue;
      for (int b = p.hull_low[i] / buckets.width; b <= (p.hull_high[i] - 1) / buckets.width; ++b)
        for (int j : buckets.held[b])
          if (seen[j] != i) {
            seen[j] = i;
            if (overlap(p, i, j)) join(i, j);
          }
      buckets.add(p, i);
    }
    for (auto [a, b] : apart)
      if (!overlap(p, a, b)) join(a, b);
    auto lower = [](const Pinned& a, const Pinned& b) { return std::make_pair(a.low, a.high) < std::make_pair(b.low, b.high); };
    for (auto& o : p.obstacles) std::sort(o.begin(), o.end(), lower);
    for (auto& o : p.pins_of) std::sort(o.begin(), o.end(), lower);
    for (auto& list : p.neighbours) std::sort(list.begin(), list.end());
    p.apart = !apart.empty();
  }

  void join(int a, int b) {
    if (p.pin[a] < 0 && p.pin[b] < 0) {
      p.neighbours[a].push_back(b);
      p.neighbours[b].push_back(a);
    } else if (p.pin[a] < 0) {
      p.obstacles[a].push_back({p.pin[b], p.pin[b] + p.size[b]});
    } else if (p.pin[b] < 0) {
      p.obstacles[b].push_back({p.pin[a], p.pin[a] + p.size[a]});
    }
  }
};

}  // namespace

extern "C" {

void* adaflex_pack_new(int n, int sections, const int64_t* size, const int64_t* align, const int64_t* pin,
                       const int32_t* run_start, const int32_t* run_low, const int32_t* run_high, int pairs,
                       const int32_t* pair) {
  Handle* h = new Handle;
  Problem& p = h->p;
  p.n = n;
  p.sections = sections;
  p.size.assign(size, size + n);
  p.align.assign(align, align + n);
  p.pin.assign(pin, pin + n);
  p.run_start.assign(run_start, run_start + n + 1);
  p.run_low.assign(run_low, run_low + run_start[n]);
  p.run_high.assign(run_high, run_high + run_start[n]);
  p.hull_low.assign(n, 0);
  p.hull_high.assign(n, 0);
  for (int i = 0; i < n; ++i) {
    if (run_start[i] < run_start[i + 1]) {
      p.hull_low[i] = run_low[run_start[i]];
      p.hull_high[i] = run_high[run_start[i + 1] - 1];
    }
  }
  h->count();
  for (int k = 0; k < pairs; ++k) h->apart.push_back({pair[2 * k], pair[2 * k + 1]});
  return h;
}

void adaflex_pack_free(void* handle) { delete static_cast<Handle*>(handle); }

// Forget which sections failed.
void adaflex_pack_reset(void* handle) {
  Handle* h = static_cast<Handle*>(handle);
  std::fill(h->weight.begin(), h->weight.end(), 1);
}

}  // extern "C"
