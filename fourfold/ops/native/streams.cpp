// A site of manifold-constrained hyper-connections (ops/streams.py): weights from the streams, read, and write.
//
// X [N, n, d] streams; fn [m, n·d], m = (2 + n) n, in the order pre, post, comb; d a multiple of 16.
// Tokens are worked on sixteen at a time: what is small (weights, Sinkhorn) has one token in each vector lane.
#include <vector>
#include "common.hpp"

static const int BLOCK = LANES;  // tokens worked on together
static const int PART = 4;       // of them, tokens whose projections are summed in registers at once
#define UNROLL _Pragma("GCC unroll 16")  // small loops over arrays that are to stay in registers

// mix [n, n] (source, target), one token a lane. `sums` [2·iterations - 1][n] keeps what every step divided by.
template <int n>
static void sinkhorn(vec mix[n][n], vec start[n][n], vec (*sums)[n], int64_t iterations, float eps) {
    for (int j = 0; j < n; j++) {
        vec best = mix[j][0], total = {};
        for (int k = 1; k < n; k++) best = mix[j][k] > best ? mix[j][k] : best;
        for (int k = 0; k < n; k++) {
            for (int lane = 0; lane < LANES; lane++) start[j][k][lane] = fast_exp(mix[j][k][lane] - best[lane]);
            total += start[j][k];
        }
        for (int k = 0; k < n; k++) mix[j][k] = (start[j][k] /= total) + eps;
    }
    for (int64_t step = 0; step < 2 * iterations - 1; step++) {
        bool columns = step % 2 == 0;  // sums over sources first
        for (int a = 0; a < n; a++) {
            vec total = {};
            for (int b = 0; b < n; b++) total += columns ? mix[b][a] : mix[a][b];
            sums[step][a] = total += eps;
            vec inverse = 1.0f / total;
            for (int b = 0; b < n; b++) (columns ? mix[b][a] : mix[a][b]) *= inverse;
        }
    }
}

// From d(mix) to d(logits), in place: y = x / t has dx = (dy - Σ dy y) / t, and x = y t.
template <int n>
static void sinkhorn_backward(vec grad[n][n], vec mix[n][n], vec start[n][n], vec (*sums)[n], int64_t iterations) {
    for (int64_t step = 2 * iterations - 2; step >= 0; step--) {
        bool columns = step % 2 == 0;
        for (int a = 0; a < n; a++) {
            vec along = {}, inverse = 1.0f / sums[step][a];
            for (int b = 0; b < n; b++) along += columns ? grad[b][a] * mix[b][a] : grad[a][b] * mix[a][b];
            for (int b = 0; b < n; b++) {
                vec& g = columns ? grad[b][a] : grad[a][b];
                g = (g - along) * inverse;
                (columns ? mix[b][a] : mix[a][b]) *= sums[step][a];
            }
        }
    }
    for (int j = 0; j < n; j++) {
        vec along = {};
        for (int k = 0; k < n; k++) along += grad[j][k] * start[j][k];
        for (int k = 0; k < n; k++) grad[j][k] = start[j][k] * (grad[j][k] - along);
    }
}

static vec sigmoids(vec x) {
    for (int lane = 0; lane < LANES; lane++) x[lane] = sigmoid(x[lane]);
    return x;
}

// What a site works out for a block of tokens: one token a lane.
template <int n>
struct Weights {
    vec pre[n], post[n], mix[n][n], start[n][n];
    std::vector<vec> sums;
    explicit Weights(int64_t iterations) : sums((2 * iterations - 1) * n) {}
    vec (*steps())[n] { return (vec(*)[n])sums.data(); }

    void work_out(const vec* mixes, const float* base, const float* scale, int64_t iterations, float eps) {
        for (int k = 0; k < n; k++) {
            pre[k] = sigmoids(mixes[k] * scale[0] + base[k]);
            post[k] = sigmoids(mixes[n + k] * scale[1] + base[n + k]);
        }
        for (int i = 0; i < n * n; i++) mix[i / n][i % n] = mixes[2 * n + i] * scale[2] + base[2 * n + i];
        sinkhorn<n>(mix, start, steps(), iterations, eps);
    }
};

// fn [m, width] laid out as [width / LANES][m][LANES]: the order in which the loops below walk through it.
static std::vector<float> pack(const float* fn, int64_t width, int m) {
    std::vector<float> packed(m * width);
    for (int64_t c = 0; c < width; c += LANES)
        for (int j = 0; j < m; j++) std::memcpy(&packed[(c * m) + j * LANES], fn + j * width + c, LANES * sizeof(float));
    return packed;
}

// Dot products of a block of rows x [BLOCK, stride] with the m rows of the packed fn, into out[j][token].
static void project(const float* x, int64_t stride, const float* packed, vec* out, int64_t width, int m) {
    const int TOGETHER = 4;
    for (int64_t first = 0; first < BLOCK; first += PART) {
        for (int j = 0; j < m; j += TOGETHER) {
            vec total[PART * TOGETHER] = {};
            for (int64_t c = 0; c < width; c += LANES) {
                vec rows[TOGETHER];
                UNROLL for (int b = 0; b < TOGETHER; b++) rows[b] = held(load(packed + c * m + (j + b) * LANES));
                UNROLL for (int a = 0; a < PART; a++) {
                    vec own = held(load(x + (first + a) * stride + c));
                    UNROLL for (int b = 0; b < TOGETHER; b++) total[a * TOGETHER + b] += own * rows[b];
                }
            }
            UNROLL for (int i = 0; i < PART * TOGETHER; i++) out[j + i % TOGETHER][first + i / TOGETHER] = sum(total[i]);
        }
    }
}

// y = Σ pre_k X_k; post and comb for `write`; raw mixes [N, m] and r [N] for the backward pass.
template <class T, int n>
static void read_forward(const T* streams, const float* fn, const float* base, const float* scale, T* y, float* mixes, float* r,
                         float* post, float* comb, int64_t tokens, int64_t d, int64_t iterations, float hc_eps, float eps) {
    const int m = (2 + n) * n;
    const int64_t width = n * d;
    const std::vector<float> packed = pack(fn, width, m);
    #pragma omp parallel
    {
        Range mine = my_share((tokens + BLOCK - 1) / BLOCK);
        const int64_t stride = width + LANES;  // rows a power of two apart would share a few cache lines
        std::vector<float> wide(BLOCK * stride);
        Weights<n> weights(iterations);
        vec raw[m];
        for (int64_t block = mine.begin; block < mine.end; block++) {
            int64_t first = block * BLOCK, count = tokens - first < BLOCK ? tokens - first : BLOCK;
            vec scales = {};
            std::fill(wide.begin() + count * stride, wide.end(), 0.0f);
            for (int64_t t = 0; t < count; t++) {
                vec squares = {};
                for (int64_t c = 0; c < width; c += LANES) {
                    vec value = load(streams + (first + t) * width + c);
                    store(value, &wide[t * stride + c]);
                    squares += value * value;
                }
                scales[t] = r[first + t] = 1.0f / std::sqrt(sum(squares) / width + eps);
            }
            project(wide.data(), stride, packed.data(), raw, width, m);
            for (int j = 0; j < m; j++) raw[j] *= scales;
            weights.work_out(raw, base, scale, iterations, hc_eps);
            for (int64_t t = 0; t < count; t++) {
                for (int j = 0; j < m; j++) mixes[(first + t) * m + j] = raw[j][t];
                for (int k = 0; k < n; k++) post[(first + t) * n + k] = 2.0f * weights.post[k][t];
                for (int i = 0; i < n * n; i++) comb[(first + t) * n * n + i] = weights.mix[i / n][i % n][t];
                for (int64_t c = 0; c < d; c += LANES) {
                    vec total = {};
                    for (int k = 0; k < n; k++) total += (weights.pre[k][t] + hc_eps) * load(&wide[t * stride + k * d + c]);
                    store(total, y + (first + t) * d + c);
                }
            }
        }
    }
}

// Gradients of a read. `passing` is what arrives for the streams themselves. The parts of fn (packed, m · n · d), base [m] and
// scale [3] lie one after the other for each of `threads`, zeroed by the caller, who adds them up.
template <class T, int n>
static void read_backward(const T* streams, const float* fn, const float* base, const float* scale, const float* mixes,
                          const float* r, const T* y_grad, const float* post_grad, const float* comb_grad, const T* passing,
                          T* streams_grad, float* parts, int64_t threads, int64_t tokens, int64_t d, int64_t iterations,
                          float hc_eps) {
    const int m = (2 + n) * n;
    const int64_t width = n * d;
    const std::vector<float> packed = pack(fn, width, m);
    #pragma omp parallel num_threads(threads)
    {
        Range mine = my_share((tokens + BLOCK - 1) / BLOCK);
        float* fn_part = parts + omp_get_thread_num() * (m * width + m + 3);
        float *base_part = fn_part + m * width, *scale_part = base_part + m;
        Weights<n> weights(iterations);
        std::vector<float> pulls(m * BLOCK);  // what each raw projection is pulled by: d loss / d (fn_j · u)
        for (int64_t block = mine.begin; block < mine.end; block++) {
            int64_t first = block * BLOCK, count = tokens - first < BLOCK ? tokens - first : BLOCK;
            vec raw[m] = {}, grads[m] = {}, scales = {}, comb_grads[n][n] = {};
            for (int64_t t = 0; t < count; t++) {
                const T *x = streams + (first + t) * width, *dy = y_grad + (first + t) * d;
                scales[t] = r[first + t];
                for (int j = 0; j < m; j++) raw[j][t] = mixes[(first + t) * m + j];
                for (int i = 0; i < n * n; i++) comb_grads[i / n][i % n][t] = comb_grad[(first + t) * n * n + i];
                vec dots[n] = {};
                for (int64_t c = 0; c < d; c += LANES) {
                    vec arriving = load(dy + c);
                    for (int k = 0; k < n; k++) dots[k] += arriving * load(x + k * d + c);
                }
                for (int k = 0; k < n; k++) {
                    grads[k][t] = sum(dots[k]);
                    grads[n + k][t] = 2.0f * post_grad[(first + t) * n + k];
                }
            }
            weights.work_out(raw, base, scale, iterations, hc_eps);
            for (int k = 0; k < n; k++) {
                grads[k] *= weights.pre[k] * (1.0f - weights.pre[k]);
                grads[n + k] *= weights.post[k] * (1.0f - weights.post[k]);
            }
            vec comb_now[n][n];
            std::memcpy(comb_now, weights.mix, sizeof comb_now);
            sinkhorn_backward<n>(comb_grads, comb_now, weights.start, weights.steps(), iterations);
            for (int i = 0; i < n * n; i++) grads[2 * n + i] = comb_grads[i / n][i % n];
            vec along = {};
            for (int j = 0; j < m; j++) {
                int group = j < n ? 0 : (j < 2 * n ? 1 : 2);
                base_part[j] += sum(grads[j]);
                scale_part[group] += sum(grads[j] * raw[j]);
                vec pull = grads[j] * scale[group];
                along += pull * raw[j];
                store(pull * scales, &pulls[j * BLOCK]);
            }
            along *= -scales * scales / float(width);
            for (int64_t t = 0; t < BLOCK; t += PART) {
                for (int64_t c = 0; c < width; c += LANES) {
                    vec x[PART], total[PART];
                    UNROLL for (int a = 0; a < PART; a++) {
                        int64_t token = first + t + a;
                        bool there = t + a < count;
                        x[a] = there ? load(streams + token * width + c) : vec{};
                        total[a] = along[t + a] * x[a];
                        if (there) {
                            total[a] += (weights.pre[c / d][t + a] + hc_eps) * load(y_grad + token * d + c % d);
                            total[a] += load(passing + token * width + c);
                        }
                    }
                    for (int j = 0; j < m; j++) {
                        const float* pull = &pulls[j * BLOCK + t];
                        vec row = load(&packed[c * m + j * LANES]), own = load(fn_part + c * m + j * LANES);
                        UNROLL for (int a = 0; a < PART; a++) {
                            total[a] += pull[a] * row;
                            own += pull[a] * x[a];
                        }
                        store(own, fn_part + c * m + j * LANES);
                    }
                    UNROLL for (int a = 0; a < PART; a++)
                        if (t + a < count) store(total[a], streams_grad + (first + t + a) * width + c);
                }
            }
        }
    }
}

// X'_k = post_k F + Σ_j comb[j, k] X_j
template <class T, int n>
static void write_forward(const T* streams, const T* out, const float* post, const float* comb, T* written, int64_t tokens,
                          int64_t d) {
    #pragma omp parallel
    {
        Range mine = my_share(tokens);
        for (int64_t t = mine.begin; t < mine.end; t++) {
            const float *p = post + t * n, *mix = comb + t * n * n;
            for (int64_t c = 0; c < d; c += LANES) {
                vec value = load(out + t * d + c), x[n];
                for (int j = 0; j < n; j++) x[j] = load(streams + (t * n + j) * d + c);
                for (int k = 0; k < n; k++) {
                    vec total = p[k] * value;
                    for (int j = 0; j < n; j++) total += mix[j * n + k] * x[j];
                    store(total, written + (t * n + k) * d + c);
                }
            }
        }
    }
}

template <class T, int n>
static void write_backward(const T* streams, const T* out, const float* post, const float* comb, const T* grad, T* streams_grad,
                           T* out_grad, float* post_grad, float* comb_grad, int64_t tokens, int64_t d) {
    #pragma omp parallel
    {
        Range mine = my_share(tokens);
        for (int64_t t = mine.begin; t < mine.end; t++) {
            const float *p = post + t * n, *mix = comb + t * n * n;
            vec dots[n][n] = {}, with_out[n] = {};
            for (int64_t c = 0; c < d; c += LANES) {
                vec arriving[n], value = load(out + t * d + c), total = {};
                for (int k = 0; k < n; k++) {
                    arriving[k] = load(grad + (t * n + k) * d + c);
                    with_out[k] += arriving[k] * value;
                    total += p[k] * arriving[k];
                }
                store(total, out_grad + t * d + c);
                for (int j = 0; j < n; j++) {
                    vec x = load(streams + (t * n + j) * d + c), back = {};
                    for (int k = 0; k < n; k++) {
                        dots[j][k] += x * arriving[k];
                        back += mix[j * n + k] * arriving[k];
                    }
                    store(back, streams_grad + (t * n + j) * d + c);
                }
            }
            for (int k = 0; k < n; k++) post_grad[t * n + k] = sum(with_out[k]);
            for (int i = 0; i < n * n; i++) comb_grad[t * n * n + i] = sum(dots[i / n][i % n]);
        }
    }
}

#define KERNELS(T, n, suffix)                                                                                                \
    API void streams_read_forward_##n##_##suffix(                                                                            \
        const T* streams, const float* fn, const float* base, const float* scale, T* y, float* mixes, float* r, float* post, \
        float* comb, int64_t tokens, int64_t d, int64_t iterations, float hc_eps, float eps) {                              \
        read_forward<T, n>(streams, fn, base, scale, y, mixes, r, post, comb, tokens, d, iterations, hc_eps, eps);           \
    }                                                                                                                        \
    API void streams_read_backward_##n##_##suffix(                                                                           \
        const T* streams, const float* fn, const float* base, const float* scale, const float* mixes, const float* r,        \
        const T* y_grad, const float* post_grad, const float* comb_grad, const T* passing, T* streams_grad, float* parts,    \
        int64_t threads, int64_t tokens, int64_t d, int64_t iterations, float hc_eps) {                                     \
        read_backward<T, n>(streams, fn, base, scale, mixes, r, y_grad, post_grad, comb_grad, passing, streams_grad, parts,  \
                            threads, tokens, d, iterations, hc_eps);                                                        \
    }                                                                                                                        \
    API void streams_write_forward_##n##_##suffix(const T* streams, const T* out, const float* post, const float* comb,      \
                                                  T* written, int64_t tokens, int64_t d) {                                  \
        write_forward<T, n>(streams, out, post, comb, written, tokens, d);                                                   \
    }                                                                                                                        \
    API void streams_write_backward_##n##_##suffix(                                                                          \
        const T* streams, const T* out, const float* post, const float* comb, const T* grad, T* streams_grad, T* out_grad,   \
        float* post_grad, float* comb_grad, int64_t tokens, int64_t d) {                                                    \
        write_backward<T, n>(streams, out, post, comb, grad, streams_grad, out_grad, post_grad, comb_grad, tokens, d);       \
    }
KERNELS(float, 2, f32)
KERNELS(bf16, 2, bf16)
KERNELS(float, 4, f32)
KERNELS(bf16, 4, bf16)
