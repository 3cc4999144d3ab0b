// A few rows times a few rows of a weight, the inner loop of every product that is not left to the library.
#pragma once
#include "common.hpp"

// y [rows, outputs], rows first.. of them at most ROWS, from x [rows, width] and w [outputs, width]: outputs [begin, end).
template <int ROWS, class T>
static void products(const T* x, const T* w, T* y, int64_t rows, int64_t begin, int64_t end, int64_t width, int64_t outputs) {
    constexpr int AT_ONCE = LANES / ROWS;
    for (int64_t o = begin; o < end; o += AT_ONCE) {
        const T *from[ROWS], *weights[AT_ONCE];
        for (int r = 0; r < ROWS; r++) from[r] = x + (r < rows ? r : rows - 1) * width;
        for (int j = 0; j < AT_ONCE; j++) weights[j] = w + (o + j < end ? o + j : end - 1) * width;
        vec totals[LANES] = {};
        for (int64_t c = 0; c < width; c += LANES) {
            vec values[ROWS];
            for (int r = 0; r < ROWS; r++) values[r] = load(from[r] + c);
            for (int j = 0; j < AT_ONCE; j++) {
                __builtin_prefetch(weights[j] + AT_ONCE * width + c, 0, 2);
                vec weight = held(load(weights[j] + c));
                for (int r = 0; r < ROWS; r++) totals[j * ROWS + r] += weight * values[r];
            }
        }
        vec found = sums(totals);
        for (int j = 0; j < AT_ONCE && o + j < end; j++)
            for (int r = 0; r < ROWS && r < rows; r++) narrow(found[j * ROWS + r], y[r * outputs + o + j]);
    }
}
