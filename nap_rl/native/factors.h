// The gradient of a large layer as its factors, g[i][j] = sum_b dy[b][i] x[b][j], multiplied where it is read. Its height
// is a multiple of LANES, its length one of COLUMNS.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "lanes.h"

namespace {

class Factors {
    const void *dy, *x;  // [batch][height] and [batch][length]; bfloat16, or float32
    const int64_t batch, height, length;
    const bool bfloat16;
    const int64_t items;
    static constexpr int FEW = 8;
    Room<uint32_t> dy_items, x_items;  // [items][height] and [items][length]

    template <class Kind, class Run>
    void run_of(Run run) {
        typedef typename Kind::Item Item;
        run(Kind(), reinterpret_cast<Item*>(static_cast<uint32_t*>(dy_items)),
            reinterpret_cast<Item*>(static_cast<uint32_t*>(x_items)));
    }
    template <class Run>
    void run_by_type(Run run) {
#ifdef __AVX512BF16__
        if (bfloat16) return run_of<Half>(run);
#endif
        run_of<Single>(run);
    }

    // sum_i a[b][i] a[c][i] for all b and c, where a[b][i] = of[b][i] by[i], and by is 1 where it is null.
    template <class Kind>
    std::vector<double> products_of_rows(const void* of, int64_t n, const float* by) const {
        Room<float> a(batch * n);
        const auto* numbers = static_cast<const typename Kind::Number*>(of);
        for (int64_t b = 0; b < batch; b++)
            for (int64_t i = 0; i < n; i += LANES) {
                const Lanes values = Kind::load(numbers + b * n + i);
                lanes(a + b * n + i) = by == nullptr ? values : values * lanes(by + i);
            }
        std::vector<double> found(batch * batch);
        for (int64_t b = 0; b < batch; b++)
            for (int64_t c = 0; c <= b; c += FEW) {
                const float* others[FEW];
                for (int k = 0; k < FEW; k++) others[k] = a + std::min(c + k, batch - 1) * n;
                Lanes sums[FEW] = {};
                for (int64_t i = 0; i < n; i += LANES)
                    for (int k = 0; k < FEW; k++) sums[k] += lanes(a + b * n + i) * lanes(others[k] + i);
                for (int k = 0; k < FEW && c + k < batch; k++) {
                    double sum = 0.0;
                    for (int lane = 0; lane < LANES; lane++) sum += double(sums[k][lane]);
                    found[b * batch + c + k] = found[(c + k) * batch + b] = sum;
                }
            }
        return found;
    }

  public:
    Factors(const void* dy, const void* x, int64_t batch, int64_t height, int64_t length, bool bfloat16)
        : dy(dy), x(x), batch(batch), height(height), length(length), bfloat16(bfloat16),
          items(bfloat16 ? (batch + 1) / 2 : batch), dy_items(items * height), x_items(items * length) {}

    // Before `multiply`: by all threads of a region, which have to wait for each other then.
    void join() {
        run_by_type([this](auto kind, auto* dys, auto* xs) {
            typedef decltype(kind) Kind;
            typedef typename Kind::Number Number;
            const Share outputs(height, ROWS), inputs(length, LANES);
            join_rows<Kind>(batch, height, static_cast<const Number*>(dy), dys, outputs.begin, outputs.end);
            join_rows<Kind>(batch, length, static_cast<const Number*>(x), xs, inputs.begin, inputs.end);
        });
    }

    // to [ROWS][length]: g from `row` on.
    void multiply(int64_t row, float* to) {
        run_by_type([&](auto kind, auto* dys, auto* xs) {
            typedef decltype(kind) Kind;
            for (int64_t j = 0; j < length; j += COLUMNS) {
                Lanes sums[ROWS][2] = {};
                tile<Kind>(items, dys + row, height, 1, xs + j, length, sums);
                for (int i = 0; i < ROWS; i++)
                    for (int k = 0; k < 2; k++) lanes(to + i * length + j + k * LANES) = sums[i][k];
            }
        });
    }

    // sum_ij (g[i][j] rows[i] columns[j])^2 = sum_bc (dy_b . dy_c) (x_b . x_c), with dy times rows and x times columns.
    double square(const float* rows, const float* columns) {
        double sum = 0.0;
        run_by_type([&](auto kind, auto*, auto*) {
            typedef decltype(kind) Kind;
            const std::vector<double> outputs = products_of_rows<Kind>(dy, height, rows);
            const std::vector<double> inputs = products_of_rows<Kind>(x, length, columns);
            sum = std::inner_product(outputs.begin(), outputs.end(), inputs.begin(), 0.0);
        });
        return std::max(sum, 0.0);  // rounding may leave a little less of what cancels; NaN stays
    }
};

}  // namespace
