// One update of all weights of a network in one pass over memory, where torch makes many.
//
// A tensor is taken as rows of `length` floats and cut into pieces of whole rows. Sums are in double within a piece, and
// pieces are added in their order: the same numbers for any count of threads. Nothing here is compiled with -ffast-math,
// which would change how the whole process rounds.
//
// Memory is what an update waits for. A thread has the same rows of a layer from call to call, like the threads that
// write the gradients and read the weights: its caches may not be those of another core. The tensors of a group are
// stepped and then projected before the next group's turn, each thread its own pieces and the last ones first: a layer's
// weights are still in a core's caches, a network's are not.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "lanes.h"

namespace {

constexpr int64_t PIECE = 32768;  // floats of one tensor: long enough to stream; weight, gradient, moments: half a MB

// A row of the table that adam.py hands over.
struct Tensor {
    const float* g;
    float *p, *m, *v, *count;
    int64_t size, length, group;  // group: -1 for none
};
static_assert(sizeof(Tensor) == 8 * 8, "eight numbers of 64 bits");

struct Piece {
    int64_t tensor, begin, end;  // elements [begin, end) of the tensor: whole rows
    double sum;
};
typedef std::vector<Piece> Pieces;

// The pieces of every group, behind those of the tensors without one.
std::vector<Pieces> cut(int64_t count, const Tensor* tensors, int64_t groups) {
    std::vector<Pieces> pieces(1 + groups);
    for (int64_t t = 0; t < count; t++) {
        const int64_t size = tensors[t].size, length = tensors[t].length;
        const int64_t step = std::max<int64_t>(1, PIECE / length) * length;
        for (int64_t begin = 0; begin < size; begin += step)
            pieces[1 + tensors[t].group].push_back({t, begin, std::min(begin + step, size), 0.0});
    }
    return pieces;
}

double total(const Pieces& pieces) {
    double sum = 0.0;
    for (const Piece& piece : pieces) sum += piece.sum;
    return sum;
}

// The sum of `each(j)` over begin <= j < end.
template <typename Each>
inline double sum_over(int64_t begin, int64_t end, Each each) {
    double sum = 0.0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = begin; j < end; j++) sum += each(j);
    return sum;
}

}  // namespace

extern "C" {

// One update of all tensors: clips, steps, projects. Returns the global norm of the gradients before clipping.
//
// Clipping: the gradients are scaled by max_norm / (norm + 1e-6) where their norm is larger, as torch does it.
//
// Adam (Kingma & Ba 2015, algorithm 1), as torch.optim.Adam does it; *count is the t of a tensor:
//     t <- t + 1    m <- m + (1 - b1) (g - m)    v <- b2 v + (1 - b2) g^2    p <- p - step m / (root sqrt(v) + eps)
// with step = lr / (1 - b1^t) and root = 1 / sqrt(1 - b2^t).
//
// Projection: tensors of one group are scaled together so that their norm is targets[group].
double adam_update(int64_t count, const Tensor* tensors, int64_t groups, const double* targets, double lr, double beta1,
                   double beta2, double eps, double max_norm, int threads) {
    std::vector<Pieces> pieces = cut(count, tensors, groups);
#pragma omp parallel num_threads(threads)
    for (Pieces& of : pieces) {
        const Share mine(of.size(), 1);
        for (int64_t i = mine.begin; i < mine.end; i++) {
            const float* g = tensors[of[i].tensor].g;
            of[i].sum = sum_over(of[i].begin, of[i].end, [=](int64_t j) { return double(g[j]) * double(g[j]); });
        }
    }
    double square = 0.0;
    for (const Pieces& of : pieces) square += total(of);
    const double norm = std::sqrt(square);
    const float scale = std::isinf(max_norm) || norm <= max_norm ? 1.0f : float(max_norm / (norm + 1e-6));

    std::vector<float> steps(count), roots(count);
    for (int64_t t = 0; t < count; t++) {
        const double updates = *tensors[t].count += 1.0f;
        steps[t] = float(lr / (1.0 - std::pow(beta1, updates)));
        roots[t] = float(1.0 / std::sqrt(1.0 - std::pow(beta2, updates)));
    }
    const float rest1 = float(1.0 - beta1), rest2 = float(1.0 - beta2), keep2 = float(beta2), small = float(eps);
#pragma omp parallel num_threads(threads)
    for (int64_t group = -1; group < groups; group++) {
        Pieces& of = pieces[1 + group];
        const Share mine(of.size(), 1);
        for (int64_t i = mine.begin; i < mine.end; i++) {
            const Tensor& tensor = tensors[of[i].tensor];
            const float* __restrict g = tensor.g;
            float* __restrict weights = tensor.p;
            float* __restrict first = tensor.m;
            float* __restrict second = tensor.v;
            const float step = steps[of[i].tensor], root = roots[of[i].tensor];
            of[i].sum = sum_over(of[i].begin, of[i].end, [=](int64_t j) {
                const float gradient = scale * g[j];
                const float mean = first[j] + rest1 * (gradient - first[j]);
                const float square = keep2 * second[j] + rest2 * gradient * gradient;
                const float weight = weights[j] - step * mean / (std::sqrt(square) * root + small);
                first[j] = mean;
                second[j] = square;
                weights[j] = weight;
                return double(weight) * double(weight);
            });
        }
        if (group < 0) continue;
#pragma omp barrier
        const float factor = float(targets[group] / std::max(std::sqrt(total(of)), 1e-30));
        for (int64_t i = mine.end - 1; i >= mine.begin; i--) {
            float* weights = tensors[of[i].tensor].p;
            for (int64_t j = of[i].begin; j < of[i].end; j++) weights[j] *= factor;
        }
    }
    return norm;
}
}
