// Rows of a plain CSV to columns of integers, and steps to sections, a million in a moment (compiled with core.cpp).
//
// Rows. In: text after the header, the number of columns, which of them hold id, first step, end and size. Out: where each id
// lies, and three integers per row; -1 for anything that is not plain (a quote, a blank, an empty or odd number, a cell
// that would mean something): the reader in files.py then says what is wrong, or reads it.

namespace {

bool whole_number(const char* from, const char* to, int64_t* value) {
  bool minus = from < to && *from == '-';
  if (minus) ++from;
  if (from == to || to - from > 18) return false;
  int64_t sum = 0;
  for (; from < to; ++from) {
    if (*from < '0' || *from > '9') return false;
    sum = sum * 10 + (*from - '0');
  }
  *value = minus ? -sum : sum;
  return true;
}

}  // namespace

extern "C" int64_t adaflex_pack_read(const char* text, int64_t length, int columns, const int32_t* which, int64_t most,
                                     int64_t* id_from, int64_t* id_to, int64_t* first, int64_t* end, int64_t* size) {
  int64_t* numbers[3] = {first, end, size};
  int64_t rows = 0;
  const char* stop = text + length;
  for (const char* at = text; at < stop;) {
    if (rows == most) return -1;
    const char* line = static_cast<const char*>(memchr(at, '\n', stop - at));
    const char* next = line ? line + 1 : stop;
    if (!line) line = stop;
    if (line > at && line[-1] == '\r') --line;
    int column = 0;
    for (const char* cell = at; cell <= line; ++column) {
      const char* comma = cell;
      for (; comma < line && *comma != ','; ++comma)
        if (*comma == '"' || *comma <= ' ' || *comma >= 127 || *comma < 0) return -1;
      if (column == which[0]) {
        if (cell == comma) return -1;
        id_from[rows] = cell - text;
        id_to[rows] = comma - text;
      }
      for (int k = 0; k < 3; ++k)
        if (column == which[k + 1] && !whole_number(cell, comma, &numbers[k][rows])) return -1;
      if (column != which[0] && column != which[1] && column != which[2] && column != which[3] && cell != comma && which[4 + column])
        return -1;
      cell = comma + 1;
    }
    if (column != columns) return -1;
    ++rows;
    at = next;
  }
  return rows;
}

// Sections. In: first step and end of each run, the least step, a table of `words` x 64 bits over all steps. Out: the
// number of the section where each run begins and ends, the steps at which sections begin; their number is returned.
extern "C" int64_t adaflex_pack_sections(int64_t runs, const int64_t* first, const int64_t* end, int64_t least, int64_t words,
                                         int64_t* low, int64_t* high, int64_t* times) {
  std::vector<uint64_t> seen(words, 0);
  std::vector<int64_t> before(words, 0);
  for (int64_t r = 0; r < runs; ++r) {
    uint64_t a = first[r] - least, b = end[r] - least;
    seen[a >> 6] |= uint64_t{1} << (a & 63);
    seen[b >> 6] |= uint64_t{1} << (b & 63);
  }
  int64_t count = 0;
  for (int64_t w = 0; w < words; ++w) {
    before[w] = count;
    for (uint64_t bits = seen[w]; bits; bits &= bits - 1) times[count++] = least + w * 64 + __builtin_ctzll(bits);
  }
  auto number = [&](uint64_t step) {
    return before[step >> 6] + __builtin_popcountll(seen[step >> 6] & ((uint64_t{1} << (step & 63)) - 1));
  };
  for (int64_t r = 0; r < runs; ++r) {
    low[r] = number(first[r] - least);
    high[r] = number(end[r] - least);
  }
  return count;
}
