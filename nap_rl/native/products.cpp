// Products of an update of which torch's stop at half or two thirds of what the CPU multiplies: those of a large layer
// with a small batch, and the gradients of a convolution's weights.
//
// All but `few_rows` end in one tile of 8 x 32 sums, which are held in the registers of AVX-512 while elements of one
// factor, one by one, meet whole registers of the other; elsewhere there is no room for them and torch is left to do it.
// Every sum is taken in one order, for any count of threads. n_out is a multiple of ROWS and n_in of COLUMNS, as is a row
// of a convolution's kernel, k * C; the batch has any size.

#include <algorithm>
#include <cstdint>
#include <vector>

#include <omp.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int ROWS = 8, LANES = 16, COLUMNS = 2 * LANES;
constexpr int AHEAD = 256;  // floats; a weight is read once and lies in memory, so it is asked for early
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));

const Lanes& lanes(const float* at) { return *reinterpret_cast<const Lanes*>(at); }
Lanes& lanes(float* at) { return *reinterpret_cast<Lanes*>(at); }

// What is multiplied at once along a sum: one float, or two bfloat16.
struct Single {
    typedef float Number, Item;
    typedef Lanes Items;
    static constexpr int DEPTH = 1;

    static Items items(const Item* at) { return lanes(at); }
    static void add(Lanes& sum, Item a, const Items& b) { sum += a * b; }
    static Item join(const Number* of) { return of[0]; }
};

#ifdef __AVX512BF16__
struct Half {
    typedef uint16_t Number;
    typedef uint32_t Item;
    typedef __m512bh Items;
    static constexpr int DEPTH = 2;

    static Items items(const Item* at) { return (Items)_mm512_loadu_si512(at); }
    static void add(Lanes& sum, Item a, const Items& b) {
        sum = (Lanes)_mm512_dpbf16_ps((__m512)sum, (Items)_mm512_set1_epi32(int(a)), b);
    }
    static Item join(const Number* of) { return of[0] | Item(of[1]) << 16; }
};
#endif

// sums[i][j] += sum_t a[t * a_t + i * a_i] b[t * b_t + j], ROWS x COLUMNS.
template <class Kind>
inline __attribute__((always_inline)) void tile(int64_t length, const typename Kind::Item* a, int64_t a_t, int64_t a_i,
                                                const typename Kind::Item* b, int64_t b_t, Lanes sums[ROWS][2]) {
    for (int64_t t = 0; t < length; t++) {
        const typename Kind::Items b0 = Kind::items(b + t * b_t), b1 = Kind::items(b + t * b_t + LANES);
        for (int i = 0; i < ROWS; i++) {
            Kind::add(sums[i][0], a[t * a_t + i * a_i], b0);
            Kind::add(sums[i][1], a[t * a_t + i * a_i], b1);
        }
    }
}

// What nobody reads before it would have left the cache is written past it, a whole line at a time.
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

struct Share {  // of a thread: [begin, end), in whole steps
    int64_t begin, end;

    Share(int64_t size, int64_t step) {
        const int64_t steps = (size + step - 1) / step, threads = omp_get_num_threads(), me = omp_get_thread_num();
        begin = std::min(steps * me / threads * step, size);
        end = std::min(steps * (me + 1) / threads * step, size);
    }
};

// Rows as they are summed over: x [rows][n] -> [items][n], where zeros fill the last item; columns [begin, end) of it.
template <class Kind>
void join_rows(int64_t rows, int64_t n, const typename Kind::Number* x, typename Kind::Item* to, int64_t begin,
               int64_t end) {
    for (int64_t b = 0; b < rows; b += Kind::DEPTH)
        for (int64_t j = begin; j < end; j++) {
            typename Kind::Number of[Kind::DEPTH];
            for (int d = 0; d < Kind::DEPTH; d++) of[d] = b + d < rows ? x[(b + d) * n + j] : typename Kind::Number(0);
            to[b / Kind::DEPTH * n + j] = Kind::join(of);
        }
}

// The same of all columns in `room`, or x itself where an item is a number.
template <class Kind>
const typename Kind::Item* joined_rows(int64_t rows, int64_t n, const typename Kind::Number* x,
                                       std::vector<typename Kind::Item>& room) {
    if constexpr (Kind::DEPTH == 1) {
        return x;
    } else {
        room.resize(n);
        join_rows<Kind>(rows, n, x, room.data(), 0, n);
        return room.data();
    }
}

// dw[o][k] = sum_b dy[b][o] x[b][k]
template <class Kind>
void weight_gradient(int64_t rows, int64_t n_in, int64_t n_out, const typename Kind::Number* dy,
                     const typename Kind::Number* x, float* dw, int threads) {
    const int64_t length = (rows + Kind::DEPTH - 1) / Kind::DEPTH;
    std::vector<typename Kind::Item> dy_items(length * n_out), x_items(length * n_in);
#pragma omp parallel num_threads(threads)
    {
        const Share inputs(n_in, LANES), outputs(n_out, ROWS);
        join_rows<Kind>(rows, n_out, dy, dy_items.data(), outputs.begin, outputs.end);
        join_rows<Kind>(rows, n_in, x, x_items.data(), inputs.begin, inputs.end);
#pragma omp barrier
        for (int64_t o = outputs.begin; o < outputs.end; o += ROWS)
            for (int64_t k = 0; k < n_in; k += COLUMNS) {
                Lanes sums[ROWS][2] = {};
                tile<Kind>(length, dy_items.data() + o, n_out, 1, x_items.data() + k, n_in, sums);
                for (int i = 0; i < ROWS; i++)
                    for (int j = 0; j < 2; j++) write_past(dw + (o + i) * n_in + k + j * LANES, sums[i][j]);
            }
        finish_writes();
    }
}

// dw[o][c][h][v] = sum_b,i,j dy[b][i][j][o] x[b][s i + h][s j + v][c], channels last, for a kernel of k x k.
//
// For one h, all v and c of a pixel of dy are neighbours in x: k * C numbers from x[b][s i + h][s j] on. As many images
// as an item holds are joined. GROUPS of images are summed each into its own gradient, and these in their order.
template <class Kind>
void convolution_weight_gradient(int64_t images, int64_t height, int64_t width, int64_t C, int64_t O, int64_t k, int64_t s,
                                 const typename Kind::Number* dy, const typename Kind::Number* x, float* dw, int threads) {
    constexpr int64_t GROUPS = 8, DEPTH = Kind::DEPTH;
    const int64_t out_height = (height - k) / s + 1, out_width = (width - k) / s + 1, row = k * C;
    const int64_t x_size = height * width * C, dy_size = out_height * out_width * O, joints = (images + DEPTH - 1) / DEPTH;
    std::vector<float> partial(GROUPS * k * O * row);  // [GROUPS][h][o][v][c]
#pragma omp parallel num_threads(threads)
    {
        std::vector<typename Kind::Item> x_room, dy_room;
#pragma omp for schedule(dynamic)
        for (int64_t group = 0; group < GROUPS; group++)
            for (int64_t b = joints * group / GROUPS * DEPTH; b < joints * (group + 1) / GROUPS * DEPTH; b += DEPTH) {
                const int64_t joined = std::min(DEPTH, images - b);
                const auto* x_items = joined_rows<Kind>(joined, x_size, x + b * x_size, x_room);
                const auto* dy_items = joined_rows<Kind>(joined, dy_size, dy + b * dy_size, dy_room);
                for (int64_t h = 0; h < k; h++)
                    for (int64_t vc = 0; vc < row; vc += COLUMNS)
                        for (int64_t o = 0; o < O; o += ROWS) {
                            Lanes sums[ROWS][2] = {};
                            for (int64_t i = 0; i < out_height; i++)
                                tile<Kind>(out_width, dy_items + i * out_width * O + o, O, 1,
                                           x_items + (s * i + h) * width * C + vc, s * C, sums);
                            float* to = partial.data() + ((group * k + h) * O + o) * row + vc;
                            for (int i = 0; i < ROWS; i++)
                                for (int j = 0; j < 2; j++) lanes(to + i * row + j * LANES) += sums[i][j];
                        }
            }
        const Share outputs(O, 1);
        for (int64_t o = outputs.begin; o < outputs.end; o++)
            for (int64_t h = 0; h < k; h++)
                for (int64_t v = 0; v < k; v++)
                    for (int64_t c = 0; c < C; c++) {
                        float total = 0.0f;
                        for (int64_t group = 0; group < GROUPS; group++)
                            total += partial[((group * k + h) * O + o) * row + v * C + c];
                        dw[((o * C + c) * k + h) * k + v] = total;
                    }
    }
}

}  // namespace

extern "C" {

// y[b][o] = sum_k w[o][k] x[b][k]
void product(int64_t rows, int64_t n_in, int64_t n_out, const float* x, const float* w, float* y, int threads) {
    const int64_t columns = (rows + COLUMNS - 1) / COLUMNS * COLUMNS;
    std::vector<float> transposed(n_in * columns);  // x as [n_in][columns]; beyond the rows zeros
#pragma omp parallel num_threads(threads)
    {
        const Share inputs(n_in, LANES), outputs(n_out, ROWS);
        for (int64_t k = inputs.begin; k < inputs.end; k += LANES)
            for (int64_t b = 0; b < rows; b++)
                for (int64_t j = k; j < k + LANES; j++) transposed[j * columns + b] = x[b * n_in + j];
#pragma omp barrier
        for (int64_t o = outputs.begin; o < outputs.end; o += ROWS)
            for (int64_t b = 0; b < columns; b += COLUMNS) {
                Lanes sums[ROWS][2] = {};
                tile<Single>(n_in, w + o * n_in, 1, n_in, transposed.data() + b, columns, sums);
                for (int64_t c = 0; c < std::min<int64_t>(COLUMNS, rows - b); c++)
                    for (int i = 0; i < ROWS; i++) y[(b + c) * n_out + o + i] = sums[i][c / LANES][c % LANES];
            }
    }
}

// The same for few rows, as in acting, where a tile would be empty for the most part: eight rows of x meet two of w at a
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
                __builtin_prefetch(w0 + k + AHEAD);
                __builtin_prefetch(w1 + k + AHEAD);
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

// dx[b][k] = sum_o dy[b][o] w[o][k]
void input_gradient(int64_t rows, int64_t n_in, int64_t n_out, const float* dy, const float* w, float* dx, int threads) {
    const int64_t padded = (rows + ROWS - 1) / ROWS * ROWS;
    std::vector<float> filled(padded * n_out);
    std::copy(dy, dy + rows * n_out, filled.begin());
#pragma omp parallel num_threads(threads)
    {
        const Share inputs(n_in, COLUMNS);
        for (int64_t k = inputs.begin; k < inputs.end; k += COLUMNS)
            for (int64_t b = 0; b < rows; b += ROWS) {
                Lanes sums[ROWS][2] = {};
                tile<Single>(n_out, filled.data() + b * n_out, 1, n_out, w + k, n_in, sums);
                for (int64_t i = 0; i < std::min<int64_t>(ROWS, rows - b); i++)
                    for (int j = 0; j < 2; j++) lanes(dx + (b + i) * n_in + k + j * LANES) = sums[i][j];
            }
    }
}

#define NAP_RL_GRADIENTS(type, Kind)                                                                                   \
    void weight_gradient_##type(int64_t rows, int64_t n_in, int64_t n_out, const Kind::Number* dy,                     \
                                const Kind::Number* x, float* dw, int threads) {                                       \
        weight_gradient<Kind>(rows, n_in, n_out, dy, x, dw, threads);                                                  \
    }                                                                                                                  \
    void convolution_weight_gradient_##type(int64_t images, int64_t height, int64_t width, int64_t C, int64_t O,       \
                                            int64_t k, int64_t s, const Kind::Number* dy, const Kind::Number* x,       \
                                            float* dw, int threads) {                                                  \
        convolution_weight_gradient<Kind>(images, height, width, C, O, k, s, dy, x, dw, threads);                      \
    }

#ifdef __AVX512F__
NAP_RL_GRADIENTS(float32, Single)
#endif
#ifdef __AVX512BF16__
NAP_RL_GRADIENTS(bfloat16, Half)
#endif
}
