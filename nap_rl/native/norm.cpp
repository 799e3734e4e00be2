// A norm over channels and positions (GroupNorm of one group) and the ReLU behind it, of images with channels last.
//
//     y = max(0, gain_c (x - mean) / deviation + offset_c)
//
// An image is some tens of kilobytes, so that its passes after the first find it in the nearest caches. An image is one
// thread's; sums over images are taken in their order: the same numbers for any count of threads. Channels are a multiple
// of COLUMNS.

#include <cmath>
#include <vector>

#include "functions.h"
#include "lanes.h"

#ifdef __AVX512F__
namespace {

using nap_rl::Statistics;

float sum_of(const Lanes& lanes) {
    float sum = 0.0f;
    for (int lane = 0; lane < LANES; lane++) sum += lanes[lane];
    return sum;
}

// The sum of `of(i)`, which gives the Lanes from i on, over i = 0, LANES, ... below n.
template <class Of>
float sum_over(int64_t n, Of of) {
    Lanes sums[4] = {};  // an addition takes four cycles
    int64_t i = 0;
    for (; i + 4 * LANES <= n; i += 4 * LANES)
        for (int k = 0; k < 4; k++) sums[k] += of(i + k * LANES);
    for (; i < n; i += LANES) sums[0] += of(i);
    return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// gain_c (x - mean) / deviation + offset_c = factors_c x + terms_c
void affine(int64_t C, const float* gain, const float* offset, Statistics of, float* factors, float* terms) {
    for (int64_t c = 0; c < C; c++) {
        factors[c] = gain[c] * of.scale;
        terms[c] = offset[c] - of.mean * factors[c];
    }
}

template <class Kind>
void norm_relu(int64_t images, int64_t positions, int64_t C, const typename Kind::Number* x, const float* gain,
               const float* offset, typename Kind::Number* y, Statistics* statistics, double eps, int threads) {
    const int64_t n = positions * C;
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> factors(C), terms(C);
#pragma omp for schedule(static)
        for (int64_t image = 0; image < images; image++) {
            const typename Kind::Number* from = x + image * n;
            typename Kind::Number* to = y + image * n;
            const float mean = sum_over(n, [=](int64_t i) { return Kind::load(from + i); }) / float(n);
            const float square = sum_over(n, [=](int64_t i) {
                const Lanes centred = Kind::load(from + i) - mean;
                return centred * centred;
            });
            const float scale = float(1.0 / std::sqrt(double(square) / double(n) + eps));
            statistics[image] = {mean, scale};
            affine(C, gain, offset, statistics[image], factors.data(), terms.data());
            for (int64_t i = 0; i < n; i += C)
                for (int64_t c = 0; c < C; c += LANES) {
                    const Lanes z = Kind::load(from + i + c) * lanes(&factors[c]) + lanes(&terms[c]);
                    Kind::store(to + i + c, z < 0.0f ? Lanes{} : z);  // which lets NaN through
                }
        }
    }
}

// With h = (x - mean) / deviation, and z = dy where y > 0, which x tells as well:
//
//     doffset_c = sum z    dgain_c = sum z h    dx = (gain_c z - mean(gain z) - h mean(gain z h)) / deviation
template <class Kind>
void norm_relu_gradient(int64_t images, int64_t positions, int64_t C, const typename Kind::Number* dy,
                        const typename Kind::Number* x, const float* gain, const float* offset,
                        const Statistics* statistics, typename Kind::Number* dx, float* dgain, float* doffset,
                        int threads) {
    const int64_t n = positions * C;
    std::vector<float> of_images(2 * images * C);  // of each image what it adds to dgain and to doffset
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> factors(C), terms(C);
#pragma omp for schedule(static)
        for (int64_t image = 0; image < images; image++) {
            const auto [mean, scale] = statistics[image];
            affine(C, gain, offset, statistics[image], factors.data(), terms.data());
            const typename Kind::Number *above = dy + image * n, *in = x + image * n;
            const auto passed = [&](int64_t i, int64_t c, const Lanes& x) {
                const Lanes z = x * lanes(&factors[c]) + lanes(&terms[c]);
                return z > 0.0f ? Kind::load(above + i + c) : Lanes{};
            };
            float* gains = &of_images[2 * image * C];
            float* offsets = gains + C;
            float passed_mean = 0.0f, product_mean = 0.0f;
            for (int64_t c = 0; c < C; c += COLUMNS) {
                Lanes sums[2] = {}, products[2] = {};
                for (int64_t i = 0; i < n; i += C)
                    for (int k = 0; k < 2; k++) {
                        const Lanes x = Kind::load(in + i + c + k * LANES), z = passed(i, c + k * LANES, x);
                        sums[k] += z;
                        products[k] += z * (x - mean);
                    }
                for (int k = 0; k < 2; k++) {
                    const int64_t at = c + k * LANES;
                    lanes(offsets + at) = sums[k];
                    lanes(gains + at) = products[k] * scale;
                    passed_mean += sum_of(lanes(gain + at) * sums[k]) / float(n);
                    product_mean += sum_of(lanes(gain + at) * lanes(gains + at)) / float(n);
                }
            }
            const float slope = -scale * scale * product_mean, term = -scale * passed_mean - slope * mean;
            for (int64_t i = 0; i < n; i += C)
                for (int64_t c = 0; c < C; c += LANES) {
                    const Lanes x = Kind::load(in + i + c), z = passed(i, c, x);
                    Kind::store(dx + image * n + i + c, z * lanes(&factors[c]) + (x * slope + term));
                }
        }
    }
    for (int64_t c = 0; c < C; c++) dgain[c] = doffset[c] = 0.0f;
    for (int64_t image = 0; image < images; image++)
        for (int64_t c = 0; c < C; c++) {
            dgain[c] += of_images[2 * image * C + c];
            doffset[c] += of_images[(2 * image + 1) * C + c];
        }
}

}  // namespace

namespace nap_rl {

#define NAP_RL_NORM(Kind)                                                                                              \
    void norm_relu(int64_t images, int64_t positions, int64_t C, const Kind::Number* x, const float* gain,             \
                   const float* offset, double eps, Kind::Number* y, Statistics* statistics, int threads) {            \
        ::norm_relu<Kind>(images, positions, C, x, gain, offset, y, statistics, eps, threads);                         \
    }                                                                                                                  \
    void norm_relu_gradient(int64_t images, int64_t positions, int64_t C, const Kind::Number* dy,                      \
                            const Kind::Number* x, const float* gain, const float* offset,                             \
                            const Statistics* statistics, Kind::Number* dx, float* dgain, float* doffset,              \
                            int threads) {                                                                             \
        ::norm_relu_gradient<Kind>(images, positions, C, dy, x, gain, offset, statistics, dx, dgain, doffset, threads);\
    }

NAP_RL_FOR_EACH_KIND(NAP_RL_NORM)

}  // namespace nap_rl
#endif
