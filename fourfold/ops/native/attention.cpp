// The passes between the matrix products of attention (ops/attention.py) and of the indexer (ops/indexer.py).
#include <algorithm>
#include <functional>
#include <vector>
#include "common.hpp"

// In place over scores [heads, queries, keys]: the softmax of scale · score over the keys that the mask allows, zeros for a
// query that may read nothing. mask [queries, stride] of bytes, or null for all keys; mass [queries, stride] of float, or null,
// gets the mean over heads (written, not added). Both point to the first of these keys.
template <class T>
static void softmax(T* scores, const uint8_t* mask, float* mass, int64_t heads, int64_t queries, int64_t keys, int64_t stride,
                    float scale) {
    const std::vector<uint8_t> all(mask ? 0 : keys, 1);
    const float share = 1.0f / heads;
    #pragma omp parallel for schedule(static)
    for (int64_t q = 0; q < queries; q++) {
        const uint8_t* allowed = mask ? mask + q * stride : all.data();
        for (int64_t h = 0; h < heads; h++) {
            T* row = scores + (h * queries + q) * keys;
            float best = -INFINITY, total = 0;
            #pragma omp simd reduction(max : best)
            for (int64_t k = 0; k < keys; k++) {
                float value = allowed[k] ? widen(row[k]) : -INFINITY;
                best = value > best ? value : best;
            }
            #pragma omp simd reduction(+ : total)
            for (int64_t k = 0; k < keys; k++) {
                float odds = fast_exp((widen(row[k]) - best) * scale);
                odds = allowed[k] ? odds : 0.0f;
                total += odds;
                narrow(odds, row[k]);
            }
            float inverse = total > 0 ? 1.0f / total : 0.0f;
            #pragma omp simd
            for (int64_t k = 0; k < keys; k++) narrow(widen(row[k]) * inverse, row[k]);
            if (!mass) continue;
            float* own = mass + q * stride;
            #pragma omp simd
            for (int64_t k = 0; k < keys; k++) own[k] = (h ? own[k] : 0.0f) + widen(row[k]) * share;
        }
    }
}

// In place over d(probabilities) [rows, keys]: scale · p (dp - Σ p dp).
template <class T>
static void softmax_backward(const T* probabilities, T* grad, int64_t rows, int64_t keys, float scale) {
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const T* p = probabilities + i * keys;
        T* g = grad + i * keys;
        float along = 0;
        #pragma omp simd reduction(+ : along)
        for (int64_t k = 0; k < keys; k++) along += widen(p[k]) * widen(g[k]);
        #pragma omp simd
        for (int64_t k = 0; k < keys; k++) narrow(scale * widen(p[k]) * (widen(g[k]) - along), g[k]);
    }
}

// scores [rows, keys] = Σ_j weights [rows, heads] · ReLU(products [rows, heads, keys]); rows of scores lie `stride` apart.
API void index_scores(const float* products, const float* weights, float* scores, int64_t rows, int64_t heads, int64_t keys,
                      int64_t stride) {
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        float* to = scores + i * stride;
        for (int64_t h = 0; h < heads; h++) {
            const float* row = products + (i * heads + h) * keys;
            float weight = weights[i * heads + h];
            #pragma omp simd
            for (int64_t k = 0; k < keys; k++) to[k] = (h ? to[k] : 0.0f) + weight * (row[k] > 0 ? row[k] : 0.0f);
        }
    }
}

// In place: products become their gradients; weights_grad [rows, heads].
API void index_scores_backward(float* products, const float* weights, const float* grad, float* weights_grad, int64_t rows,
                               int64_t heads, int64_t keys, int64_t stride) {
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const float* arriving = grad + i * stride;
        for (int64_t h = 0; h < heads; h++) {
            float *row = products + (i * heads + h) * keys, weight = weights[i * heads + h], total = 0;
            #pragma omp simd reduction(+ : total)
            for (int64_t k = 0; k < keys; k++) {
                total += arriving[k] * (row[k] > 0 ? row[k] : 0.0f);
                row[k] = row[k] > 0 ? weight * arriving[k] : 0.0f;
            }
            weights_grad[i * heads + h] = total;
        }
    }
}

// Row by row over [rows, keys]: losses = KL(mass || softmax(scores)) over the keys that the mask allows, and grad = its gradient
// for the scores. A row that may read nothing has a loss of -1 and no gradient.
API void index_kl(const float* scores, const float* mass, const uint8_t* mask, float* losses, float* grad, int64_t rows,
                  int64_t keys) {
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const float *score = scores + i * keys, *wanted = mass + i * keys;
        const uint8_t* allowed = mask + i * keys;
        float *to = grad + i * keys, best = -INFINITY, total = 0, all = 0, loss = 0;
        std::memset(to, 0, keys * sizeof(float));
        int64_t first = 0, end = keys;  // what lies outside these is not allowed
        while (first < end && !allowed[first]) first++;
        while (end > first && !allowed[end - 1]) end--;
        #pragma omp simd reduction(max : best)
        for (int64_t k = first; k < end; k++) {
            float value = allowed[k] ? score[k] : -INFINITY;
            best = value > best ? value : best;
        }
        if (first == end) {
            losses[i] = -1;
            continue;
        }
        #pragma omp simd reduction(+ : total, all)
        for (int64_t k = first; k < end; k++) {
            float odds = fast_exp(score[k] - best);
            odds = allowed[k] ? odds : 0.0f;
            to[k] = odds;
            total += odds;
            all += wanted[k];
        }
        float share = all / total, log_total = std::log(total) + best;
        for (int64_t k = first; k < end; k++)
            if (wanted[k] > 0) loss += wanted[k] * (std::log(wanted[k]) - score[k] + log_total);
        #pragma omp simd
        for (int64_t k = first; k < end; k++) to[k] = to[k] * share - wanted[k];
        losses[i] = loss;
    }
}

// The k best keys of each row of scores [rows, keys], ascending; among equals the newer (the higher index) wins. Compared as
// integers in the order of the numbers; -0 is made 0 first, and every NaN the same one, above all numbers as in PyTorch.
API void newest_topk(const float* scores, int64_t* indices, int64_t rows, int64_t keys, int64_t k) {
    #pragma omp parallel
    {
        Range mine = my_share(rows);
        std::vector<uint32_t> order(keys), pool(keys);
        for (int64_t i = mine.begin; i < mine.end; i++) {
            const float* row = scores + i * keys;
            for (int64_t c = 0; c < keys; c++) {
                float value = row[c] + 0.0f;
                uint32_t bits = value == value ? as_bits(value) : 0x7fc00000u;
                order[c] = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
            }
            pool = order;
            std::nth_element(pool.begin(), pool.begin() + k - 1, pool.end(), std::greater<uint32_t>());
            uint32_t cut = pool[k - 1];
            int64_t above = 0, equal = 0, taken = 0;
            for (int64_t c = 0; c < keys; c++) {
                above += order[c] > cut;
                equal += order[c] == cut;
            }
            int64_t passed_over = equal - (k - above);  // the oldest of the equal ones
            for (int64_t c = 0; c < keys; c++)
                if (order[c] > cut || (order[c] == cut && passed_over-- <= 0)) indices[i * k + taken++] = c;
        }
    }
}

#define KERNELS(T, suffix)                                                                                                   \
    API void softmax_##suffix(T* scores, const uint8_t* mask, float* mass, int64_t heads, int64_t queries, int64_t keys,     \
                              int64_t stride, float scale) {                                                                \
        softmax(scores, mask, mass, heads, queries, keys, stride, scale);                                                    \
    }                                                                                                                        \
    API void softmax_backward_##suffix(const T* p, T* grad, int64_t rows, int64_t keys, float scale) {                       \
        softmax_backward(p, grad, rows, keys, scale);                                                                        \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
