// Products of few rows, as in acting: torch's take them in pieces meant for large matrices.

#include <algorithm>
#include <cstdint>

namespace {

constexpr int ROWS = 8, LANES = 16;
constexpr int AHEAD = 256;  // floats; a weight is read once and lies in memory, so it is asked for early
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));  // several registers where a CPU's are narrower

const Lanes& lanes(const float* at) { return *reinterpret_cast<const Lanes*>(at); }

}  // namespace

extern "C" {

// y[r][n] = sum_k x[r][k] w[n][k]. Eight rows of x meet two of w at a time, which are 16 sums of 16 lanes in registers.
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
}
