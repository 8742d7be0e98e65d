// Windows over images, all kinds, for rows [r0, r1).
#include "windows.h"

using namespace af;

struct Problem {
    const float *x, *weight;
    float* out;
    long kind, columns;  // 0 patches, 1 sums, 2 maxima; floats of a row of the result
    float share;
    Windows w;
};

extern "C" void slide(const Problem* p, long r0, long r1) {
    const auto run = p->kind == 0   ? WindowTiles<0>::patches
                     : p->kind == 1 ? WindowTiles<0>::sums
                                    : WindowTiles<0>::maxima;
    run(p->w, p->x, p->weight, p->share, p->out, r0, r1);
}
