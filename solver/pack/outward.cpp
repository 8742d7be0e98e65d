// Packs outward from the step at which most is live, which no greedy order by size does (compiled after eject.cpp, as one).
//
// In: a Handle whose items live in one run each, none pinned or kept apart; a goal. Out: places, lower and lower. What is
// live at that step is stacked without a gap: what leaves it soon forwards in time tops the lower pile, what leaves it
// soon backwards hangs from the goal, so room opens in one piece on either side. From there time runs both ways alike,
// and the two sides never meet. Each item takes a gap that it fills well and beside what ends when it does. How these two
// wishes weigh, and who is looked at ahead of time, is varied while something finds no place; eject.cpp pushes in the last.

namespace {

constexpr int kTable = 1024;

// How an item chooses among gaps: cost = room left ^ room_power + weight * difference of ends ^ ends_power.
struct Way {
  double weight = 1, room_power = 1, ends_power = 1;
  double horizon = 1;                                  // mean lives beyond which all ends are alike
  double ahead = 0;                                    // mean lives that the largest item is looked at ahead of time
  double ahead_power = 1;
};

// One direction of time away from the fullest step; sections are mirrored on the side before it.
struct Side {
  struct Guest {
    int first, end, item;
  };
  struct Wall {                                        // what is placed: bytes, sections
    Value low, high;
    int first, end;
  };
  std::vector<Guest> guests;
  std::vector<Wall> stack;                             // what is live at the fullest step, by offset
  Way way;
  Value missing = 0;                                   // bytes without a place
  std::vector<int> out;                                // guests without a place
  std::vector<Value> at;                               // by guest; -1: without a place
};

struct Outward {
  Handle& h;
  const Problem& p;
  Value bound = 0, goal = 0;
  int peak = 0;
  double life = 1, largest = 1;
  uint64_t state;
  std::vector<int> across;                             // items live at the fullest step
  std::vector<Value> places;
  Side sides[2];
  std::vector<Side::Wall> walls;                       // of one sweep
  std::vector<std::pair<double, int>> order;
  std::vector<int> least;
  double room_cost[kTable + 1], ends_cost[kTable + 1];

  Outward(Handle& handle, uint64_t seed) : h(handle), p(handle.p), state(seed), places(handle.p.n, 0) {
    std::vector<Value> change(p.sections + 1, 0);
    double lives = 0;
    for (int i = 0; i < p.n; ++i) {
      change[p.hull_low[i]] += p.size[i];
      change[p.hull_high[i]] -= p.size[i];
      lives += p.hull_high[i] - p.hull_low[i];
      largest = std::max(largest, static_cast<double>(p.size[i]));
    }
    life = std::max(1.0, lives / std::max(1, p.n));
    Value live = 0;
    for (int s = 0; s < p.sections; ++s) {
      live += change[s];
      if (live > bound) { bound = live; peak = s; }
    }
    for (int i = 0; i < p.n; ++i) {
      int low = p.hull_low[i], high = p.hull_high[i];
      if (low >= high || !p.size[i]) continue;
      if (low > peak) sides[0].guests.push_back({low, high, i});
      else if (high <= peak) sides[1].guests.push_back({-high, -low, i});
      else across.push_back(i);
    }
    for (Side& side : sides) side.way = any();
  }

  double chance() { return static_cast<double>(mix(++state) >> 11) / 9007199254740992.0; }
  double scattered(double least, double most) { return least * std::pow(most / least, chance()); }

  Way any() {
    Way way;
    way.weight = scattered(0.05, 20);
    way.room_power = scattered(0.3, 3.5);
    way.ends_power = scattered(0.3, 3.5);
    way.horizon = scattered(0.37, 4.5);
    way.ahead = chance() < 0.4 ? 0 : scattered(0.0025, 0.37);
    way.ahead_power = 1 + 2 * chance();
    return way;
  }

  Way changed(Way way) {
    double factor = scattered(0.6, 1.65);
    switch (static_cast<int>(chance() * 6)) {
      case 0: way.weight *= factor; break;
      case 1: way.room_power *= factor; break;
      case 2: way.ends_power *= factor; break;
      case 3: way.horizon *= factor; break;
      case 4: way.ahead = way.ahead > 0 ? way.ahead * factor : scattered(0.0025, 0.37); break;
      default: way.ahead_power = 1 + 2 * chance();
    }
    return way;
  }

  // Stack what is live at the fullest step; `shake` varies who leaves it soon. The goal rises where that does not fit.
  void stack(double shake) {
    order.clear();
    for (int i : across) {
      double after = (p.hull_high[i] - peak) * std::exp(shake * (2 * chance() - 1));
      double before = (peak + 1 - p.hull_low[i]) * std::exp(shake * (2 * chance() - 1));
      order.push_back({-std::min(after, before), after < before ? i : ~i});
    }
    std::sort(order.begin(), order.end());
    if (pile(goal) > goal) goal = pile(-1);            // alignments differ: nothing hangs from a goal that cannot be kept
    for (Side& side : sides) side.stack.clear();
    for (int i : across) {
      Value at = places[i];
      sides[0].stack.push_back({at, at + p.size[i], -p.sections, p.hull_high[i]});
      sides[1].stack.push_back({at, at + p.size[i], -p.sections, -p.hull_low[i]});
    }
    for (Side& side : sides)
      std::sort(side.stack.begin(), side.stack.end(), [](const auto& a, const auto& b) { return a.low < b.low; });
  }

  // Places for `order`: from the bottom, or hanging from `top` (-1: none hangs). How high that is; too high where piles meet.
  Value pile(Value top) {
    Value low = 0, high = top;
    for (const auto& [key, which] : order) {
      int i = which < 0 ? ~which : which;
      if (which < 0 && high >= p.size[i]) high = places[i] = (high - p.size[i]) / p.align[i] * p.align[i];
      else low = (places[i] = round_up(low, p.align[i])) + p.size[i];
    }
    return top < 0 ? low : low > high ? INT64_MAX : top;
  }

  // In which order the guests of a side are looked at, and the first section of all that are still to come.
  void line_up(const Side& side, const Way& way) {
    size_t count = side.guests.size();
    order.resize(count);
    least.resize(count);
    for (size_t k = 0; k < count; ++k) {
      double early = 0;
      if (way.ahead > 0) early = way.ahead * std::pow(p.size[side.guests[k].item] / largest, way.ahead_power);
      order[k] = {side.guests[k].first - life * early, static_cast<int>(k)};
    }
    std::sort(order.begin(), order.end());
    int first = INT32_MAX;
    for (size_t k = count; k-- > 0;) least[k] = first = std::min(first, side.guests[order[k].second].first);
    for (int k = 0; k <= kTable; ++k) {
      room_cost[k] = std::pow(k / static_cast<double>(kTable), way.room_power);
      ends_cost[k] = way.weight * std::pow(k / static_cast<double>(kTable), way.ends_power);
    }
  }

  // The place of one guest among the walls; -1 where there is none below the goal.
  Value place(const Side::Guest& guest, double horizon) const {
    const Value size = p.size[guest.item], align = p.align[guest.item];
    const double scale = kTable / horizon, rooms = kTable / largest;
    auto ends = [&](int end) { return static_cast<int>(std::min<double>(end - guest.first, horizon) * scale); };
    const int own = ends(guest.end);
    double best = 1e300;
    Value at = -1, top = 0;
    int below = INT32_MAX / 2;
    auto look = [&](Value high, int above) {
      Value low = round_up(top, align), room = high - low - size;
      if (room < 0) return;
      double rest = room_cost[static_cast<int>(std::min<double>(static_cast<double>(room) * rooms, kTable))];
      double under = rest + ends_cost[std::abs(own - ends(below))], over = rest + ends_cost[std::abs(own - ends(above))];
      if (under < best) { best = under; at = low; }
      if (over < best) { best = over; at = (high - size) / align * align; }
    };
    for (const Side::Wall& wall : walls)
      if (wall.first < guest.end && wall.end > guest.first) {
        if (wall.low - top >= size) look(wall.low, wall.end);
        if (wall.high > top) { top = wall.high; below = wall.end; }
      }
    look(goal, INT32_MAX / 2);
    return at;
  }

  // Place all guests of a side; the bytes that find no place, or more than `most` of them.
  Value sweep(const Side& side, const Way& way, Value most, std::vector<int>& out, std::vector<Value>& at) {
    line_up(side, way);
    walls = side.stack;
    out.clear();
    at.assign(side.guests.size(), -1);
    Value missing = 0;
    int seen = -p.sections;
    for (size_t k = 0; k < order.size() && missing <= most; ++k) {
      int which = order[k].second;
      const Side::Guest& guest = side.guests[which];
      if (least[k] > seen) {                            // nobody still to come meets what has ended by now
        seen = least[k];
        walls.erase(std::remove_if(walls.begin(), walls.end(), [&](const auto& w) { return w.end <= seen; }), walls.end());
      }
      Value start = at[which] = place(guest, way.horizon * life);
      if (start < 0) {
        missing += p.size[guest.item];
        out.push_back(which);
        continue;
      }
      auto behind = std::upper_bound(walls.begin(), walls.end(), start, [](Value v, const auto& w) { return v < w.low; });
      walls.insert(behind, {start, start + p.size[guest.item], guest.first, guest.end});
    }
    return missing;
  }

  // Another way for a side. True where it leaves less without a place.
  bool improve(Side& side) {
    Way way = chance() < 0.6 ? changed(side.way) : any();
    std::vector<int> out;
    std::vector<Value> at;
    Value missing = sweep(side, way, side.missing, out, at);
    if (missing > side.missing) return false;
    bool less = missing < side.missing;
    side.way = way;
    side.missing = missing;
    side.out.swap(out);
    side.at.swap(at);
    return less;
  }

  // Places for all within `most` bytes: true. Otherwise some end above it.
  bool attempt(Value most, double shake, int patience, int64_t moves, double deadline, int64_t* used) {
    goal = most;
    stack(shake);
    auto cost = [](const Side& side) { return 1 + static_cast<int64_t>(side.guests.size()) / 16; };
    for (Side& side : sides) {
      side.missing = sweep(side, side.way, INT64_MAX, side.out, side.at);
      *used += cost(side);
    }
    for (int idle = 0; idle < patience && sides[0].missing + sides[1].missing > 0;) {
      if (*used >= moves || now() > deadline) break;
      Side& side = sides[!sides[0].missing || (sides[1].missing && chance() < 0.5)];
      *used += cost(side);
      idle = improve(side) ? 0 : idle + 1;
    }
    Value top = goal;                                  // what found no place is piled up above the goal
    for (const Side& side : sides)
      for (size_t k = 0; k < side.guests.size(); ++k) {
        int i = side.guests[k].item;
        places[i] = side.at[k] >= 0 ? side.at[k] : round_up(top, p.align[i]);
        if (side.at[k] < 0) top = places[i] + p.size[i];
      }
    return height() <= most;
  }

  Value height() const {
    Value top = 0;
    for (int i = 0; i < p.n; ++i)
      if (p.hull_low[i] < p.hull_high[i] && p.size[i]) top = std::max(top, places[i] + p.size[i]);
    return top;
  }

  // Push in what an attempt left out.
  bool push_in(int64_t moves, double deadline, int64_t* used) {
    if (!h.crowded()) h.link();
    Ejector ejector(h, goal, places.data());
    int64_t pushes = 0;
    int64_t most = std::min<int64_t>(moves - *used, kPushes * static_cast<int64_t>(sides[0].out.size() + sides[1].out.size()));
    Result result = most > 0 ? ejector.run(most, deadline, &pushes) : kLimit;
    *used += pushes;
    if (result == kFound) places = ejector.at;
    return result == kFound;
  }

  // Lower `best` (its height in *top; none yet: -1) towards `enough`.
  void run(Value enough, int64_t moves, double deadline, Value* top, Value* best, int64_t* used) {
    enough = std::max(enough, bound);
    double step = 0.5, shake = 0;
    for (int tried = 0; *top < 0 || (*top > enough && *used < moves && now() < deadline); ++tried) {
      Value aim = *top < 0 ? enough : std::min(*top - 1, enough + static_cast<Value>((*top - enough) * (1 - step)));
      int patience = *top < 0 ? 0 : step > 0.3 ? 6 : kPatience;
      bool found = attempt(aim, shake, patience, moves, deadline, used) || (*top >= 0 && push_in(moves, deadline, used));
      Value reached = height();
      if (*top < 0 || reached < *top) {
        *top = reached;
        std::copy(places.begin(), places.end(), best);
      }
      if (found) { step = std::min(0.5, step * 1.5); continue; }
      step = std::max(0.02, step * 0.6);
      shake = chance() < 0.5 ? 0 : 0.8 * chance();
    }
  }

  static constexpr int kPatience = 60;                 // changes without a gain after which an attempt ends
  static constexpr int64_t kPushes = 1500;             // for each item left out
};

}  // namespace

// Lower `places` (of height *height; -1: there are none yet) towards `enough`; 0: the problem is not of that kind.
extern "C" int adaflex_pack_outward(void* handle, int64_t enough, int64_t moves, double seconds, uint64_t seed, int64_t* height,
                                    int64_t* places, int64_t* used) {
  Handle* h = static_cast<Handle*>(handle);
  *used = 0;
  if (!h->one_run || h->pins || !h->apart.empty()) return 0;
  Outward outward(*h, seed);
  outward.run(enough, moves, now() + seconds, height, places, used);
  return 1;
}
