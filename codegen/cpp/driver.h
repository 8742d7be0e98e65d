// Walks the steps of a segment with a team of threads: who gets which rows, where threads meet.
// In: the tables of a generated unit and a Call filled by the runtime. Out: the segment's slots written.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstring>
#include "math.h"
#include "rows.h"
#include "team.h"
#include "vec.h"

// A function that many steps share must stay one: no copies for its callers.
#if defined(__clang__)
#define AF_STEP __attribute__((noinline))
#else
#define AF_STEP __attribute__((noinline, noclone))
#endif

namespace af {

enum Mode { BY_GROUP = 0, BY_ROW = 1, BY_COLUMN = 2 };
enum Window { FULL = 0, GROUP = 1, BLOCK = 2 };

// What the runtime hands over for one call. Arrays have one entry per slot of the program.
struct Call {
  const long* symbols;
  char* const* base;        // FULL: where the slot lies (0 where it is windowed)
  const long* offset;       // GROUP, BLOCK: offset within a thread's own arena
  const long* row_bytes;
  const long* group_rows;   // rows of the slot per group
  const int* window;
  long slots;
  char* thread_arena;       // threads x thread_bytes
  long thread_bytes;        // windowed slots, then scratch
  long scratch_offset;      // within a thread's arena
  void* team;
  long threads;
  long mode;
  long groups;              // of this segment, for this shape
  long item_groups;         // groups a thread takes at a time
  int* fault;               // set to 1 where a row number lies outside its table
};

// What one thread works with: its own slot pointers, adjusted so that absolute row numbers index its windows.
struct Thread {
  char** p;
  char* arena;
  char* scratch;
  int part;    // BY_COLUMN: this thread's share of the columns of a product
  int parts;
};

// Rows [r0, r1) of a step: one function serves all steps that do the same to other slots.
struct Step {
  void (*run)(const Call&, Thread&, const int* slots, long r0, long r1);
  const int* slots;
};
typedef void (*Whole)(const Call&, Thread&, long r0, long r1);
typedef long (*Rows)(const long* symbols);

struct LoopEntry {
  Whole run;           // over [r0, r1)
  Rows rows;
  const Step* steps;   // its steps one by one, for BY_COLUMN
  const char* splits;  // per step: can its columns be split?
  int count;
};
struct PhaseEntry { const LoopEntry* loops; int count; };
struct SegmentEntry { const PhaseEntry* phases; int count; };

constexpr long MOST_SLOTS = 4096;

inline void rebase(const Call& c, Thread& t, long group) {
  for (long i = 0; i < c.slots; ++i)
    if (c.window[i] == GROUP) t.p[i] = t.arena + c.offset[i] - group * c.group_rows[i] * c.row_bytes[i];
}

inline void rebase_block(const Call& c, Thread& t, int slot, long row) {
  t.p[slot] = t.arena + c.offset[slot] - row * c.row_bytes[slot];
}

// Thread `part` of `parts` gets whole tiles of 8 rows, so that no tile is split between two threads.
inline long share(long rows, int part, int parts) {
  const long tiles = (rows + 7) / 8;
  const long at = tiles * part / parts * 8;
  return at < rows ? at : rows;
}

struct Work {
  const Call* call;
  const SegmentEntry* segment;
  std::atomic<long> next{0};
};

inline void by_group(const Call& c, const SegmentEntry& s, Thread& t, std::atomic<long>& next) {
  for (;;) {
    const long g0 = next.fetch_add(c.item_groups, std::memory_order_relaxed);
    if (g0 >= c.groups) return;
    const long g1 = g0 + c.item_groups < c.groups ? g0 + c.item_groups : c.groups;
    rebase(c, t, g0);
    for (int i = 0; i < s.count; ++i)
      for (int j = 0; j < s.phases[i].count; ++j) {
        const LoopEntry& loop = s.phases[i].loops[j];
        const long per = loop.rows(c.symbols) / c.groups;
        loop.run(c, t, g0 * per, g1 * per);
      }
  }
}

inline void by_row(const Call& c, const SegmentEntry& s, Thread& t, int thread, Team& team) {
  for (int i = 0; i < s.count; ++i) {
    for (int j = 0; j < s.phases[i].count; ++j) {
      const LoopEntry& loop = s.phases[i].loops[j];
      const long rows = loop.rows(c.symbols);
      const long r0 = share(rows, thread, int(c.threads)), r1 = share(rows, thread + 1, int(c.threads));
      if (r0 < r1) loop.run(c, t, r0, r1);
    }
    if (i + 1 < s.count && c.threads > 1) team.barrier();
  }
}

inline void by_column(const Call& c, const SegmentEntry& s, Thread& t, int thread, Team& team) {
  for (int i = 0; i < s.count; ++i)
    for (int j = 0; j < s.phases[i].count; ++j) {
      const LoopEntry& loop = s.phases[i].loops[j];
      const long rows = loop.rows(c.symbols);
      for (int k = 0; k < loop.count; ++k) {
        const Step& step = loop.steps[k];
        if (loop.splits[k]) {
          t.part = thread;
          t.parts = int(c.threads);
          step.run(c, t, step.slots, 0, rows);
        } else {
          const long r0 = rows * thread / c.threads, r1 = rows * (thread + 1) / c.threads;
          t.part = 0;
          t.parts = 1;
          if (r0 < r1) step.run(c, t, step.slots, r0, r1);
        }
        team.barrier();
      }
    }
}

inline void run_thread(void* argument, int thread) {
  Work& w = *static_cast<Work*>(argument);
  const Call& c = *w.call;
  char* pointers[MOST_SLOTS];
  for (long i = 0; i < c.slots; ++i) pointers[i] = c.base[i];
  char* arena = c.thread_arena + thread * c.thread_bytes;
  Thread t{pointers, arena, arena + c.scratch_offset, 0, 1};
  Team& team = *static_cast<Team*>(c.team);
  if (c.mode == BY_GROUP) by_group(c, *w.segment, t, w.next);
  else if (c.mode == BY_ROW) by_row(c, *w.segment, t, thread, team);
  else by_column(c, *w.segment, t, thread, team);
}

// 0: done; 1: more slots than a thread's table holds; 3: the threads could not be started.
inline int run_segment(const SegmentEntry& segment, const Call* call) {
  if (call->slots > MOST_SLOTS) return 1;
  Work work;
  work.call = call;
  work.segment = &segment;
  Team& team = *static_cast<Team*>(call->team);
  if (call->threads == 1) run_thread(&work, 0);
  else if (!team.run(run_thread, &work)) return 3;
  return 0;
}

// ---- helpers of generated bodies ----
// A row number of a table; outside it the first row is read and the call is refused afterwards.
AF_INLINE long picked(const Call& c, long row, long rows) {
  if (__builtin_expect((unsigned long)row < (unsigned long)rows, 1)) return row;
  __atomic_store_n(c.fault, 1, __ATOMIC_RELAXED);
  return 0;
}
template <class T> AF_INLINE vf ld(const T* p, int n) { return n == 16 ? load(p) : load(p, n); }
template <class T> AF_INLINE void st(T* p, vf v, int n) { if (n == 16) store(p, v); else store(p, v, n); }
template <class T> AF_INLINE vf ld1(const T* p) { return set1(hsum(load(p, 1))); }
template <class T> AF_INLINE vf ld_strided(const T* p, long stride, int n) {
  alignas(64) float t[16] = {};
  for (int i = 0; i < n; ++i) t[i] = hsum(load(p + i * stride, 1));
  return load(t);
}
// Rows picked from the panels that products read: 32 rows, of each LANES columns side by side.
AF_INLINE long panel_row(long row, long pitch, long lanes) { return row / 32 * pitch + row % 32 * lanes; }
template <int LANES, class T> AF_INLINE vf ld_panel(const T* p, long column, int n) {
  alignas(64) T t[16] = {};
  for (int i = 0; i < n; ++i) t[i] = p[(column + i) / LANES * (32 * LANES) + (column + i) % LANES];
  return load(t);
}
AF_INLINE vf iota(long start) { return iota() + set1(float(start)); }

// A kernel parameter of whatever pointer type the kernel asks for.
struct Any {
  const char* p;
  template <class T> operator const T*() const { return (const T*)p; }
};

constexpr long round16(long n) { return (n + 15) / 16 * 16; }
constexpr long size_cdiv(long a, long b) { return (a + b - 1) / b; }
constexpr long size_min(long a, long b) { return a < b ? a : b; }
constexpr long size_max(long a, long b) { return a > b ? a : b; }

// Columns of a product that share `part` of `parts` begins at: whole panels of 32.
inline long column_share(long columns, int part, int parts) {
  const long panels = (columns + 31) / 32;
  return size_min(panels * part / parts * 32, columns);
}

template <class F> AF_INLINE void columns(long count, F&& body) {
  long col = 0;
  for (; col + 16 <= count; col += 16) body(col, 16);
  if (col < count) body(col, int(count - col));
}

// Columns [col, end), col a multiple of 64. For reductions: neighbouring vectors belong to different chains, so that
// none waits for the one before it.
template <class F> AF_INLINE void chains(long col, long end, F&& body) {
  AF_ROLLED for (; col + 64 <= end; col += 64) {
    body(col, 16, 0);
    body(col + 16, 16, 1);
    body(col + 32, 16, 2);
    body(col + 48, 16, 3);
  }
  AF_ROLLED for (; col + 16 <= end; col += 16) body(col, 16, 0);
  if (col < end) body(col, int(end - col), 0);
}

// ---- rows that go through the stages of a region together, so that none waits for its own reductions ----
constexpr int ROWS = 8;                   // at most
constexpr long TOGETHER_BYTES = 16 << 10;  // of one value of more than four rows: stays in the first-level cache
constexpr long MOST_TOGETHER = 8192;       // columns: what four longer rows keep would crowd the second-level cache
constexpr long COLUMNS = 512;  // at a time: what all rows read stays in the first-level cache; 16 groups of 32
constexpr long rows_together(long columns) {
  return columns > MOST_TOGETHER ? 1 : columns * 4 * ROWS <= TOGETHER_BYTES ? ROWS : ROWS / 2;
}
constexpr long part_pitch(long columns) { return size_min(COLUMNS, round16(columns)); }  // floats of a row's part

// One number per row lies in the lanes of a vector.
AF_INLINE vf lane(vf x, int row) {
  alignas(64) float t[16];
  store(t, x);
  return set1(t[row]);
}
template <class F> AF_INLINE vf each_row(int rows, F&& value) {
  alignas(64) float t[16] = {};
  for (int k = 0; k < rows; ++k) t[k] = lane0(value(k));
  return load(t);
}
AF_INLINE vf joined_sum(const vf (&a)[4]) { return (a[0] + a[1]) + (a[2] + a[3]); }
AF_INLINE vf joined_max(const vf (&a)[4]) { return max(max(a[0], a[1]), max(a[2], a[3])); }
AF_INLINE vf joined_min(const vf (&a)[4]) { return min(min(a[0], a[1]), min(a[2], a[3])); }
// What `reduce` makes of a vector per row, four at a time.
template <class F> AF_INLINE vf by_fours(int rows, F&& reduce) {
  vf part[4] = {zero(), zero(), zero(), zero()};
  AF_ROLLED for (int k = 0; k < rows; k += 4) part[k / 4] = reduce(k);
  return quarters(part[0], part[1], part[2], part[3]);
}
AF_INLINE vf hsum(const vf (&a)[ROWS], int rows) {
  return by_fours(rows, [&](int k) AF_LAMBDA { return hsum4(a[k], a[k + 1], a[k + 2], a[k + 3]); });
}
AF_INLINE vf hmax(const vf (&a)[ROWS], int rows) {
  return by_fours(rows, [&](int k) AF_LAMBDA { return hmax4(a[k], a[k + 1], a[k + 2], a[k + 3]); });
}
AF_INLINE vf hmin(const vf (&a)[ROWS], int rows) {
  return by_fours(rows, [&](int k) AF_LAMBDA { return hmin4(a[k], a[k + 1], a[k + 2], a[k + 3]); });
}
AF_INLINE Span joined(Span (&e)[4]) {
  e[0].join(e[1]);
  e[2].join(e[3]);
  e[0].join(e[2]);
  return e[0];
}

// A row's sums of distances from each chain's first values, lane by lane, and of their squares: one pass, and whatever
// the row holds, the squares lose at most a factor count / 64 of precision.
struct Shifted {
  vf start[4], sum[4], squares[4];
  AF_INLINE void add(int chain, vf v, int n) {
    const vf d = first(v - start[chain], n, 0.0f);
    sum[chain] += d;
    squares[chain] = fma(d, d, squares[chain]);
  }
  AF_INLINE void take(const Shifted& m) {  // vector by vector: a copy of the whole would keep `m` out of the registers
    AF_UNROLL for (int i = 0; i < 4; ++i) {
      start[i] = m.start[i];
      sum[i] = m.sum[i];
      squares[i] = m.squares[i];
    }
  }
};
constexpr int starts(long count) { return count >= 64 ? 4 : 1; }  // chains that meet values
// How many values each lane of a chain has met.
AF_INLINE vf met(long count, int chain) {
  const vf whole = set1(float(chain == 0 ? count / 64 + count % 64 / 16 : count / 64));
  return chain == 0 ? select(lanes(int(count % 16)), whole + 1.0f, whole) : whole;
}
AF_INLINE vf totals(const Shifted (&m)[ROWS], int rows, long count) {
  const vf most = met(count, 0), rest = met(count, 1);
  return by_fours(rows, [&](int k) AF_LAMBDA {
    vf sum[4];
    AF_UNROLL for (int i = 0; i < 4; ++i) {
      const Shifted& row = m[k + i];
      vf part[4];
      AF_UNROLL for (int j = 0; j < 4; ++j) part[j] = fma(row.start[j], j == 0 ? most : rest, row.sum[j]);
      sum[i] = joined_sum(part);
    }
    return hsum4(sum[0], sum[1], sum[2], sum[3]);
  });
}
// Sums of squared distances from each row's mean.
AF_INLINE vf spreads(const Shifted (&m)[ROWS], int rows, long count, vf means) {
  const vf most = met(count, 0), rest = met(count, 1);
  alignas(64) float mean[16];
  store(mean, means);
  return by_fours(rows, [&](int k) AF_LAMBDA {
    vf sum[4];
    AF_UNROLL for (int i = 0; i < 4; ++i) {
      const Shifted& row = m[k + i];
      vf part[4];
      AF_UNROLL for (int j = 0; j < 4; ++j) {
        const vf d = row.start[j] - set1(mean[k + i]);
        part[j] = fma(d, fma(d, j == 0 ? most : rest, row.sum[j] + row.sum[j]), row.squares[j]);
      }
      sum[i] = joined_sum(part);
    }
    return hsum4(sum[0], sum[1], sum[2], sum[3]);
  });
}
// How rows whose values were met are stored as codes; x: where those values are.
AF_INLINE Codings codings(const Span (&e)[ROWS], const float* const (&x)[ROWS], int rows, long K) {
  vf odd = zero();
  const vf low = by_fours(rows, [&](int k) AF_LAMBDA {
    odd += (e[k].odd + e[k + 1].odd) + (e[k + 2].odd + e[k + 3].odd);
    return fast_hmin4(e[k].low, e[k + 1].low, e[k + 2].low, e[k + 3].low);
  });
  const vf high = by_fours(rows, [&](int k) AF_LAMBDA {
    return fast_hmax4(e[k].high, e[k + 1].high, e[k + 2].high, e[k + 3].high);
  });
  Codings made;
  made.set(low, high, 1.0f);
  if (__builtin_expect(any(isnan(odd)), 0))
    for (int k = 0; k < rows; ++k) made.put(k, coding(row_extent(x[k], K), 1.0f));
  return made;
}

AF_INLINE vm truth(vf v) { return ne(v, set1(0.0f)); }
AF_INLINE vf one_if(vm m) { return select(m, set1(1.0f), set1(0.0f)); }
AF_INLINE vf round_bf16(vf v) {
  alignas(64) bf16 t[16];
  store(t, v);
  return load(t);
}

// One value for the whole row.
template <class T> AF_INLINE void fill(T* p, vf v, long count) {
  for (long i = 0; i < count; i += 16) store(p + i, v, int(size_min(16, count - i)));
}
AF_INLINE void zero_tail(bf16* p, long count, long row_bytes) {
  for (long i = count; i < row_bytes / 2; ++i) p[i] = bf16{0};
}
}  // namespace af
