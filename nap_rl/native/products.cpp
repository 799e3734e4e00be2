// Products of a large layer with a small batch.
//
// All but `few_rows` end in one tile of 8 x 32 sums. The registers of AVX-512 hold the tile while single elements of one
// factor meet whole registers of the other. Other CPUs have too few registers for a tile. Every sum is taken in one order,
// for any count of threads. n_out is a multiple of ROWS and n_in of COLUMNS; the batch has any size.

#include <vector>

#include "functions.h"
#include "lanes.h"

namespace {

constexpr int AHEAD = 1024;  // floats; a weight is read once and lies in memory, so it is asked for early

// Write past the cache, a whole line at a time: a gradient leaves the cache before it is read.
void write_past(float* at, const Lanes& values) {
#ifdef __AVX512F__
    if (reinterpret_cast<uintptr_t>(at) % sizeof(Lanes) == 0) return _mm512_stream_ps(at, (__m512)values);
#endif
    lanes(at) = values;
}

void finish_writes() {  // before another thread reads them
#ifdef __AVX512F__
    _mm_sfence();
#endif
}

// dw[o][k] = sum_b dy[b][o] x[b][k]
template <class Kind>
void weight_gradient(int64_t rows, int64_t n_in, int64_t n_out, const typename Kind::Number* dy,
                     const typename Kind::Number* x, float* dw, int threads) {
    const int64_t length = (rows + Kind::DEPTH - 1) / Kind::DEPTH;
    Buffer<typename Kind::Item> dy_items(length * n_out), x_items(length * n_in);
#pragma omp parallel num_threads(threads)
    {
        const Share inputs(n_in, LANES), outputs(n_out, ROWS);
        pack_rows<Kind>(rows, n_out, dy, dy_items, outputs.begin, outputs.end);
        pack_rows<Kind>(rows, n_in, x, x_items, inputs.begin, inputs.end);
#pragma omp barrier
        for (int64_t o = outputs.begin; o < outputs.end; o += ROWS)
            for (int64_t k = 0; k < n_in; k += COLUMNS) {
                Lanes sums[ROWS][2] = {};
                tile<Kind>(length, dy_items + o, n_out, 1, x_items + k, n_in, sums);
                for (int i = 0; i < ROWS; i++)
                    for (int j = 0; j < 2; j++) write_past(dw + (o + i) * n_in + k + j * LANES, sums[i][j]);
            }
        finish_writes();
    }
}

// y[b][o] = sum_k w[o][k] x[b][k]
template <class Kind>
void product(int64_t rows, int64_t n_in, int64_t n_out, const typename Kind::Number* x, const typename Kind::Number* w,
             typename Kind::Number* y, int threads) {
    typedef typename Kind::Item Item;
    const int64_t columns = (rows + COLUMNS - 1) / COLUMNS * COLUMNS, items = n_in / Kind::DEPTH;
    const Item *x_items = reinterpret_cast<const Item*>(x), *w_items = reinterpret_cast<const Item*>(w);
    Buffer<Item> transposed(items * columns);  // x as [items][columns]; beyond the rows zeros
#pragma omp parallel num_threads(threads)
    {
        const Share inputs(items, LANES), outputs(n_out, ROWS);
        for (int64_t k = inputs.begin; k < inputs.end; k += LANES)
            for (int64_t b = 0; b < columns; b++)
                for (int64_t j = k; j < k + LANES; j++)
                    transposed[j * columns + b] = b < rows ? x_items[b * items + j] : Item(0);
#pragma omp barrier
        for (int64_t o = outputs.begin; o < outputs.end; o += ROWS)
            for (int64_t b = 0; b < columns; b += COLUMNS) {
                Lanes sums[ROWS][2] = {};
                tile<Kind>(items, w_items + o * items, 1, items, transposed + b, columns, sums);
                typename Kind::Number rounded[ROWS][COLUMNS];
                for (int i = 0; i < ROWS; i++)
                    for (int j = 0; j < 2; j++) Kind::store(rounded[i] + j * LANES, sums[i][j]);
                for (int64_t c = 0; c < std::min<int64_t>(COLUMNS, rows - b); c++)
                    for (int i = 0; i < ROWS; i++) y[(b + c) * n_out + o + i] = rounded[i][c];
            }
    }
}

// dx[b][k] = sum_o dy[b][o] w[o][k]
template <class Kind>
void input_gradient(int64_t rows, int64_t n_in, int64_t n_out, const typename Kind::Number* dy,
                    const typename Kind::Number* w, typename Kind::Number* dx, int threads) {
    typedef typename Kind::Item Item;
    const int64_t padded = (rows + ROWS - 1) / ROWS * ROWS, items = n_out / Kind::DEPTH;
    std::vector<Item> filled(padded * items);
    std::copy_n(reinterpret_cast<const Item*>(dy), rows * items, filled.begin());
#pragma omp parallel num_threads(threads)
    {
        const Share inputs(n_in, COLUMNS);
        for (int64_t k = inputs.begin; k < inputs.end; k += COLUMNS)
            for (int64_t b = 0; b < rows; b += ROWS) {
                Lanes sums[ROWS][2] = {};
                const auto load = [=](int64_t t, typename Kind::Items of[2]) __attribute__((always_inline)) {
                    Kind::columns(w + t * Kind::DEPTH * n_in + k, n_in, of);
                };
                tile_of<Kind>(items, filled.data() + b * items, 1, items, load, sums);
                for (int64_t i = 0; i < std::min<int64_t>(ROWS, rows - b); i++) {
                    Kind::in_order(sums[i]);
                    for (int j = 0; j < 2; j++) Kind::store(dx + (b + i) * n_in + k + j * LANES, sums[i][j]);
                }
            }
    }
}

}  // namespace

namespace nap_rl {

// `product` for few rows, as in acting, where a tile would be empty for the most part: eight rows of x meet two of w at a
// time, which are 16 sums of 16 lanes.
void few_rows(int64_t rows, int64_t n_in, int64_t n_out, const float* x, const float* w, float* y, int threads) {
    const int64_t whole = n_in - n_in % LANES;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t n = 0; n < n_out; n += 2) {
        const float* w0 = w + n * n_in;
        const float* w1 = n + 1 < n_out ? w0 + n_in : w0;  // the last one twice where they are odd
        for (int64_t r = 0; r < rows; r += ROWS) {
            const float* row[ROWS];
            for (int i = 0; i < ROWS; i++) row[i] = x + std::min(r + i, rows - 1) * n_in;
            Lanes sum0[ROWS] = {}, sum1[ROWS] = {};
            for (int64_t k = 0; k < whole; k += LANES) {
                __builtin_prefetch(w0 + k + AHEAD, 0, 2);
                __builtin_prefetch(w1 + k + AHEAD, 0, 2);
                for (int i = 0; i < ROWS; i++) {
                    sum0[i] += lanes(w0 + k) * lanes(row[i] + k);
                    sum1[i] += lanes(w1 + k) * lanes(row[i] + k);
                }
            }
            for (int i = 0; i < ROWS && r + i < rows; i++) {
                float total0 = 0.0f, total1 = 0.0f;
                for (int lane = 0; lane < LANES; lane++) total0 += sum0[i][lane], total1 += sum1[i][lane];
                for (int64_t k = whole; k < n_in; k++) total0 += w0[k] * row[i][k], total1 += w1[k] * row[i][k];
                y[(r + i) * n_out + n] = total0;
                if (n + 1 < n_out) y[(r + i) * n_out + n + 1] = total1;
            }
        }
    }
}

#define NAP_RL_PRODUCTS(Kind)                                                                                          \
    void product(int64_t rows, int64_t n_in, int64_t n_out, const Kind::Number* x, const Kind::Number* w,              \
                 Kind::Number* y, int threads) {                                                                       \
        ::product<Kind>(rows, n_in, n_out, x, w, y, threads);                                                          \
    }                                                                                                                  \
    void input_gradient(int64_t rows, int64_t n_in, int64_t n_out, const Kind::Number* dy, const Kind::Number* w,      \
                        Kind::Number* dx, int threads) {                                                               \
        ::input_gradient<Kind>(rows, n_in, n_out, dy, w, dx, threads);                                                 \
    }                                                                                                                  \
    void weight_gradient(int64_t rows, int64_t n_in, int64_t n_out, const Kind::Number* dy, const Kind::Number* x,     \
                         float* dw, int threads) {                                                                     \
        ::weight_gradient<Kind>(rows, n_in, n_out, dy, x, dw, threads);                                                \
    }

#ifdef __AVX512F__
NAP_RL_FOR_EACH_KIND(NAP_RL_PRODUCTS)
#endif

}  // namespace nap_rl
