// Depth-first search for a packing within a capacity (compiled after core.cpp, as one).
//
// In: a Handle of core.cpp, ranks of its items, limits, rules. Out: offsets, none, or a limit.
// twin.py holds the same search in Python, statement by statement: both visit the same nodes in the same order.
// A placement is canonical when each item lies on what was placed before it, in order of (offset, rank); every
// packing can be pushed down into one. The niche search needs plain items (one run, no pin, no alignment): it takes the
// section that can be filled in the fewest ways, wherever it is, and tries each item that can lie on its floor, then
// leaving space there. Sections that failed before come first, as weights on them grow.

namespace {

struct Change {
  Value* where;
  Value before;
};

class Search {
 public:
  Search(Handle& h, const int* rank, Value capacity, int64_t nodes, double deadline, int rules)
      : h_(h), p_(h.p), rank_(rank), capacity_(capacity), limit_(nodes), deadline_(deadline), rules_(rules),
        low_(p_.n), at_(p_.n, -1), floor_(p_.sections, 0), total_(p_.sections, 0), cross_(p_.sections + 1, 0),
        witness_(p_.sections, -1), twin_(p_.n, -1), weight_(h.weight) {
    const Problem& p = p_;
    has_pins_ = h.pins;
    step_ = rules & kWeights ? 1 : 0;
    if (rules & kNogoods && rules & kNiche && h.nogoods.empty()) h.nogoods.assign(kSlots, 0);
    if (p.apart) rules_ &= ~kSplit;
    for (int i = 0; i < p.n; ++i) {
      if (p.pin[i] >= 0) { at_[i] = p.pin[i]; continue; }
      low_[i] = lift(p, i, 0);
      for (int r = p.run_start[i]; r < p.run_start[i + 1]; ++r)
        for (int s = p.run_low[r]; s < p.run_high[r]; ++s) total_[s] += p.size[i];
      for (int b = p.hull_low[i] + 1; b < p.hull_high[i]; ++b) ++cross_[b];
    }
    if (rules_ & kTwins) find_twins();
  }

  Result run() {
    std::vector<int> all;
    for (int i = 0; i < p_.n; ++i)
      if (p_.pin[i] < 0) {
        if (low_[i] + p_.size[i] > capacity_) return kFail;
        all.push_back(i);
      }
    if ((rules_ & kSections) && !sections_hold(0, p_.sections, 0)) return kFail;
    return solve_parts(all, 0, p_.sections, -1, -1, true);
  }

  int64_t nodes() const { return nodes_; }
  const std::vector<Value>& places() const { return at_; }

 private:
  bool same(int a, int b) const {
    if (p_.size[a] != p_.size[b] || p_.align[a] != p_.align[b]) return false;
    int ra = p_.run_start[a], rb = p_.run_start[b], count = p_.run_start[a + 1] - ra;
    if (p_.run_start[b + 1] - rb != count) return false;
    for (int k = 0; k < count; ++k)
      if (p_.run_low[ra + k] != p_.run_low[rb + k] || p_.run_high[ra + k] != p_.run_high[rb + k]) return false;
    return true;
  }

  // Equal items are placed in order of rank: the one before must be placed first.
  void find_twins() {
    if (p_.apart) return;
    std::vector<int> order(p_.n);
    for (int i = 0; i < p_.n; ++i) order[i] = i;
    auto key = [&](int i) { return std::make_pair(p_.hull_low[i], p_.size[i]); };
    std::sort(order.begin(), order.end(), [&](int a, int b) {
      return std::make_pair(key(a), rank_[a]) < std::make_pair(key(b), rank_[b]);
    });
    for (int k = 0; k < p_.n; ++k) {
      int i = order[k];
      if (p_.pin[i] >= 0) continue;
      for (int m = k - 1; m >= 0 && key(order[m]) == key(i); --m)
        if (p_.pin[order[m]] < 0 && same(order[m], i)) { twin_[i] = order[m]; break; }
    }
  }

  void set(Value& where, Value value) {
    trail_.push_back({&where, where});
    where = value;
  }

  void undo(size_t mark) {
    while (trail_.size() > mark) {
      *trail_.back().where = trail_.back().before;
      trail_.pop_back();
    }
  }

  // Bytes of pinned items in section s at or above `floor`.
  Value pinned_above(int s, Value floor) const {
    Value sum = 0;
    for (const Pinned& o : p_.pins_of[s]) sum += std::max<Value>(0, o.high - std::max(o.low, floor));
    return sum;
  }

  bool sections_hold(int low, int high, Value monotone) {
    const Value* floor = floor_.data();
    const Value* total = total_.data();
    Value worst = 0;
    for (int s = low; s < high; ++s) worst = std::max(worst, std::max(floor[s], monotone) + total[s]);
    if (worst > capacity_) {
      for (int s = low; s < high; ++s)
        if (std::max(floor[s], monotone) + total[s] > capacity_) { weight_[s] += step_; break; }
      return false;
    }
    if (!has_pins_) return true;
    for (int s = low; s < high; ++s) {
      Value base = std::max(floor[s], monotone);
      if (total[s] && base + total[s] + pinned_above(s, base) > capacity_) return false;
    }
    return true;
  }

  // Some unplaced item of each section must be able to start so low that the rest still fits above it.
  bool witnessed(int low, int high) {
    for (int s = low; s < high; ++s) {
      if (!total_[s]) continue;
      Value most = capacity_ - total_[s];
      int w = witness_[s];
      if (w >= 0 && at_[w] < 0 && low_[w] <= most) continue;
      w = -1;
      for (int m : p_.members[s])
        if (at_[m] < 0 && low_[m] <= most) { w = m; break; }
      if (w < 0) { weight_[s] += step_; return false; }
      witness_[s] = w;
    }
    return true;
  }

  bool place(int i, int low, int high, bool* raised) {
    Value at = low_[i], top = at + p_.size[i];
    int first = p_.hull_low[i], last = p_.hull_high[i];
    set(at_[i], at);
    for (int r = p_.run_start[i]; r < p_.run_start[i + 1]; ++r)
      for (int s = p_.run_low[r]; s < p_.run_high[r]; ++s) {
        set(total_[s], total_[s] - p_.size[i]);
        set(floor_[s], top);
      }
    for (int b = first + 1; b < last; ++b) set(cross_[b], cross_[b] - 1);
    bool fits = true;
    *raised = false;
    for (int j : p_.neighbours[i]) {
      if (at_[j] >= 0 || low_[j] >= top) continue;
      *raised = true;
      set(low_[j], lift(p_, j, top));
      if (low_[j] + p_.size[j] > capacity_) {
        if (fits) weight_[p_.hull_low[j]] += step_;
        fits = false;
      }
      first = std::min(first, p_.hull_low[j]);
      last = std::max(last, p_.hull_high[j]);
    }
    if (!fits) return false;
    if ((rules_ & kSections) && !sections_hold(low, high, (rules_ & kMonotone) && !(rules_ & kNiche) ? at : 0)) return false;
    return !(rules_ & kUnplacedFloor) || witnessed(first, last);
  }

  // Solve `items` (all within sections low..high) after the placement (offset, rank); splits at free borders.
  Result solve_parts(const std::vector<int>& items, int low, int high, Value offset, int rank, bool split) {
    if (items.empty()) return kFound;
    if (!split || !(rules_ & kSplit)) return solve(items, low, high, offset, rank);
    std::vector<std::pair<int, int>> ranges;
    int start = low;
    for (int b = low + 1; b <= high; ++b)
      if (b == high || cross_[b] == 0) { ranges.push_back({start, b}); start = b; }
    if (ranges.size() == 1) return solve(items, low, high, offset, rank);
    std::vector<int> part_of(high - low);
    for (size_t k = 0; k < ranges.size(); ++k)
      for (int s = ranges[k].first; s < ranges[k].second; ++s) part_of[s - low] = static_cast<int>(k);
    std::vector<std::vector<int>> parts(ranges.size());
    for (int i : items) parts[part_of[p_.hull_low[i] - low]].push_back(i);
    std::vector<int> order(ranges.size());
    for (size_t k = 0; k < order.size(); ++k) order[k] = static_cast<int>(k);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return parts[a].size() < parts[b].size(); });
    for (int k : order) {
      if (parts[k].empty()) continue;
      Result result = solve(parts[k], ranges[k].first, ranges[k].second, offset, rank);
      if (result != kFound) return result;
    }
    return kFound;
  }

  Result solve(const std::vector<int>& items, int low, int high, Value offset, int rank) {
    if (rules_ & kNiche) return solve_niche(items, low, high);
    Value cut = capacity_;
    if (rules_ & kDominance)
      for (int i : items) cut = std::min(cut, low_[i] + p_.size[i]);
    std::vector<std::pair<Value, int>> candidates;
    for (int i : items) {
      if (low_[i] >= cut || low_[i] < offset || (low_[i] == offset && rank_[i] < rank)) continue;
      if (twin_[i] >= 0 && at_[twin_[i]] < 0) continue;
      candidates.push_back({low_[i], i});
    }
    std::sort(candidates.begin(), candidates.end(), [&](const auto& a, const auto& b) {
      return a.first != b.first ? a.first < b.first : rank_[a.second] < rank_[b.second];
    });
    std::vector<int> rest;
    for (const auto& [at, i] : candidates) {
      bool raised = false;
      Result result = descend(i, items, low, high, at, rank_[i], &rest, &raised);
      if (result != kFail) return result;
      if ((rules_ & kHatless) && !raised) break;
    }
    return kFail;
  }

  // Place item i at its floor and solve the rest after (offset, rank); all is undone where that fails.
  Result descend(int i, const std::vector<int>& items, int low, int high, Value offset, int rank,
                 std::vector<int>* rest, bool* raised) {
    if (++nodes_ > limit_ || ((nodes_ & 31) == 0 && now() > deadline_)) return kLimit;
    size_t mark = trail_.size();
    if (place(i, low, high, raised)) {
      rest->clear();
      for (int j : items)
        if (j != i) rest->push_back(j);
      bool split = false;
      for (int b = std::max(low + 1, p_.hull_low[i]); b <= std::min(high - 1, p_.hull_high[i]); ++b)
        if (cross_[b] == 0) split = true;
      Result result = solve_parts(*rest, low, high, offset, rank, split);
      if (result != kFail) return result;
    }
    undo(mark);
    return kFail;
  }

  // The branching section: among runs of equal floor lower than both sides, the section that the fewest items can
  // fill. Whatever covers it at its floor lies wholly in the run, so nothing below it is lost.
  int choose(const std::vector<int>& items, int low, int high) {
    count_.assign(high - low + 1, 0);
    for (int i : items) {
      if (low_[i] != floor_[p_.hull_low[i]]) continue;  // it would rest on a neighbour of the run
      ++count_[p_.hull_low[i] - low];
      --count_[p_.hull_high[i] - low];
    }
    int sum = 0;
    for (int s = low; s < high; ++s) {
      sum += count_[s - low];
      count_[s - low] = sum;
    }
    int best = -1;
    double best_score = 0;
    for (int a = low; a < high;) {
      if (!total_[a]) { ++a; continue; }
      int b = a + 1;
      while (b < high && total_[b] && floor_[b] == floor_[a]) ++b;
      bool left = a == low || !total_[a - 1] || floor_[a - 1] > floor_[a];
      bool right = b == high || !total_[b] || floor_[b] > floor_[a];
      if (left && right)
        for (int s = a; s < b; ++s) {
          Value slack = capacity_ - total_[s] - floor_[s];
          double score = (count_[s - low] + (slack > 0 ? 1 : 0)) / static_cast<double>(weight_[s]);
          if (best < 0 || score < best_score) { best_score = score; best = s; }
        }
      a = b;
    }
    return best;
  }

  // Stands for a part as it is: what is not placed yet, and how high the floor is where something is missing.
  uint64_t key(const std::vector<int>& items, int low, int high) const {
    uint64_t sum = mix(static_cast<uint64_t>(capacity_));
    for (int i : items) sum += h_.item_key[i];
    for (int s = low; s < high; ++s)
      if (total_[s]) sum += static_cast<uint64_t>(floor_[s] + 1) * h_.section_key[s];
    return mix(sum);
  }

  Result solve_niche(const std::vector<int>& items, int low, int high) {
    if (!(rules_ & kNogoods)) return fill_niches(items, low, high);
    uint64_t part = key(items, low, high);
    uint64_t& slot = h_.nogoods[part & (kSlots - 1)];
    if (slot == part) return kFail;
    Result result = fill_niches(items, low, high);
    if (result == kFail) slot = part;
    return result;
  }

  Result fill_niches(const std::vector<int>& items, int low, int high) {
    size_t begin = trail_.size();
    std::vector<std::pair<int, int>> candidates;
    std::vector<int> rest;
    while (true) {
      int s = choose(items, low, high);
      Value f = floor_[s];
      candidates.clear();
      for (int i : p_.members[s])
        if (at_[i] < 0 && low_[i] == f && !(twin_[i] >= 0 && at_[twin_[i]] < 0)) candidates.push_back({rank_[i], i});
      std::sort(candidates.begin(), candidates.end());
      for (const auto& [r, i] : candidates) {
        (void)r;
        bool raised = false;
        Result result = descend(i, items, low, high, 0, 0, &rest, &raised);
        if (result != kFail) return result;
        if ((rules_ & kHatless) && !raised) {
          undo(begin);
          return kFail;
        }
      }
      if (capacity_ - total_[s] - f <= 0 || !waste(s, f)) {
        undo(begin);
        return kFail;
      }
    }
  }

  // Nothing starts at the floor f of section s: its floor and all that covers it rise to the next possible start.
  bool waste(int s, Value f) {
    ++nodes_;
    Value next = capacity_ + 1;
    for (int j : p_.members[s]) {
      if (at_[j] >= 0) continue;
      if (low_[j] > f) { next = std::min(next, low_[j]); continue; }
      for (int k : p_.neighbours[j])
        if (at_[k] < 0 && (p_.hull_low[k] > s || p_.hull_high[k] <= s)) next = std::min(next, low_[k] + p_.size[k]);
    }
    if (next + total_[s] > capacity_) return false;
    set(floor_[s], next);
    int first = s, last = s + 1;
    for (int j : p_.members[s]) {
      if (at_[j] >= 0 || low_[j] >= next) continue;
      set(low_[j], next);
      if (next + p_.size[j] > capacity_) return false;
      first = std::min(first, p_.hull_low[j]);
      last = std::max(last, p_.hull_high[j]);
    }
    return witnessed(first, last);
  }

  static constexpr uint64_t kSlots = 1 << 16;
  std::vector<int> count_;
  Handle& h_;
  const Problem& p_;
  const int* rank_;
  Value capacity_;
  int64_t limit_, nodes_ = 0;
  double deadline_;
  int rules_;
  std::vector<Value> low_, at_, floor_, total_, cross_;
  std::vector<int> witness_, twin_;
  std::vector<int64_t>& weight_;
  std::vector<Change> trail_;
  int64_t step_ = 1;
  bool has_pins_ = false;
};

// The search is as deep as there are items: it runs on a stack of its own.
Result run_deep(Search& search, int items) {
  struct Job {
    Search* search;
    Result result;
  } job = {&search, kLimit};
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, (size_t{16} << 20) + static_cast<size_t>(items) * 4096);
  auto body = [](void* of) -> void* {
    Job* mine = static_cast<Job*>(of);
    mine->result = mine->search->run();
    return nullptr;
  };
  pthread_t thread;
  if (pthread_create(&thread, &attributes, body, &job) == 0) pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
  return job.result;
}

}  // namespace

extern "C" {

// Depth-first search for a packing within `capacity`: 0 there is none, 1 found, 2 a limit came first.
int adaflex_pack_search(void* handle, const int32_t* rank, int64_t capacity, int64_t nodes, double seconds, int rules,
                        int64_t* places, int64_t* used) {
  Handle* h = static_cast<Handle*>(handle);
  h->link();
  Search search(*h, rank, capacity, nodes, now() + seconds, rules);
  Result result = run_deep(search, h->p.n);
  *used = search.nodes();
  if (result == kFound) std::copy(search.places().begin(), search.places().end(), places);
  return result;
}

}  // extern "C"
