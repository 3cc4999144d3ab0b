// A few rows times a weight (ops/linear.py, ops/int8.py): decoding, where all weights are read for a handful of tokens. What a
// row gives does not depend on the rows beside it, to the last bit: its sums are added up in one order.
#include <vector>
#include "products.hpp"
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

static const int64_t SHARED = 1 << 17;  // products from which a second thread is woken up
static const int64_t AHEAD = 4096;      // bytes: codes are fetched so far ahead of their use

template <class T>
static void few(const T* x, const T* w, T* y, int64_t rows, int64_t outputs, int64_t width) {
    #pragma omp parallel if (rows * outputs * width >= SHARED)
    {
        Range mine = my_share((outputs + LANES - 1) / LANES);
        for (int64_t block = mine.begin; block < mine.end; block++) {
            int64_t begin = block * LANES, end = begin + LANES < outputs ? begin + LANES : outputs;
            for (int64_t r = 0; r < rows; r += 8) {
                const T* from = x + r * width;
                T* to = y + r * outputs;
                int64_t left = rows - r < 8 ? rows - r : 8;
                auto run = left == 1 ? products<1, T> : left == 2 ? products<2, T> : left <= 4 ? products<4, T> : products<8, T>;
                run(from, w, to, left, begin, end, width, outputs);
            }
        }
    }
}

// Rows of inputs as whole numbers of two signed bytes, 256 · high + low: the largest of a row becomes 127 · 256.
struct Coded {
    std::vector<int8_t> bytes;  // [rows][2][width]
    std::vector<float> scales;  // [rows]
    std::vector<int32_t> sums;  // [rows][2]
};

template <class T>
static void quantise(const T* x, Coded& to, int64_t rows, int64_t width) {
    to.bytes.resize(2 * rows * width);
    to.scales.resize(rows);
    to.sums.resize(2 * rows);
    for (int64_t i = 0; i < rows; i++) {
        const T* row = x + i * width;
        int8_t *high = &to.bytes[2 * i * width], *low = high + width;
        float largest = 0, poison = 0;  // the latter is no number where one of the row is none
        #pragma omp simd reduction(max : largest) reduction(+ : poison)
        for (int64_t c = 0; c < width; c++) {
            float size = std::fabs(widen(row[c]));
            largest = size > largest ? size : largest;
            poison += size * 0.0f;
        }
        float factor = largest > 0 ? 127.0f * 256.0f / largest : 0.0f;
        int32_t high_sum = 0, low_sum = 0;
        int64_t done = 0;
#ifdef __AVX512VNNI__
        __m512i highs = _mm512_setzero_si512(), lows = highs;
        for (; done + LANES <= width; done += LANES) {
            __m512i code = _mm512_cvtps_epi32((__m512)(load(row + done) * factor));  // as std::rint
            __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(code, _mm512_set1_epi32(128)), 8);
            __m512i lower = _mm512_sub_epi32(code, _mm512_slli_epi32(upper, 8));
            _mm_storeu_si128((__m128i*)(high + done), _mm512_cvtepi32_epi8(upper));
            _mm_storeu_si128((__m128i*)(low + done), _mm512_cvtepi32_epi8(lower));
            highs = _mm512_add_epi32(highs, upper);
            lows = _mm512_add_epi32(lows, lower);
        }
        high_sum = _mm512_reduce_add_epi32(highs);
        low_sum = _mm512_reduce_add_epi32(lows);
#endif
        for (int64_t c = done; c < width; c++) {
            int32_t code = int32_t(std::rint(widen(row[c]) * factor)), upper = (code + 128) >> 8, lower = code - 256 * upper;
            high[c] = int8_t(upper);
            low[c] = int8_t(lower);
            high_sum += upper;
            low_sum += lower;
        }
        to.scales[i] = largest / (127.0f * 256.0f) + poison;
        to.sums[2 * i] = high_sum;
        to.sums[2 * i + 1] = low_sum;
    }
}

// Rows that are worked out together: 1, 2, 4 or 8 for so many that are left.
static inline int64_t together(int64_t left) { return left <= 2 ? left : left <= 4 ? 4 : 8; }

// The bytes of up to eight rows from `first` on, four inputs at a time of all of them side by side: quads [width / 4][2 · rows], where
// the last row stands again for those that are missing.
static void interleave(const Coded& x, int32_t* quads, int64_t first, int64_t left, int64_t width) {
    int64_t lines = 2 * together(left);
    for (int64_t i = 0; i < lines; i++) {
        int64_t row = 2 * (first + (i / 2 < left ? i / 2 : left - 1)) + i % 2;
        for (int64_t k = 0; k < width / 4; k++) std::memcpy(quads + k * lines + i, &x.bytes[row * width + 4 * k], 4);
    }
}

// Σ (w - 128) q over `width` inputs of sixteen outputs, for LINES lines of bytes in `quads`, of sums `sums`: w [width / 4][16][4] codes
// raised by 128, as the processor multiplies unsigned by signed bytes.
template <int LINES>
static inline void sixteen(const uint8_t* w, const int32_t* quads, const int32_t* sums, int64_t width, vec* out) {
#ifdef __AVX512VNNI__
    __m512i totals[LINES];
    for (int i = 0; i < LINES; i++) totals[i] = _mm512_set1_epi32(-128 * sums[i]);
    for (int64_t k = 0; k < width; k += 4, w += 64, quads += LINES) {
        __builtin_prefetch(w + AHEAD, 0, 2);
        __m512i codes = _mm512_loadu_si512(w);
        for (int i = 0; i < LINES; i++) totals[i] = _mm512_dpbusd_epi32(totals[i], codes, _mm512_set1_epi32(quads[i]));
    }
    for (int i = 0; i < LINES; i++) out[i] = (vec)_mm512_cvtepi32_ps(totals[i]);
#else
    int32_t totals[LINES][LANES] = {};
    for (int64_t k = 0; k < width; k += 4, w += 64, quads += LINES)
        for (int i = 0; i < LINES; i++) {
            int8_t q[4];
            std::memcpy(q, quads + i, 4);
            for (int lane = 0; lane < LANES; lane++)
                for (int b = 0; b < 4; b++) totals[i][lane] += int32_t(w[4 * lane + b]) * q[b];
        }
    for (int i = 0; i < LINES; i++)
        for (int lane = 0; lane < LANES; lane++) out[i][lane] = float(totals[i][lane] - 128 * sums[i]);
#endif
}

// y [.., outputs], outputs [begin, end) (at most sixteen), of `rows` rows (at most ROWS) of x from row `first` on.
template <int ROWS, class T>
static void coded_products(const Coded& x, const int32_t* quads, const uint8_t* w, const float* scales, T* y, int64_t first,
                           int64_t rows, int64_t begin, int64_t end, int64_t width, int64_t outputs) {
    int32_t sums[2 * ROWS];
    vec found[2 * ROWS];
    for (int i = 0; i < 2 * ROWS; i++) sums[i] = x.sums[2 * (first + (i / 2 < rows ? i / 2 : rows - 1)) + i % 2];
    sixteen<2 * ROWS>(w, quads, sums, width, found);
    for (int r = 0; r < ROWS && r < rows; r++) {
        vec total = (found[2 * r] * 256.0f + found[2 * r + 1]) * x.scales[first + r];
        for (int64_t o = begin; o < end; o++) narrow(total[o - begin] * scales[o], y[(first + r) * outputs + o]);
    }
}

template <class T>
static void int8_product(const T* x, const uint8_t* w, const float* scales, T* y, int64_t rows, int64_t outputs, int64_t width) {
    static thread_local Coded room;
    static thread_local std::vector<int32_t> quad_room;
    Coded& own = room;  // of this thread, whoever reads it
    quantise(x, own, rows, width);
    quad_room.resize((rows + 7) / 8 * 4 * width);  // of eight rows, 2 · 8 · width bytes
    int32_t* quads = quad_room.data();
    for (int64_t r = 0; r < rows; r += 8) interleave(own, quads + r / 8 * 4 * width, r, rows - r < 8 ? rows - r : 8, width);
    #pragma omp parallel if (rows * outputs * width >= SHARED)
    {
        Range mine = my_share((outputs + LANES - 1) / LANES);
        for (int64_t block = mine.begin; block < mine.end; block++) {
            int64_t begin = block * LANES, end = begin + LANES < outputs ? begin + LANES : outputs;
            for (int64_t r = 0; r < rows; r += 8) {
                int64_t left = rows - r < 8 ? rows - r : 8, size = together(left);
                auto run = size == 1 ? coded_products<1, T> : size == 2 ? coded_products<2, T> : size == 4 ? coded_products<4, T>
                                                                                                          : coded_products<8, T>;
                run(own, quads + r / 8 * 4 * width, w + begin * width, scales, y, r, left, begin, end, width, outputs);
            }
        }
    }
}

#define KERNELS(T, suffix)                                                                                                   \
    API void linear_few_##suffix(const T* x, const T* w, T* y, int64_t rows, int64_t outputs, int64_t width) {               \
        few(x, w, y, rows, outputs, width);                                                                                  \
    }                                                                                                                        \
    API void linear_int8_##suffix(const T* x, const uint8_t* w, const float* scales, T* y, int64_t rows, int64_t outputs,    \
                                  int64_t width) {                                                                          \
        int8_product(x, w, scales, y, rows, outputs, width);                                                                 \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
