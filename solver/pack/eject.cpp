// Lowers a known packing of many items: what ends above the capacity is taken out and put back, pushing out others.
//
// In: a Handle of core.cpp (this file is compiled after greedy.cpp, as one), places, a capacity. Out: places within the
// capacity, or a limit. An item out of place goes into the tightest gap that is free for its life; where there is none it takes
// the place whose occupants weigh least (area times the root of how often they failed before) and these are out next.

#include <cmath>

namespace {

struct Ejector {
  const Problem& p;
  Value capacity;
  std::vector<Value> at;
  std::vector<double> area, failures, weight;         // weight: area times the root of failures
  std::vector<int> out;
  uint64_t state = 0x9E3779B97F4A7C15u;

  struct Busy {
    Value low, high;
    double weight;
    int item;                                          // -1: pinned
  };
  std::vector<Busy> busy;
  bool flat;                                           // items in order of their low and of their high ends
  Shelf lows, tops;
  std::vector<int> near;
  std::vector<std::pair<Value, double>> highs;
  std::vector<Value> starts;

  Ejector(const Handle& h, Value most, const int64_t* places)
      : p(h.p), capacity(most), at(places, places + h.p.n), area(h.p.n), failures(h.p.n, 1.0), weight(h.p.n),
        flat(h.crowded() && h.one_run && !h.pins && h.apart.empty()) {
    for (int i = 0; i < p.n; ++i) {
      weight[i] = area[i] = static_cast<double>(p.size[i]) * (p.hull_high[i] - p.hull_low[i]);
      if (p.pin[i] < 0 && p.size[i] && at[i] + p.size[i] > capacity) { at[i] = -1; out.push_back(i); }
    }
    std::sort(out.begin(), out.end(), [&](int a, int b) { return std::make_pair(area[a], a) < std::make_pair(area[b], b); });
    if (flat) {
      std::vector<int> order;
      for (int i = 0; i < p.n; ++i)
        if (at[i] >= 0 && p.hull_low[i] < p.hull_high[i]) order.push_back(i);
      lows.fill(p, order, [&](int i) { return at[i]; });
      tops.fill(p, order, [&](int i) { return at[i] + p.size[i]; });
    }
  }

  void put(int i, Value start) {
    at[i] = start;
    if (!flat) return;
    lows.insert(p, start, i);
    tops.insert(p, start + p.size[i], i);
  }

  void take(int i) {
    if (flat) {
      lows.erase(at[i], i);
      tops.erase(at[i] + p.size[i], i);
    }
    at[i] = -1;
  }

  double shaken() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return 0.7 + 0.6 * static_cast<double>(state >> 11) / 9007199254740992.0;
  }

  void gather(int i) {
    busy.clear();
    if (flat) {
      lows.meet(p.hull_low[i], p.hull_high[i], near);
      for (int j : near) busy.push_back({at[j], at[j] + p.size[j], weight[j], j});
      return;
    }
    for (int j : p.neighbours[i])
      if (at[j] >= 0) busy.push_back({at[j], at[j] + p.size[j], weight[j], j});
    for (const Pinned& o : p.obstacles[i]) busy.push_back({o.low, o.high, 0.0, -1});
    std::sort(busy.begin(), busy.end(), [](const Busy& a, const Busy& b) { return a.low < b.low; });
  }

  // The tightest free gap; -1 where there is none.
  Value gap(int i) const {
    Value top = 0, best = -1, room = INT64_MAX;
    for (size_t k = 0; k <= busy.size(); ++k) {
      Value low = k < busy.size() ? busy[k].low : capacity;
      Value start = round_up(top, p.align[i]);
      if (low - start >= p.size[i] && low - start < room) { room = low - start; best = start; }
      if (k < busy.size()) top = std::max(top, busy[k].high);
    }
    return best;
  }

  // The place whose occupants weigh least: above or below one of them, at the bottom or at the top.
  Value cheapest(int i) {
    highs.clear();
    starts.clear();
    if (flat) {
      tops.meet(p.hull_low[i], p.hull_high[i], near);
      for (int j : near) highs.push_back({at[j] + p.size[j], weight[j]});
    } else {
      for (const Busy& b : busy) highs.push_back({b.high, b.weight});
      std::sort(highs.begin(), highs.end());
    }
    Value size = p.size[i], align = p.align[i], best = -1;
    starts.push_back(0);
    for (const auto& [high, weight] : highs) starts.push_back(round_up(high, align));
    size_t above = starts.size();
    for (const Busy& b : busy)
      if (b.low >= size) starts.push_back((b.low - size) / align * align);
    starts.push_back((capacity - size) / align * align);
    double least = 1e299, entered = 0, left = 0;
    size_t low = 0, high = 0;
    for (size_t k = 0; k < starts.size(); ++k) {
      if (k == above) { entered = left = 0; low = high = 0; }  // both halves ascend
      Value start = starts[k];
      if (start + size > capacity) continue;
      while (low < busy.size() && busy[low].low < start + size) entered += busy[low++].weight;
      while (high < highs.size() && highs[high].first <= start) left += highs[high++].second;
      double lost = entered - left;
      if (lost * 0.7 >= least) continue;  // no luck makes it the least
      lost *= shaken();
      if (lost < least && clear(i, start)) { least = lost; best = start; }
    }
    return best;
  }

  bool clear(int i, Value start) const {
    if (flat) return true;  // nothing is pinned
    for (const Pinned& o : p.obstacles[i])
      if (start < o.high && start + p.size[i] > o.low) return false;
    return true;
  }

  // Put the items that are out back, one by one: kFound, or kLimit.
  Result run(int64_t moves, double deadline, int64_t* used) {
    std::vector<int> pushed;
    while (!out.empty()) {
      if (++*used > moves || ((*used & 31) == 0 && now() > deadline)) return kLimit;
      int i = out.back();
      out.pop_back();
      gather(i);
      Value start = gap(i);
      if (start < 0) {
        failures[i] += 1.0;
        weight[i] = area[i] * std::sqrt(failures[i]);
        start = cheapest(i);
        if (start < 0) return kLimit;
        pushed.clear();
        for (const Busy& b : busy)
          if (b.item >= 0 && b.low < start + p.size[i] && b.high > start) pushed.push_back(b.item);
        for (int j : pushed) take(j);
        std::sort(pushed.begin(), pushed.end(), [&](int a, int b) { return std::make_pair(area[a], a) < std::make_pair(area[b], b); });
        out.insert(out.end(), pushed.begin(), pushed.end());
      }
      put(i, start);
    }
    return kFound;
  }
};

}  // namespace

// Change `places` so that all lie within `capacity`: 1 done, 2 a limit came first (`places` are unchanged).
extern "C" int adaflex_pack_eject(void* handle, int64_t capacity, int64_t moves, double seconds, int64_t* places, int64_t* used) {
  Handle* h = static_cast<Handle*>(handle);
  if (!h->crowded() || !h->one_run || h->pins || !h->apart.empty()) h->link();
  Ejector ejector(*h, capacity, places);
  *used = 0;
  Result result = ejector.run(moves, now() + seconds, used);
  if (result == kFound) std::copy(ejector.at.begin(), ejector.at.end(), places);
  return result;
}
