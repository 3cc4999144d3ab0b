// RMSNorm (ops/norm.py): y = x · r · w, r = 1 / sqrt(mean(x²) + eps). Row i uses weight row i % period. scale [rows] gets r, or
// is null.
#include "common.hpp"

template <class T>
static void forward(const T* x, const T* w, T* y, float* scale, int64_t rows, int64_t width, int64_t period, float eps) {
    #pragma omp parallel
    {
        Range mine = my_share(rows);
        for (int64_t i = mine.begin; i < mine.end; i++) {
            const T *row = x + i * width, *weight = w + (i % period) * width;
            float sum = 0;
            #pragma omp simd reduction(+ : sum)
            for (int64_t c = 0; c < width; c++) sum += widen(row[c]) * widen(row[c]);
            float r = 1.0f / std::sqrt(sum / width + eps);
            if (scale) scale[i] = r;
            #pragma omp simd
            for (int64_t c = 0; c < width; c++) narrow(widen(row[c]) * r * widen(weight[c]), y[i * width + c]);
        }
    }
}

// weight_grads [threads, period, width], zeroed by the caller, who adds the threads' parts: never more threads than it has parts.
template <class T>
static void backward(const T* x, const T* w, const float* scale, const T* grad, T* x_grad, float* weight_grads,
                     int64_t threads, int64_t rows, int64_t width, int64_t period) {
    #pragma omp parallel num_threads(threads)
    {
        Range mine = my_share(rows);
        float* own = weight_grads + omp_get_thread_num() * period * width;
        for (int64_t i = mine.begin; i < mine.end; i++) {
            const T *row = x + i * width, *g = grad + i * width, *weight = w + (i % period) * width;
            float* sums = own + (i % period) * width;
            float r = scale[i], along = 0;
            #pragma omp simd reduction(+ : along)
            for (int64_t c = 0; c < width; c++) {
                float normed = widen(row[c]) * r, arriving = widen(g[c]);
                sums[c] += arriving * normed;
                along += arriving * widen(weight[c]) * normed;
            }
            along /= width;
            #pragma omp simd
            for (int64_t c = 0; c < width; c++) {
                float normed = widen(row[c]) * r;
                narrow((widen(g[c]) * widen(weight[c]) - normed * along) * r, x_grad[i * width + c]);
            }
        }
    }
}

#define KERNELS(T, suffix)                                                                                                   \
    API void rms_norm_forward_##suffix(const T* x, const T* w, T* y, float* scale, int64_t rows, int64_t width,              \
                                       int64_t period, float eps) {                                                         \
        forward(x, w, y, scale, rows, width, period, eps);                                                                   \
    }                                                                                                                        \
    API void rms_norm_backward_##suffix(const T* x, const T* w, const float* scale, const T* grad, T* x_grad,                \
                                        float* weight_grads, int64_t threads, int64_t rows, int64_t width, int64_t period) { \
        backward(x, w, scale, grad, x_grad, weight_grads, threads, rows, width, period);                                     \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
