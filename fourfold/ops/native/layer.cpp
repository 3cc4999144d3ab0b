// A whole layer for one new token of each sequence (model/fused.py): the kernels beside this one called in turn, as two hundred small
// steps in Python take longer than the arithmetic of a small model.
#include <vector>
#include "common.hpp"

extern "C" {
void rms_norm_forward_f32(const float*, const float*, float*, float*, int64_t, int64_t, int64_t, float);
void linear_few_f32(const float*, const float*, float*, int64_t, int64_t, int64_t);
void linear_int8_f32(const float*, const uint8_t*, const float*, float*, int64_t, int64_t, int64_t);
void rotate_f32(const float*, const float*, const float*, float*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t);
void attend_few_f32(const float*, const float*, const float*, const uint8_t*, float*, int64_t, int64_t, int64_t, int64_t, int64_t,
                    int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float);
void swiglu_forward_f32(const float*, float*, int64_t, int64_t, float);
}

// y [rows, outputs]: weights are fp32 [outputs, width], or codes with scales.
static void product(const float* x, const void* w, const float* scales, float* y, int64_t rows, int64_t outputs, int64_t width) {
    if (scales) linear_int8_f32(x, (const uint8_t*)w, scales, y, rows, outputs, width);
    else linear_few_f32(x, (const float*)w, y, rows, outputs, width);
}

// out [rows, width] = x + attention(norm(x)), and on that + SwiGLU(norm(..)); row r is a sequence. keys and values: the rows that
// each sequence remembers, a sequence `stride` numbers after the other, of which the newest, written here, are the rows `slots` of
// all laid end to end; `longest` is how many the longest has. mask [rows, longest] or null; cos and sin [rows, head / 2].
API void plain_layer_f32(const float* x, const float* first_norm, const void* wq, const float* sq, const void* wk, const float* sk,
                         const void* wv, const float* sv, const void* wo, const float* so, const float* second_norm,
                         const void* wide, const float* s_wide, const void* narrow, const float* s_narrow, const float* cos,
                         const float* sin, float* keys, float* values, const int64_t* slots, const uint8_t* mask, float* out,
                         int64_t rows, int64_t width, int64_t heads, int64_t groups, int64_t head, int64_t inner, int64_t longest,
                         int64_t stride, int64_t interleaved, float eps, float second_eps, float scale) {
    int64_t asked = heads * head, kept = groups * head;
    static thread_local std::vector<float> room;
    room.resize(rows * (width + 2 * asked + 2 * kept + 3 * inner));
    float *normed = room.data(), *q = normed + rows * width, *turned = q + rows * asked, *k = turned + rows * asked;
    float *v = k + rows * kept, *hidden = v + rows * kept, *middle = hidden + rows * 2 * inner;

    rms_norm_forward_f32(x, first_norm, normed, nullptr, rows, width, 1, eps);
    product(normed, wq, sq, q, rows, asked, width);
    product(normed, wk, sk, k, rows, kept, width);
    product(normed, wv, sv, v, rows, kept, width);
    rotate_f32(q, cos, sin, turned, rows, heads, head / 2, asked, head, interleaved);
    for (int64_t r = 0; r < rows; r++) {
        rotate_f32(k + r * kept, cos + r * (head / 2), sin + r * (head / 2), keys + slots[r] * kept, 1, groups, head / 2, kept, head,
                   interleaved);
        std::memcpy(values + slots[r] * kept, v + r * kept, kept * sizeof(float));
    }
    attend_few_f32(turned, keys, values, mask, q, rows, 1, heads, groups, longest, head, head, stride, kept, head, stride, kept, head,
                   scale);
    product(q, wo, so, out, rows, width, asked);
    for (int64_t i = 0; i < rows * width; i++) out[i] += x[i];

    rms_norm_forward_f32(out, second_norm, normed, nullptr, rows, width, 1, second_eps);
    product(normed, wide, s_wide, hidden, rows, 2 * inner, width);
    swiglu_forward_f32(hidden, middle, rows, inner, INFINITY);
    product(middle, narrow, s_narrow, normed, rows, width, inner);
    for (int64_t i = 0; i < rows * width; i++) out[i] += normed[i];
}
