// Greedy placement in a given order, and a sweep over time for a million items (compiled after core.cpp, as one).
//
// In: a Handle, an order. Out: places and a height. Where an item overlaps few others these are found by buckets of
// sections and sorted; where it overlaps many, one scan over all placed items in order of offset is faster.

namespace {

// Placed items as columns, in order of `key` (an end of their place), then of item.
struct Shelf {
  std::vector<Value> key;
  std::vector<int> first, last, item;

  size_t find(Value at, int i) const {
    size_t k = std::lower_bound(key.begin(), key.end(), at) - key.begin();
    while (k < key.size() && key[k] == at && item[k] < i) ++k;
    return k;
  }
  template <typename Key>
  void fill(const Problem& p, std::vector<int> order, Key where) {
    std::sort(order.begin(), order.end(), [&](int a, int b) { return std::make_pair(where(a), a) < std::make_pair(where(b), b); });
    item = order;
    for (int i : order) {
      key.push_back(where(i));
      first.push_back(p.hull_low[i]);
      last.push_back(p.hull_high[i]);
    }
  }
  void insert(const Problem& p, Value at, int i) {
    size_t k = find(at, i);
    key.insert(key.begin() + k, at);
    first.insert(first.begin() + k, p.hull_low[i]);
    last.insert(last.begin() + k, p.hull_high[i]);
    item.insert(item.begin() + k, i);
  }
  void erase(Value at, int i) {
    size_t k = find(at, i);
    key.erase(key.begin() + k);
    first.erase(first.begin() + k);
    last.erase(last.begin() + k);
    item.erase(item.begin() + k);
  }
  // Items whose hull meets sections low..high, in order of key.
  void meet(int low, int high, std::vector<int>& found) const {
    size_t count = 0, all = item.size();
    found.resize(all);
    int* out = found.data();
    for (size_t k = 0; k < all; ++k) {
      out[count] = item[k];
      count += static_cast<size_t>((first[k] < high) & (last[k] > low));
    }
    found.resize(count);
  }
};

struct Gaps {
  Value size, align, top = 0, best = -1, best_room = INT64_MAX;
  bool tight;

  // The next busy range, in order of its low end; true where the place is decided.
  bool step(Value low, Value high) {
    Value at = round_up(top, align), room = low - at;
    if (room >= size && room < best_room) { best_room = room; best = at; if (!tight) return true; }
    top = std::max(top, high);
    return false;
  }
  Value place() const { return best >= 0 ? best : round_up(top, align); }
};

struct Greedy {
  const Handle& h;
  const Problem& p;
  Value* places;
  bool flat;
  Buckets buckets;
  Shelf shelf;
  std::vector<std::vector<int>> apart;
  std::vector<int> seen;
  std::vector<std::pair<Value, Value>> busy;

  Greedy(const Handle& handle, Value* where)
      : h(handle), p(handle.p), places(where), flat(handle.crowded()), buckets(p, !flat),
        apart(handle.apart.empty() ? 0 : p.n), seen(p.n, -1) {
    for (auto [a, b] : h.apart) {
      apart[a].push_back(b);
      apart[b].push_back(a);
    }
    std::fill(places, places + p.n, -1);
  }

  void gather(int i) {
    busy.clear();
    if (flat) {
      if (!apart.empty())
        for (int j : apart[i]) seen[j] = i;
      for (size_t k = 0; k < shelf.item.size(); ++k) {
        int j = shelf.item[k];
        if ((shelf.first[k] < p.hull_high[i] && shelf.last[k] > p.hull_low[i] && overlap(p, i, j)) || seen[j] == i)
          busy.push_back({places[j], places[j] + p.size[j]});
      }
      return;
    }
    if (p.hull_low[i] < p.hull_high[i])
      for (int b = p.hull_low[i] / buckets.width; b <= (p.hull_high[i] - 1) / buckets.width; ++b)
        for (int j : buckets.held[b])
          if (seen[j] != i) {
            seen[j] = i;
            if (overlap(p, i, j)) busy.push_back({places[j], places[j] + p.size[j]});
          }
    if (!apart.empty())
      for (int j : apart[i])
        if (places[j] >= 0) busy.push_back({places[j], places[j] + p.size[j]});
    std::sort(busy.begin(), busy.end());
  }

  // The scan alone, without a list of what is busy: most items are placed before its end.
  Value scan(int i, bool tight) const {
    Gaps gaps = {p.size[i], p.align[i]};
    gaps.tight = tight;
    const int low = p.hull_low[i], high = p.hull_high[i];
    for (size_t k = 0; k < shelf.item.size(); ++k)
      if (shelf.first[k] < high && shelf.last[k] > low) {
        int j = shelf.item[k];
        if (h.one_run || overlap(p, i, j))
          if (gaps.step(shelf.key[k], shelf.key[k] + p.size[j])) break;
      }
    return gaps.place();
  }

  Value place(int i, bool tight) {
    if (!p.size[i]) return 0;
    if (flat && apart.empty()) return scan(i, tight);
    gather(i);
    Gaps gaps = {p.size[i], p.align[i]};
    gaps.tight = tight;
    for (const auto& [low, high] : busy)
      if (gaps.step(low, high)) break;
    return gaps.place();
  }

  bool clashes(int i) {
    gather(i);
    for (const auto& [low, high] : busy)
      if (low < p.pin[i] + p.size[i] && high > p.pin[i]) return true;
    return false;
  }

  void put(int i, Value at) {
    places[i] = at;
    if (flat) {
      if (p.hull_low[i] < p.hull_high[i] || !apart.empty()) shelf.insert(p, at, i);
    } else {
      buckets.add(p, i);
    }
  }
};

}  // namespace

extern "C" {

// Place items in `order`, pinned ones first, each at the lowest or tightest free place; -1: pinned items overlap,
// -2: out of time, or no lower than `below`. Returns the height.
int64_t adaflex_pack_greedy(void* handle, const int32_t* order, int tight, double seconds, int64_t below, int64_t* places) {
  const Handle* h = static_cast<const Handle*>(handle);
  const Problem& p = h->p;
  double deadline = now() + seconds;
  Greedy greedy(*h, places);
  Value height = 0;
  for (int pass = h->pins ? 0 : 1; pass < 2; ++pass)
    for (int k = 0; k < p.n; ++k) {
      int i = order[k];
      if ((p.pin[i] >= 0) != (pass == 0)) continue;
      if ((k & 63) == 0 && now() > deadline) return -2;
      if (pass == 0 && greedy.clashes(i)) return -1;
      greedy.put(i, pass == 0 ? p.pin[i] : greedy.place(i, tight != 0));
      if (p.size[i]) height = std::max(height, places[i] + p.size[i]);
      if (height >= below) return -2;
    }
  return height;
}

// One sweep over time: each item goes to the lowest gap known when its life begins. Gaps in a life are not used,
// what is kept apart never gives its place back, all lies above the pinned items, which are not looked at.
void adaflex_pack_sweep(void* handle, int64_t* places) {
  const Handle* h = static_cast<const Handle*>(handle);
  const Problem& p = h->p;
  const size_t most_gaps = 1024;
  Value top = 0;
  std::vector<int> begin(p.sections + 2, 0), starts(p.n), kept(p.n, 0);
  for (auto [a, b] : h->apart) kept[a] = kept[b] = 1;
  for (int i = 0; i < p.n; ++i) {
    places[i] = std::max<Value>(0, p.pin[i]);
    if (p.pin[i] >= 0) top = std::max(top, p.pin[i] + p.size[i]);
  }
  auto moves = [&](int i) { return p.pin[i] < 0 && (p.hull_low[i] < p.hull_high[i] || (kept[i] && p.size[i])); };
  for (int i = 0; i < p.n; ++i)
    if (moves(i)) ++begin[(kept[i] ? 0 : p.hull_low[i]) + 1];
  for (int s = 0; s <= p.sections; ++s) begin[s + 1] += begin[s];
  std::vector<int> at(begin.begin(), begin.end());
  for (int i = 0; i < p.n; ++i)
    if (moves(i)) starts[at[kept[i] ? 0 : p.hull_low[i]]++] = i;
  std::vector<int> ends(p.n, -1), chain(p.sections + 1, -1);  // items by their last section, as lists
  std::vector<Pinned> gaps;
  auto give_back = [&](Value low, Value high) {
    size_t k = std::lower_bound(gaps.begin(), gaps.end(), low, [](const Pinned& g, Value v) { return g.low < v; }) - gaps.begin();
    bool before = k > 0 && gaps[k - 1].high == low, after = k < gaps.size() && gaps[k].low == high;
    if (high == top) {
      top = before ? gaps[k - 1].low : low;
      if (before) gaps.erase(gaps.begin() + (k - 1));
    } else if (before && after) {
      gaps[k - 1].high = gaps[k].high;
      gaps.erase(gaps.begin() + k);
    } else if (before) {
      gaps[k - 1].high = high;
    } else if (after) {
      gaps[k].low = low;
    } else {
      gaps.insert(gaps.begin() + k, {low, high});
    }
    if (gaps.size() > most_gaps) {  // the smaller half is forgotten
      std::vector<Value> rooms;
      for (const Pinned& g : gaps) rooms.push_back(g.high - g.low);
      std::nth_element(rooms.begin(), rooms.begin() + rooms.size() / 2, rooms.end());
      Value least = rooms[rooms.size() / 2] + 1;
      gaps.erase(std::remove_if(gaps.begin(), gaps.end(), [&](const Pinned& g) { return g.high - g.low < least; }), gaps.end());
    }
  };
  for (int s = 0; s < std::max(1, p.sections); ++s) {
    for (int i = chain[s]; i >= 0; i = ends[i]) give_back(places[i], places[i] + p.size[i]);
    for (int k = begin[s]; k < begin[s + 1]; ++k) {
      int i = starts[k];
      size_t g = 0;
      Value low = 0;
      for (; g < gaps.size(); ++g) {
        low = round_up(gaps[g].low, p.align[i]);
        if (gaps[g].high - low >= p.size[i]) break;
      }
      if (g == gaps.size()) {
        low = round_up(top, p.align[i]);
        if (low > top && gaps.size() < most_gaps) gaps.push_back({top, low});
        top = low + p.size[i];
      } else {
        Value end = gaps[g].high, high = low + p.size[i];
        if (low > gaps[g].low) {
          gaps[g].high = low;
          if (high < end) gaps.insert(gaps.begin() + g + 1, {high, end});
        } else if (high < end) {
          gaps[g].low = high;
        } else {
          gaps.erase(gaps.begin() + g);
        }
      }
      places[i] = low;
      if (!kept[i]) { ends[i] = chain[p.hull_high[i]]; chain[p.hull_high[i]] = i; }
    }
  }
}

}  // extern "C"
