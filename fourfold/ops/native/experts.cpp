// What surrounds the experts' matrix products (ops/experts.py): moving rows to their experts and back, and SwiGLU.
#include <vector>
#include "products.hpp"

// places [tokens · chosen]: the row of each choice among rows sorted by expert, where every expert's group begins at a multiple
// of `multiple` (starts [experts + 1], the last one the number of rows). Within a group, tokens keep their order.
API void expert_places(const int64_t* ids, int64_t* places, int64_t* starts, int64_t count, int64_t experts, int64_t multiple) {
    for (int64_t e = 0; e <= experts; e++) starts[e] = 0;
    for (int64_t i = 0; i < count; i++) starts[ids[i] + 1]++;
    for (int64_t e = 0; e < experts; e++) starts[e + 1] = starts[e] + (starts[e + 1] + multiple - 1) / multiple * multiple;
    std::vector<int64_t> next(starts, starts + experts);
    for (int64_t i = 0; i < count; i++) places[i] = next[ids[i]]++;
}

// rows[places[t, c]] = weights[t, c] · x[t]; weights null for 1. Rows that no choice has are left alone.
template <class T>
static void spread(const T* x, const int64_t* places, const float* weights, T* rows, int64_t tokens, int64_t chosen, int64_t width) {
    #pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t c = 0; c < chosen; c++) {
            const T* from = x + t * width;
            T* to = rows + places[t * chosen + c] * width;
            if (!weights) {
                std::memcpy(to, from, width * sizeof(T));
                continue;
            }
            float weight = weights[t * chosen + c];
            #pragma omp simd
            for (int64_t i = 0; i < width; i++) narrow(weight * widen(from[i]), to[i]);
        }
}

// out[t] = Σ_c weights[t, c] · rows[places[t, c]], added up in the order of the choices.
template <class T>
static void combine(const T* rows, const int64_t* places, const float* weights, T* out, int64_t tokens, int64_t chosen,
                    int64_t width) {
    const int64_t STEP = 64;
    #pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t first = 0; first < width; first += STEP) {
            int64_t count = width - first < STEP ? width - first : STEP;
            float total[STEP] = {};
            for (int64_t c = 0; c < chosen; c++) {
                const T* from = rows + places[t * chosen + c] * width + first;
                float weight = weights ? weights[t * chosen + c] : 1.0f;
                #pragma omp simd
                for (int64_t i = 0; i < count; i++) total[i] += weight * widen(from[i]);
            }
            #pragma omp simd
            for (int64_t i = 0; i < count; i++) narrow(total[i], out[t * width + first + i]);
        }
}

// grads[t, c] = <arriving[t], rows[places[t, c]]>: what `combine` gives back for its weights.
template <class T>
static void combine_weights(const T* rows, const int64_t* places, const T* arriving, float* grads, int64_t tokens, int64_t chosen,
                            int64_t width) {
    #pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < tokens; t++)
        for (int64_t c = 0; c < chosen; c++) {
            const T *row = rows + places[t * chosen + c] * width, *g = arriving + t * width;
            float total = 0;
            #pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < width; i++) total += widen(row[i]) * widen(g[i]);
            grads[t * chosen + c] = total;
        }
}

// out [rows, width] = SiLU(gate) · up, from [rows, 2 · width] with the gate first; gate is cut at `limit` (infinite for none),
// up at both sides. Comparisons let a NaN pass.
template <class T>
static void swiglu_row(const T* gate, T* out, int64_t width, float limit) {
    const T* up = gate + width;
    #pragma omp simd
    for (int64_t c = 0; c < width; c++) {
        float g = widen(gate[c]), u = widen(up[c]);
        g = g > limit ? limit : g;
        u = u > limit ? limit : u < -limit ? -limit : u;
        narrow(g * sigmoid(g) * u, out[c]);
    }
}

template <class T>
static void swiglu(const T* gate_up, T* out, int64_t rows, int64_t width, float limit) {
    #pragma omp parallel for schedule(static) if (rows * width >= (1 << 14))
    for (int64_t i = 0; i < rows; i++) swiglu_row(gate_up + 2 * i * width, out + i * width, width, limit);
}

template <class T>
static void swiglu_backward(const T* gate_up, const T* arriving, T* grad, int64_t rows, int64_t width, float limit) {
    #pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const T *gate = gate_up + 2 * i * width, *up = gate + width;
        T *gate_grad = grad + 2 * i * width, *up_grad = gate_grad + width;
        #pragma omp simd
        for (int64_t c = 0; c < width; c++) {
            float g = widen(gate[c]), u = widen(up[c]), a = widen(arriving[i * width + c]);
            bool gate_cut = g > limit, up_cut = u > limit || u < -limit;
            g = gate_cut ? limit : g;
            u = u > limit ? limit : u < -limit ? -limit : u;
            float s = sigmoid(g);
            narrow(gate_cut ? 0.0f : a * u * s * (1.0f + g * (1.0f - s)), gate_grad[c]);
            narrow(up_cut ? 0.0f : a * g * s, up_grad[c]);
        }
    }
}

// y [outputs] = w x, for w [outputs, width].
template <class T>
static void product(const T* x, const T* w, T* y, int64_t outputs, int64_t width) {
    products<1>(x, w, y, 1, 0, outputs, width, outputs);
}

// out [tokens, width] = Σ_c weights[t, c] · down[e] SwiGLU(gate_up[e] x[t]) with e = ids[t, c]: one token after the other, for so few
// that sorting them by expert takes longer than reading a weight twice. gate_up [experts, 2 · inner, width], down [experts, width,
// inner]. Choices are added up in their order.
template <class T>
static void few_experts(const T* x, const int64_t* ids, const float* weights, const T* gate_up, const T* down, T* out,
                        int64_t tokens, int64_t chosen, int64_t inner, int64_t width, float limit) {
    std::vector<T> hidden(tokens * chosen * 2 * inner), middle(tokens * chosen * inner), read(tokens * chosen * width);
    #pragma omp parallel if (tokens * chosen * inner * width >= (1 << 17))
    {
        #pragma omp for schedule(static)
        for (int64_t i = 0; i < tokens * chosen; i++) {
            product(x + i / chosen * width, gate_up + ids[i] * 2 * inner * width, &hidden[i * 2 * inner], 2 * inner, width);
            swiglu_row(&hidden[i * 2 * inner], &middle[i * inner], inner, limit);
            product(&middle[i * inner], down + ids[i] * width * inner, &read[i * width], width, inner);
        }
        #pragma omp for schedule(static)
        for (int64_t t = 0; t < tokens; t++)
            for (int64_t i = 0; i < width; i++) {
                float total = 0;
                for (int64_t c = 0; c < chosen; c++) total += weights[t * chosen + c] * widen(read[(t * chosen + c) * width + i]);
                narrow(total, out[t * width + i]);
            }
    }
}

#define KERNELS(T, suffix)                                                                                                   \
    API void experts_spread_##suffix(const T* x, const int64_t* places, const float* weights, T* rows, int64_t tokens,       \
                                     int64_t chosen, int64_t width) {                                                       \
        spread(x, places, weights, rows, tokens, chosen, width);                                                             \
    }                                                                                                                        \
    API void experts_combine_##suffix(const T* rows, const int64_t* places, const float* weights, T* out, int64_t tokens,    \
                                      int64_t chosen, int64_t width) {                                                      \
        combine(rows, places, weights, out, tokens, chosen, width);                                                          \
    }                                                                                                                        \
    API void experts_combine_weights_##suffix(const T* rows, const int64_t* places, const T* arriving, float* grads,         \
                                              int64_t tokens, int64_t chosen, int64_t width) {                              \
        combine_weights(rows, places, arriving, grads, tokens, chosen, width);                                               \
    }                                                                                                                        \
    API void experts_few_##suffix(const T* x, const int64_t* ids, const float* weights, const T* gate_up, const T* down, T* out, \
                                  int64_t tokens, int64_t chosen, int64_t inner, int64_t width, float limit) { \
        few_experts(x, ids, weights, gate_up, down, out, tokens, chosen, inner, width, limit);                               \
    }                                                                                                                        \
    API void swiglu_forward_##suffix(const T* gate_up, T* out, int64_t rows, int64_t width, float limit) {                   \
        swiglu(gate_up, out, rows, width, limit);                                                                            \
    }                                                                                                                        \
    API void swiglu_backward_##suffix(const T* gate_up, const T* arriving, T* grad, int64_t rows, int64_t width,             \
                                      float limit) {                                                                         \
        swiglu_backward(gate_up, arriving, grad, rows, width, limit);                                                        \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
