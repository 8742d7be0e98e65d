// Core of the pairwise solver: messages between nodes (bounds) and moves of whole trees of nodes (choices).
//
// In: nodes with costs per option, tables of costs between two nodes, runs of rows in which an option uses some of what
// a row has. Out: a lower bound, by option how much worse it is, choices. twin.py is the same in Python, statement by
// statement: both meet the same numbers in the same order.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif

namespace {

using Doubles = std::vector<double>;

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// into[t] = min over s of from[s] + table[s][t]
WIDE void least_sums(const double* from, const double* table, int rows, int columns, double* into) {
  for (int t = 0; t < columns; ++t) into[t] = from[0] + table[t];
  for (int s = 1; s < rows; ++s) {
    const double base = from[s];
    const double* row = table + static_cast<int64_t>(s) * columns;
    for (int t = 0; t < columns; ++t) {
      const double sum = base + row[t];
      into[t] = sum < into[t] ? sum : into[t];
    }
  }
}

WIDE void add(double* into, const double* what, int count) {
  for (int s = 0; s < count; ++s) into[s] += what[s];
}

struct Side {  // an edge as one of its ends sees it
  int other;
  const double* table;  // [own option][the other's]
  double* in;           // message from the other end, by own option
  double* out;          // message to the other end, by its option
};

struct Run {  // rows first..end-1, in which each option uses something
  int first, end;
  const double* use;
};

struct Net {
  int n, rows;
  std::vector<int> count;
  std::vector<int64_t> start;  // of each node's options
  Doubles cost, tables, flipped, use, room, messages, worse;
  std::vector<std::vector<Side>> near;
  std::vector<std::vector<Run>> runs;
};

// ---- Messages: sequential tree-reweighted passes (Kolmogorov, 2006) ----

// One pass in rising (or falling) order; returns the bound it proves. ``own`` are costs with prices, by option.
double pass(Net& net, bool rising, const double* own, int* chosen) {
  double bound = 0.0;
  Doubles total, greedy;
  for (int k = 0; k < net.n; ++k) {
    const int i = rising ? k : net.n - 1 - k, count = net.count[i];
    total.assign(own + net.start[i], own + net.start[i] + count);
    greedy = total;
    int later = 0;
    for (const Side& side : net.near[i]) {
      const bool ahead = (side.other > i) == rising;
      later += ahead;
      add(total.data(), side.in, count);
      if (ahead) {
        add(greedy.data(), side.in, count);
      } else {
        const int width = net.count[side.other], taken = chosen[side.other];
        for (int s = 0; s < count; ++s) greedy[s] += side.table[static_cast<int64_t>(s) * width + taken];
      }
    }
    const double least = *std::min_element(total.begin(), total.end());
    bound += least;
    for (double& value : total) value -= least;
    std::copy(total.begin(), total.end(), net.worse.begin() + net.start[i]);
    chosen[i] = static_cast<int>(std::min_element(greedy.begin(), greedy.end()) - greedy.begin());
    const int most = std::max(later, static_cast<int>(net.near[i].size()) - later);
    const double share = 1.0 / std::max(most, 1);
    for (const Side& side : net.near[i]) {
      if ((side.other > i) != rising) continue;
      const int width = net.count[side.other];
      for (int s = 0; s < count; ++s) greedy[s] = share * total[s] - side.in[s];
      least_sums(greedy.data(), side.table, count, width, side.out);
      const double low = *std::min_element(side.out, side.out + width);
      bound += low;
      for (int t = 0; t < width; ++t) side.out[t] -= low;
    }
  }
  return bound;
}

// ---- Search: an annealed walk by moves of trees of nodes, never outside the rows' room ----

class Rooms {  // what is left in each row: adding to a run and the least of all, both by a tree over the rows
 public:
  explicit Rooms(const Doubles& room) : size_(1) {
    while (size_ < static_cast<int>(room.size())) size_ *= 2;
    low_.assign(2 * size_, 1e300);
    plus_.assign(2 * size_, 0.0);
    std::copy(room.begin(), room.end(), low_.begin() + size_);
    for (int k = size_ - 1; k > 0; --k) low_[k] = std::min(low_[2 * k], low_[2 * k + 1]);
  }
  double least() const { return low_[1]; }
  void add(int first, int end, double value) {
    if (first < end && value != 0.0) add(1, 0, size_, first, end, value);
  }
  int tightest() const {
    int k = 1;
    while (k < size_) k = low_[2 * k] <= low_[2 * k + 1] ? 2 * k : 2 * k + 1;
    return k - size_;
  }

 private:
  void add(int k, int low, int high, int first, int end, double value) {
    if (first <= low && high <= end) {
      low_[k] += value;
      plus_[k] += value;
      return;
    }
    const int middle = (low + high) / 2;
    if (first < middle) add(2 * k, low, middle, first, end, value);
    if (end > middle) add(2 * k + 1, middle, high, first, end, value);
    low_[k] = std::min(low_[2 * k], low_[2 * k + 1]) + plus_[k];
  }
  int size_;
  Doubles low_, plus_;
};

class Search {
 public:
  Search(const Net& net, const double* priced, int* chosen, uint64_t seed)
      : net_(net), priced_(priced), x_(chosen, chosen + net.n), rooms_(net.room), state_(seed),
        stamp_(net.n, 0), hits_(net.n, 0), place_(net.n, -1) {
    for (int i = 0; i < net.n; ++i) use(i, x_[i], -1.0);
  }

  // Moves single nodes until every row has room, the cheapest relief of the tightest row first.
  bool repair(int steps) {
    for (int step = 0; step < steps && rooms_.least() < 0.0; ++step) {
      const int row = rooms_.tightest();
      const double over = -rooms_.least();
      double best = 1e300;
      int node = -1, option = -1;
      for (int i = 0; i < net_.n; ++i) {
        const double* used = at(i, row);
        if (!used) continue;
        const Doubles costs = around(i, priced_);
        for (int s = 0; s < net_.count[i]; ++s) {
          const double freed = std::min(used[x_[i]] - used[s], over);
          if (freed <= 0.0) continue;
          const double score = std::max(costs[s] - costs[x_[i]], 1e-9) / freed;
          if (score < best) best = score, node = i, option = s;
        }
      }
      if (node < 0) return false;
      set(node, option);
    }
    return rooms_.least() >= 0.0;
  }

  // ``moves`` moves of trees of up to ``most`` nodes; the heat falls from ``hot`` to ``cold``. ``share`` of the prices
  // count in what is walked on. Returns the least true cost met within the room; its choices are in ``chosen``.
  double walk(int64_t moves, int most, double hot, double cold, double share, double deadline, int* chosen) {
    double cost = value(), best = rooms_.least() >= 0.0 ? cost : 1e300;
    own_.resize(net_.cost.size());
    for (size_t k = 0; k < own_.size(); ++k) own_[k] = net_.cost[k] + share * (priced_[k] - net_.cost[k]);
    std::copy(x_.begin(), x_.end(), chosen);
    std::vector<int> changed;  // nodes that may differ from the best met
    for (int64_t move = 0; move < moves; ++move) {
      if (move % 64 == 0 && now() > deadline) break;
      const double heat = hot > 0.0 ? hot * std::pow(cold / hot, static_cast<double>(move) / moves) : 0.0;
      const int root = static_cast<int>(random() % net_.n);
      grow(root, 1 + static_cast<int>(random() % most));
      decide(heat);
      if (!take(heat, cost)) continue;
      changed.insert(changed.end(), tree_.begin(), tree_.end());
      if (cost < best - 1e-9 && rooms_.least() >= 0.0) {
        best = cost;
        for (int i : changed) chosen[i] = x_[i];
        changed.clear();
      } else if (changed.size() > 8 * static_cast<size_t>(net_.n)) {
        std::sort(changed.begin(), changed.end());
        changed.erase(std::unique(changed.begin(), changed.end()), changed.end());
      }
    }
    return best;
  }

  double value() const {
    double cost = 0.0;
    for (int i = 0; i < net_.n; ++i) {
      cost += net_.cost[net_.start[i] + x_[i]];
      for (const Side& side : net_.near[i])
        if (side.other > i) cost += side.table[static_cast<int64_t>(x_[i]) * net_.count[side.other] + x_[side.other]];
    }
    return cost;
  }
  const std::vector<int>& chosen() const { return x_; }

 private:
  uint64_t random() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (z ^ (z >> 31)) >> 11;
  }
  double waiting() { return -std::log((static_cast<double>(random()) + 1.0) * 0x1p-53); }  // exponential, mean 1

  void use(int i, int s, double sign) {
    for (const Run& run : net_.runs[i]) rooms_.add(run.first, run.end, sign * run.use[s]);
  }
  void set(int i, int s) {
    use(i, x_[i], 1.0);
    use(i, s, -1.0);
    x_[i] = s;
  }
  const double* at(int i, int row) const {
    for (const Run& run : net_.runs[i])
      if (run.first <= row && row < run.end) return run.use;
    return nullptr;
  }
  Doubles around(int i, const double* own) const {
    Doubles costs(own + net_.start[i], own + net_.start[i] + net_.count[i]);
    for (const Side& side : net_.near[i]) add_column(side, i, costs.data());
    return costs;
  }
  void add_column(const Side& side, int i, double* costs) const {
    const int width = net_.count[side.other], taken = x_[side.other];
    for (int s = 0; s < net_.count[i]; ++s) costs[s] += side.table[static_cast<int64_t>(s) * width + taken];
  }

  // A tree of nodes around ``root`` without further edges inside, in the order of joining.
  void grow(int root, int most) {
    ++number_;
    tree_.assign(1, root);
    parent_.assign(1, -1);
    stamp_[root] = number_, hits_[root] = 2;
    border_.clear();
    reach(0);
    while (static_cast<int>(tree_.size()) < most && !border_.empty()) {
      const size_t pick = random() % border_.size();
      const auto [node, from] = border_[pick];
      border_[pick] = border_.back();
      border_.pop_back();
      if (hits_[node] != 1) continue;
      hits_[node] = 2;
      tree_.push_back(node);
      parent_.push_back(from);
      reach(static_cast<int>(tree_.size()) - 1);
    }
    for (size_t k = 0; k < tree_.size(); ++k) place_[tree_[k]] = static_cast<int>(k);
  }
  void reach(int k) {
    for (const Side& side : net_.near[tree_[k]]) {
      const int j = side.other;
      if (stamp_[j] != number_) stamp_[j] = number_, hits_[j] = 0;
      if (++hits_[j] == 1) border_.push_back({j, k});
    }
  }
  const Side& up(int k) const {
    const int above = tree_[parent_[k]];
    for (const Side& side : net_.near[tree_[k]])
      if (side.other == above) return side;
    return net_.near[tree_[k]].front();
  }

  // The best options of the tree's nodes at their costs plus noise, all others held.
  void decide(double heat) {
    const int size = static_cast<int>(tree_.size());
    costs_.resize(std::max<size_t>(costs_.size(), size));
    plain_.resize(size);
    for (int k = 0; k < size; ++k) {
      const int i = tree_[k], count = net_.count[i];
      costs_[k].assign(own_.begin() + net_.start[i], own_.begin() + net_.start[i] + count);
      for (const Side& side : net_.near[i])
        if (!inside(side.other)) add_column(side, i, costs_[k].data());
      plain_[k] = costs_[k];
      if (heat > 0.0)
        for (double& cost : costs_[k]) cost += heat * waiting();
    }
    for (int k = size - 1; k > 0; --k) {
      const Side& side = up(k);
      message_.resize(net_.count[side.other]);
      least_sums(costs_[k].data(), side.table, net_.count[tree_[k]], net_.count[side.other], message_.data());
      add(costs_[parent_[k]].data(), message_.data(), net_.count[side.other]);
    }
    fresh_.resize(size);
    for (int k = 0; k < size; ++k) {
      Doubles& costs = costs_[k];
      if (k) {
        const Side& side = up(k);
        const int width = net_.count[side.other], taken = fresh_[parent_[k]];
        for (size_t s = 0; s < costs.size(); ++s) costs[s] += side.table[static_cast<int64_t>(s) * width + taken];
      }
      fresh_[k] = static_cast<int>(std::min_element(costs.begin(), costs.end()) - costs.begin());
    }
  }
  bool inside(int j) const { return place_[j] >= 0 && place_[j] < static_cast<int>(tree_.size()) && tree_[place_[j]] == j; }

  // Goes there if the heat allows it and the rows have room; keeps the true cost.
  bool take(double heat, double& cost) {
    double change = 0.0, truly = 0.0;
    bool same = true;
    const int size = static_cast<int>(tree_.size());
    for (int k = 0; k < size; ++k) {
      const int i = tree_[k], before = x_[i];
      same &= before == fresh_[k];
      change += plain_[k][fresh_[k]] - plain_[k][before];
      truly += net_.cost[net_.start[i] + fresh_[k]] - net_.cost[net_.start[i] + before];
      truly -= own_[net_.start[i] + fresh_[k]] - own_[net_.start[i] + before];
      if (k) {
        const Side& side = up(k);
        const int64_t width = net_.count[side.other];
        change += side.table[fresh_[k] * width + fresh_[parent_[k]]] - side.table[before * width + x_[tree_[parent_[k]]]];
      }
    }
    if (same || change > (heat > 0.0 ? heat * waiting() : 0.0)) return false;
    const double floor = std::min(rooms_.least(), 0.0);
    for (int k = 0; k < size; ++k) std::swap(x_[tree_[k]], fresh_[k]), swap_use(k);
    if (rooms_.least() < floor) {
      for (int k = 0; k < size; ++k) std::swap(x_[tree_[k]], fresh_[k]), swap_use(k);
      return false;
    }
    cost += change + truly;
    return true;
  }
  void swap_use(int k) {  // after a swap of what is taken and what was
    const int i = tree_[k];
    if (x_[i] == fresh_[k]) return;
    for (const Run& run : net_.runs[i]) rooms_.add(run.first, run.end, run.use[fresh_[k]] - run.use[x_[i]]);
  }

  const Net& net_;
  const double* priced_;
  std::vector<int> x_;
  Rooms rooms_;
  uint64_t state_;
  int number_ = 0;
  std::vector<int> stamp_, hits_, place_, tree_, parent_, fresh_;
  std::vector<std::pair<int, int>> border_;
  std::vector<Doubles> costs_, plain_;
  Doubles own_, message_;
};

}  // namespace

extern "C" {

void* adaflex_pairs_new(int n, const int* count, const double* cost, int edges, const int* ends, const double* tables,
                        int runs, const int* spans, const double* use, int rows, const double* room) {
  Net* net = new Net{n, rows, {count, count + n}, {0}, {}, {}, {}, {}, {room, room + rows}, {}, {}, {}, {}};
  for (int i = 0; i < n; ++i) net->start.push_back(net->start.back() + count[i]);
  net->cost.assign(cost, cost + net->start[n]);
  net->worse.assign(net->start[n], 0.0);
  net->near.resize(n);
  net->runs.resize(n);
  int64_t entries = 0, options = 0, used = 0;
  for (int e = 0; e < edges; ++e) {
    entries += static_cast<int64_t>(count[ends[2 * e]]) * count[ends[2 * e + 1]];
    options += count[ends[2 * e]] + count[ends[2 * e + 1]];
  }
  for (int r = 0; r < runs; ++r) used += count[spans[3 * r]];
  net->tables.assign(tables, tables + entries);
  net->flipped.resize(entries);
  net->messages.assign(options, 0.0);
  net->use.assign(use, use + used);
  entries = options = used = 0;
  for (int e = 0; e < edges; ++e) {
    const int a = ends[2 * e], b = ends[2 * e + 1];
    const double* table = net->tables.data() + entries;
    double* flipped = net->flipped.data() + entries;
    for (int s = 0; s < count[a]; ++s)
      for (int t = 0; t < count[b]; ++t) flipped[static_cast<int64_t>(t) * count[a] + s] = table[static_cast<int64_t>(s) * count[b] + t];
    double* to_a = net->messages.data() + options;
    double* to_b = to_a + count[a];
    net->near[a].push_back({b, table, to_a, to_b});
    net->near[b].push_back({a, flipped, to_b, to_a});
    entries += static_cast<int64_t>(count[a]) * count[b];
    options += count[a] + count[b];
  }
  for (int r = 0; r < runs; ++r) {
    net->runs[spans[3 * r]].push_back({spans[3 * r + 1], spans[3 * r + 2], net->use.data() + used});
    used += count[spans[3 * r]];
  }
  return net;
}

void adaflex_pairs_free(void* net) { delete static_cast<Net*>(net); }

double adaflex_pairs_pass(void* net, int rising, const double* own, int* chosen) {
  return pass(*static_cast<Net*>(net), rising != 0, own, chosen);
}

void adaflex_pairs_worse(void* net, double* worse) {
  const Net& held = *static_cast<Net*>(net);
  std::copy(held.worse.begin(), held.worse.end(), worse);
}

void adaflex_pairs_messages(void* net, double* messages) {
  const Net& held = *static_cast<Net*>(net);
  std::copy(held.messages.begin(), held.messages.end(), messages);
}

// Repairs ``chosen``, then walks; returns the least cost met (1e300: nothing within the room).
double adaflex_pairs_search(void* net, const double* priced, int* chosen, uint64_t seed, int steps, int64_t moves, int most,
                            double hot, double cold, double share, double seconds) {
  Search search(*static_cast<Net*>(net), priced, chosen, seed);
  if (!search.repair(steps)) {
    std::copy(search.chosen().begin(), search.chosen().end(), chosen);
    return 1e300;
  }
  return search.walk(moves, most, hot, cold, share, now() + seconds, chosen);
}

}  // extern "C"
