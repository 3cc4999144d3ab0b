// What every kernel here shares: number formats (computed in fp32, stored as float or bf16), exp, and threads.
//
// Plain C++ in loops that the compiler turns into vector code; a row is contiguous. All entry points have C names, one per
// format: KERNELS(name) makes name_f32 and name_bf16 from a template. Work is cut into one contiguous range per thread, so
// that sums are added in the same order every time for a given number of threads.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>

#define API extern "C" __attribute__((visibility("default")))

struct bf16 { uint16_t bits; };

static inline float as_float(uint32_t bits) { float value; std::memcpy(&value, &bits, 4); return value; }
static inline uint32_t as_bits(float value) { uint32_t bits; std::memcpy(&bits, &value, 4); return bits; }

static inline float widen(float value) { return value; }
static inline float widen(bf16 value) { return as_float(uint32_t(value.bits) << 16); }

static inline void narrow(float value, float& to) { to = value; }
static inline void narrow(float value, bf16& to) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits = as_bits(value);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to.bits = uint16_t(value == value ? rounded : 0x7fc0);
}

// exp(x) within 2e-7 of itself for x in [-87, 88]; smaller x give 0. 2^k times a polynomial on [-ln2/2, ln2/2].
static inline float fast_exp(float x) {
    float clamped = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    float k = std::rint(clamped * 1.44269504f);
    float r = clamped - k * 0.693359375f + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    float value = p * as_float(uint32_t(int32_t(k) + 127) << 23);
    return x < -87.0f ? 0.0f : value;
}

static inline float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

// Sixteen numbers at once, in the compiler's own vector types: it maps them to what the processor has.
typedef float vec __attribute__((vector_size(64)));
typedef uint32_t words __attribute__((vector_size(64)));
typedef uint16_t halves __attribute__((vector_size(32)));
static const int LANES = 16;

static inline vec load(const float* from) { vec v; std::memcpy(&v, from, sizeof v); return v; }
static inline vec load(const bf16* from) {
    halves h;
    std::memcpy(&h, from, sizeof h);
    return (vec)(__builtin_convertvector(h, words) << 16);
}
static inline void store(vec v, float* to) { std::memcpy(to, &v, sizeof v); }
static inline void store(vec v, bf16* to) {  // as narrow() above
    words bits = (words)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    halves h = __builtin_convertvector(v == v ? rounded : rounded * 0 + 0x7fc0, halves);
    std::memcpy(to, &h, sizeof h);
}
// The same value, in a register from here on: the compiler would otherwise load it anew for every use of it.
static inline vec held(vec v) {
#ifdef __AVX512F__
    asm("" : "+v"(v));
#endif
    return v;
}
static inline float sum(vec v) {  // by halves: a chain of sixteen additions would wait for each one
    typedef int32_t order __attribute__((vector_size(64)));
    v += __builtin_shuffle(v, order{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
    v += __builtin_shuffle(v, order{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
    v += __builtin_shuffle(v, order{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
    return v[0] + v[1];
}
// The sums of sixteen vectors, each added up in the same order: halves of pairs, then quarters, until one lane is left of each.
static inline vec sums(const vec v[LANES]) {
    typedef int32_t order __attribute__((vector_size(64)));
    vec half[8], quarter[4], eighth[2];
    for (int i = 0; i < 8; i++)
        half[i] = __builtin_shuffle(v[i], v[i + 8], order{0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23}) +
                  __builtin_shuffle(v[i], v[i + 8], order{8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31});
    for (int i = 0; i < 4; i++)
        quarter[i] = __builtin_shuffle(half[i], half[i + 4], order{0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27}) +
                     __builtin_shuffle(half[i], half[i + 4], order{4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31});
    for (int i = 0; i < 2; i++)
        eighth[i] = __builtin_shuffle(quarter[i], quarter[i + 2], order{0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29}) +
                    __builtin_shuffle(quarter[i], quarter[i + 2], order{2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31});
    vec all = __builtin_shuffle(eighth[0], eighth[1], order{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30}) +
              __builtin_shuffle(eighth[0], eighth[1], order{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31});
    return __builtin_shuffle(all, order{0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15});
}

struct Range { int64_t begin, end; };

// This thread's share of `count` pieces of work; call inside an OpenMP region.
static inline Range my_share(int64_t count) {
    int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
    return {count * me / threads, count * (me + 1) / threads};
}
