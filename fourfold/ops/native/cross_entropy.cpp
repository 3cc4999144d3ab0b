// Cross-entropy (ops/cross_entropy.py): logits [rows, vocabulary] become scale · (softmax - one-hot) in place.
#include "common.hpp"

// losses [rows] gets the loss of each row in fp32. A row with a negative target counts for nothing: zeros, and a loss of zero.
template <class T>
static void forward(T* logits, const int64_t* targets, float* losses, int64_t rows, int64_t vocabulary, float scale) {
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        T* row = logits + i * vocabulary;
        if (targets[i] < 0) {
            std::memset((void*)row, 0, vocabulary * sizeof(T));
            losses[i] = 0;
            continue;
        }
        float best = -INFINITY, total = 0, right = widen(row[targets[i]]);
        #pragma omp simd reduction(max : best)
        for (int64_t c = 0; c < vocabulary; c++) best = widen(row[c]) > best ? widen(row[c]) : best;
        #pragma omp simd reduction(+ : total)
        for (int64_t c = 0; c < vocabulary; c++) total += fast_exp(widen(row[c]) - best);
        losses[i] = std::log(total) + best - right;
        float factor = scale / total;
        #pragma omp simd
        for (int64_t c = 0; c < vocabulary; c++) narrow(fast_exp(widen(row[c]) - best) * factor, row[c]);
        narrow(fast_exp(right - best) * factor - scale, row[targets[i]]);
    }
}

API void cross_entropy_f32(float* logits, const int64_t* targets, float* losses, int64_t rows, int64_t vocabulary, float scale) {
    forward(logits, targets, losses, rows, vocabulary, scale);
}
API void cross_entropy_bf16(bf16* logits, const int64_t* targets, float* losses, int64_t rows, int64_t vocabulary, float scale) {
    forward(logits, targets, losses, rows, vocabulary, scale);
}
