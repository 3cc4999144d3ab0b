// What a step of decoding does around its matrix products: turning by position (ops/rotary.py), and a few queries that face many keys
// (ops/attention.py).
#include <vector>
#include "common.hpp"

// out [rows, heads, 2 · half], contiguous, from x at strides: pairs (j, j + half), or (2j, 2j + 1) when interleaved, turned by the
// angles of their row, cos and sin [rows, half].
template <class T>
static void rotate(const T* x, const float* cos, const float* sin, T* out, int64_t rows, int64_t heads, int64_t half,
                   int64_t row_stride, int64_t head_stride, int64_t interleaved) {
    int64_t step = interleaved ? 2 : 1, other = interleaved ? 1 : half;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t h = 0; h < heads; h++) {
            const T* from = x + i * row_stride + h * head_stride;
            const float *c = cos + i * half, *s = sin + i * half;
            T* to = out + (i * heads + h) * 2 * half;
            #pragma omp simd
            for (int64_t j = 0; j < half; j++) {
                float a = widen(from[j * step]), b = widen(from[j * step + other]);
                narrow(a * c[j] - b * s[j], to[j * step]);
                narrow(a * s[j] + b * c[j], to[j * step + other]);
            }
        }
}

struct Strided { int64_t sequence, key, group; };

// Scores of one query with `keys` keys, sixteen at a time; what the mask (null for none) forbids gets -inf. Returns the largest.
template <class T>
static float scores_of(const T* q, const T* k, int64_t stride, const uint8_t* mask, int64_t keys, int64_t width, float scale,
                       float* scores) {
    vec largest = {};
    largest += -INFINITY;
    for (int64_t first = 0; first < keys; first += LANES) {
        vec totals[LANES] = {};
        const T* rows[LANES];
        for (int j = 0; j < LANES; j++) rows[j] = k + (first + j < keys ? first + j : keys - 1) * stride;
        for (int64_t c = 0; c < width; c += LANES) {
            vec query = held(load(q + c));
            for (int j = 0; j < LANES; j++) totals[j] += load(rows[j] + c) * query;
        }
        vec found = sums(totals) * scale;
        for (int j = 0; j < LANES; j++)
            if (first + j >= keys || (mask && !mask[first + j])) found[j] = -INFINITY;
        store(found, scores + first);
        largest = found > largest ? found : largest;
    }
    float most = -INFINITY;
    for (int j = 0; j < LANES; j++) most = largest[j] > most ? largest[j] : most;
    return most;
}

// Scores to exp(score - most), zeros where nothing may be read; returns their sum. `room`: keys, rounded up to whole vectors.
static float odds_of(float* scores, int64_t room, float most) {
    vec totals = {};
    for (int64_t first = 0; first < room; first += LANES) {
        #pragma omp simd
        for (int j = 0; j < LANES; j++) scores[first + j] = fast_exp(scores[first + j] - most);
        totals += load(scores + first);
    }
    return sum(totals);
}

// out [width] = Σ odds · value / total, four vectors of the width at a time.
template <class T>
static void read_values(const float* odds, const T* v, int64_t stride, int64_t keys, int64_t width, float total, T* out) {
    for (int64_t c = 0; c < width; c += 4 * LANES) {
        int count = width - c < 4 * LANES ? int((width - c) / LANES) : 4;
        vec read[4] = {};
        for (int64_t i = 0; i < keys; i++)
            for (int p = 0; p < count; p++) read[p] += load(v + i * stride + c + p * LANES) * odds[i];
        for (int p = 0; p < count; p++) store(read[p] / total, out + c + p * LANES);
    }
}

// out [S, C, H, E] from q [S, C, H, D], and k [S, K, G, D], v [S, K, G, E] at strides; mask [S, C, K] or null. A query that may read
// nothing reads zeros. Every query is worked out by itself, in the same order however many keys the mask forbids behind its own.
template <class T>
static void attend(const T* q, const T* k, const T* v, const uint8_t* mask, T* out, int64_t sequences, int64_t queries,
                   int64_t heads, int64_t groups, int64_t keys, int64_t width, int64_t value_width, Strided ks, Strided vs,
                   float scale) {
    int64_t each = heads / groups, room = (keys + LANES - 1) / LANES * LANES, work = sequences * queries * heads;
    #pragma omp parallel if (work * keys * width >= (1 << 17))
    {
        std::vector<float> scores(room);
        Range mine = my_share(work);
        for (int64_t i = mine.begin; i < mine.end; i++) {
            int64_t h = i % heads, asked = i / heads, s = asked / queries, g = h / each;
            const uint8_t* allowed = mask ? mask + asked * keys : nullptr;
            const T *own = k + s * ks.sequence + g * ks.group, *values = v + s * vs.sequence + g * vs.group;
            float most = scores_of(q + i * width, own, ks.key, allowed, keys, width, scale, scores.data());
            T* to = out + i * value_width;
            if (most == -INFINITY) {
                std::memset(to, 0, value_width * sizeof(T));
                continue;
            }
            float total = odds_of(scores.data(), room, most);
            read_values(scores.data(), values, vs.key, keys, value_width, total, to);
        }
    }
}

#define KERNELS(T, suffix)                                                                                                   \
    API void rotate_##suffix(const T* x, const float* cos, const float* sin, T* out, int64_t rows, int64_t heads,            \
                             int64_t half, int64_t row_stride, int64_t head_stride, int64_t interleaved) {                  \
        rotate(x, cos, sin, out, rows, heads, half, row_stride, head_stride, interleaved);                                   \
    }                                                                                                                        \
    API void attend_few_##suffix(const T* q, const T* k, const T* v, const uint8_t* mask, T* out, int64_t sequences,         \
                                 int64_t queries, int64_t heads, int64_t groups, int64_t keys, int64_t width,               \
                                 int64_t value_width, int64_t k_sequence, int64_t k_key, int64_t k_group,                   \
                                 int64_t v_sequence, int64_t v_key, int64_t v_group, float scale) {                         \
        attend(q, k, v, mask, out, sequences, queries, heads, groups, keys, width, value_width,                              \
               Strided{k_sequence, k_key, k_group}, Strided{v_sequence, v_key, v_group}, scale);                             \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
