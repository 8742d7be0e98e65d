// Few plain buffers in one call: sections, bound and greedy orders (compiled after greedy.cpp, as one).
//
// In: columns of sizes, first steps and ends, one alignment, a height that is enough (-1: the bound). Out: places, the bound
// and the height; each time component keeps its best order. What is not plain is refused: problem.py then says why.

#include <cmath>

namespace {

struct AtOnce {
  Handle h;
  Problem& p;
  std::vector<int64_t> times;
  std::vector<int> group;                              // time component of each item
  int groups = 1;
  std::vector<Value> sums;                             // bytes live in each section
  std::vector<double> degree, most;                    // items that are live with one; most bytes live during its life
  Value bound = 0;

  AtOnce() : p(h.p) {}

  bool plain(int64_t n, const int64_t* size, const int64_t* first, const int64_t* end, int64_t align) const {
    const int64_t far = int64_t{1} << 60;
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (size[i] < 0 || size[i] >= far || end[i] < first[i] || first[i] <= -far || end[i] >= far) return false;
      sum += static_cast<double>(size[i]) + static_cast<double>(align);
    }
    return align > 0 && align < far && sum < std::ldexp(1.0, 61);
  }

  // Steps to sections, as numbers: by a table over all steps where there are few; what never lives has none.
  void take(int64_t n, const int64_t* size, const int64_t* first, const int64_t* end, int64_t align) {
    int64_t least = INT64_MAX, last = INT64_MIN;
    for (int64_t i = 0; i < n; ++i)
      if (first[i] < end[i] && size[i]) {
        least = std::min(least, first[i]);
        last = std::max(last, end[i]);
      }
    std::vector<int> table(last < least || last - least > 64 * n ? 0 : last - least + 1, 0);
    for (int64_t i = 0; i < n; ++i)
      if (first[i] < end[i] && size[i]) {
        if (!table.empty()) table[first[i] - least] = table[end[i] - least] = 1;
        else times.insert(times.end(), {first[i], end[i]});
      }
    for (size_t step = 0; step < table.size(); ++step)
      if (table[step]) {
        table[step] = static_cast<int>(times.size());
        times.push_back(least + static_cast<int64_t>(step));
      }
    if (table.empty()) {
      std::sort(times.begin(), times.end());
      times.erase(std::unique(times.begin(), times.end()), times.end());
    }
    auto number = [&](int64_t step) {
      return table.empty() ? static_cast<int>(std::lower_bound(times.begin(), times.end(), step) - times.begin()) : table[step - least];
    };
    p.n = static_cast<int>(n);
    p.sections = std::max(0, static_cast<int>(times.size()) - 1);
    p.size.assign(size, size + n);
    p.align.assign(n, align);
    p.pin.assign(n, -1);
    p.run_start.assign(1, 0);
    p.hull_low.assign(n, 0);
    p.hull_high.assign(n, 0);
    for (int64_t i = 0; i < n; ++i) {
      if (first[i] < end[i] && size[i]) {
        p.run_low.push_back(p.hull_low[i] = number(first[i]));
        p.run_high.push_back(p.hull_high[i] = number(end[i]));
      }
      p.run_start.push_back(static_cast<int>(p.run_low.size()));
    }
    h.count();
  }

  // Bytes live in each section, the bound, time components, how many items each overlaps.
  void look() {
    std::vector<int> begun(p.sections + 2, 0), ended(p.sections + 2, 0), part(p.sections + 1, 0);
    sums.assign(p.sections + 1, 0);
    for (int i = 0; i < p.n; ++i) {
      bound = std::max(bound, p.size[i]);
      if (p.hull_low[i] >= p.hull_high[i]) continue;
      ++begun[p.hull_low[i] + 1];
      ++ended[p.hull_high[i]];
      sums[p.hull_low[i]] += p.size[i];
      sums[p.hull_high[i]] -= p.size[i];
    }
    for (int s = 0, live = 0; s <= p.sections; ++s) {
      live -= ended[s];
      if (s && !live) ++groups;
      part[s] = groups - 1;
      live += begun[s + 1];
      begun[s + 1] += begun[s];
      if (s) {
        ended[s] += ended[s - 1];
        sums[s] += sums[s - 1];
      }
      bound = std::max(bound, sums[s]);
    }
    if (p.n && p.align[0] > 1) bound = std::max(bound, stacked(p.align[0]));
    group.resize(p.n);
    degree.resize(p.n);
    for (int i = 0; i < p.n; ++i) {
      group[i] = part[p.hull_low[i]];
      degree[i] = begun[p.hull_high[i]] - ended[p.hull_low[i]] - 1;
    }
  }

  // Each item fills whole steps, but for the one on top: so high is the stack where they fill the most.
  Value stacked(Value step) const {
    std::vector<Value> whole(p.sections + 1, 0);
    for (int i = 0; i < p.n; ++i) {
      whole[p.hull_low[i]] += round_up(p.size[i], step);
      whole[p.hull_high[i]] -= round_up(p.size[i], step);
    }
    for (int s = 0; s < p.sections; ++s) whole[s + 1] += whole[s];
    int worst = static_cast<int>(std::max_element(whole.begin(), whole.end()) - whole.begin());
    Value most = 0;
    for (int i = 0; i < p.n; ++i)
      if (p.hull_low[i] <= worst && worst < p.hull_high[i]) most = std::max(most, round_up(p.size[i], step) - p.size[i]);
    return whole[worst] - most;
  }

  // The most bytes live during each life, by doubling.
  void look_at_most() {
    most.assign(p.n, 0);
    std::vector<std::vector<Value>> levels = {sums};
    for (int i = 0; i < p.n; ++i) {
      int low = p.hull_low[i], length = p.hull_high[i] - low;
      if (length <= 0) continue;
      size_t level = 31 - __builtin_clz(length);
      while (levels.size() <= level) {
        const std::vector<Value>& last = levels.back();
        size_t half = size_t{1} << (levels.size() - 1);
        std::vector<Value> next(last.size() - half);
        for (size_t s = 0; s < next.size(); ++s) next[s] = std::max(last[s], last[s + half]);
        levels.push_back(next);
      }
      most[i] = static_cast<double>(std::max(levels[level][low], levels[level][p.hull_high[i] - (1 << level)]));
    }
  }

  // The order numbered `which` of QUICK in search.py: ascending by two keys, ties by index.
  std::vector<int32_t> ordered(int which) {
    std::vector<std::pair<std::pair<double, double>, int32_t>> keys(p.n);
    if ((which == 2 || which == 9) && most.empty()) look_at_most();
    double fullest = 1;
    for (double m : most) fullest = std::max(fullest, m);
    for (int i = 0; i < p.n; ++i) {
      double size = static_cast<double>(p.size[i]), first = 0, length = 0;
      int sections = p.hull_high[i] - p.hull_low[i];
      if (sections > 0) {
        first = static_cast<double>(times[p.hull_low[i]]);
        length = static_cast<double>(times[p.hull_high[i]] - times[p.hull_low[i]]);
      }
      std::pair<double, double> key = {0, 0};
      switch (which) {
        case 0: key = {-size, 0}; break;
        case 1: key = {-degree[i] * size, -size}; break;
        case 2: key = {-size * std::sqrt(static_cast<double>(sections)) * std::pow(most[i] / fullest, 8.0), 0}; break;
        case 3: key = {first, -size}; break;
        case 5: key = {-size, first}; break;
        case 6: key = {first, 0}; break;
        case 7: key = {-size * length, first}; break;
        case 8: key = {-length, first}; break;
        case 9: key = {-most[i], -size * length}; break;
        default: break;                                // as given
      }
      keys[i] = {key, i};
    }
    std::sort(keys.begin(), keys.end());
    std::vector<int32_t> order;
    for (const auto& [key, i] : keys) order.push_back(i);
    return order;
  }

  // The best of all orders for each component; ends as soon as `enough` is reached.
  Value pack(Value enough, int64_t* places) {
    std::vector<Value> best(groups, INT64_MAX), tops(groups), trial(p.n);
    Value height = INT64_MAX;
    for (int which = 0; which < 10 && height > enough; ++which) {
      std::vector<int32_t> order = ordered(which);
      Value below = groups == 1 ? height : INT64_MAX;
      if (adaflex_pack_greedy(&h, order.data(), which == 6, 1e9, below, trial.data()) < 0) continue;
      std::fill(tops.begin(), tops.end(), 0);
      for (int i = 0; i < p.n; ++i)
        if (p.size[i]) tops[group[i]] = std::max(tops[group[i]], trial[i] + p.size[i]);
      for (int i = 0; i < p.n; ++i)
        if (tops[group[i]] < best[group[i]]) places[i] = trial[i];
      height = 0;
      for (int g = 0; g < groups; ++g) height = std::max(height, best[g] = std::min(best[g], tops[g]));
    }
    return height;
  }
};

}  // namespace

// The height of `places`; -1 for what is not plain, -2 where the bound is above `enough`.
extern "C" int64_t adaflex_pack_at_once(int64_t n, const int64_t* columns, int64_t align, int64_t enough, int64_t* places, int64_t* bound) {
  const int64_t *size = columns, *first = columns + n, *end = columns + 2 * n;
  AtOnce task;
  if (!task.plain(n, size, first, end, align)) return -1;
  task.take(n, size, first, end, align);
  task.look();
  *bound = task.bound;
  if (enough >= 0 && task.bound > enough) return -2;
  return task.pack(enough < 0 ? task.bound : enough, places);
}
