// Timer for benchmarks/region_rows.py: a generated unit's entry over a list of calls.
#include "ceilings.h"

typedef int (*Segment)(int, const void*);

// Nanoseconds of one call. A list of several is timed call by call, and the fastest of `rounds` kept for each, so that
// a burst stays shorter than a slice of the scheduler; a single call is made `inner` times in a burst.
extern "C" double time_calls(Segment run, const void* const* calls, int count, int inner, int rounds) {
    double sum = 0;
    double best[4096];
    if (count > 4096) return -1;
    for (int i = 0; i < count; ++i) best[i] = 1e30;
    for (int round = 0; round < rounds; ++round)
        for (int i = 0; i < count; ++i) {
            double took = fastest(1, [&] { for (int k = 0; k < inner; ++k) run(0, calls[i]); });
            best[i] = took < best[i] ? took : best[i];
        }
    for (int i = 0; i < count; ++i) sum += best[i];
    return sum / count / inner;
}
