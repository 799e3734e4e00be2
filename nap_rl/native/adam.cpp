// One update of all weights of a network, where torch makes many passes over them.
//
// A tensor is taken as rows of `length` floats, and cut into pieces of whole rows. Sums are in double within a piece, and
// pieces are added in their order: the same numbers for any count of threads. Nothing here is compiled with -ffast-math,
// which would change how the whole process rounds.
//
// Memory is what an update waits for. A thread has the same rows of every layer from call to call, as those who wrote the
// gradients and who read the weights next share them out: its caches may not be those of another core. The tensors of a
// group are stepped and then projected before the next group's turn, each thread its own pieces and the last ones first:
// a layer's weights are in a core's caches yet, those of a network are not.
//
// The gradient of a tensor may be given by that of another (see `Outer` in adam.py):
//
//     gradient[i][j] = scale * g[i][j]                             where `rows` is null
//     gradient[i][j] = scale * g[i][j] * rows[i] * columns[j]      where it is not; g belongs to tensor `base`
//
// Pieces of both then follow each other, so that g is read from memory once for the two.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "lanes.h"

namespace {

constexpr int64_t PIECE = 32768;  // floats of one tensor: long enough to stream; of weight, gradient and moments half a MB

// A row of what adam.py hands over.
struct Tensor {
    const float *g, *rows, *columns;
    float *p, *m, *v, *count;
    int64_t size, length, base, group;  // base and group: -1 for none
};
static_assert(sizeof(Tensor) == 11 * 8, "eleven numbers of 64 bits");

struct Piece {
    int64_t tensor, begin, end;  // rows [begin, end)
    double sum;
};
typedef std::vector<Piece> Pieces;

// Those of every group, behind those of none.
std::vector<Pieces> pieces(int64_t count, const Tensor* tensors, int64_t groups) {
    std::vector<Pieces> found(1 + groups);
    std::vector<std::vector<int64_t>> followers(count);
    for (int64_t t = 0; t < count; t++)
        if (tensors[t].base >= 0) followers[tensors[t].base].push_back(t);
    for (int64_t t = 0; t < count; t++) {
        const int64_t length = tensors[t].length;
        if (tensors[t].base >= 0) continue;
        const int64_t rows = tensors[t].size / length, some = std::max<int64_t>(1, PIECE / length);
        for (int64_t begin = 0; begin < rows; begin += some) {
            const int64_t end = std::min(begin + some, rows);
            found[1 + tensors[t].group].push_back({t, begin, end, 0.0});
            for (int64_t follower : followers[t])
                found[1 + tensors[follower].group].push_back({follower, begin, end, 0.0});
        }
    }
    return found;
}

double total(const Pieces& of) {
    double sum = 0.0;
    for (const Piece& piece : of) sum += piece.sum;
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

// The sum of `each(j, gradient)` over the elements of one piece.
template <typename Each>
inline double over(const Piece& piece, const Tensor& tensor, float scale, Each each) {
    const float *g = tensor.g, *columns = tensor.columns;
    const int64_t length = tensor.length;
    if (tensor.rows == nullptr)
        return sum_over(piece.begin * length, piece.end * length, [=](int64_t j) { return each(j, scale * g[j]); });
    double sum = 0.0;
    for (int64_t i = piece.begin; i < piece.end; i++) {
        const float row = scale * tensor.rows[i];
        const int64_t at = i * length;
        sum += sum_over(0, length, [=](int64_t j) { return each(at + j, g[at + j] * (row * columns[j])); });
    }
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
    std::vector<Pieces> found = pieces(count, tensors, groups);
#pragma omp parallel num_threads(threads)
    for (Pieces& of : found) {
        const Share mine(of.size(), 1);
        for (int64_t i = mine.begin; i < mine.end; i++)
            of[i].sum = over(of[i], tensors[of[i].tensor], 1.0f, [](int64_t, float gradient) { return double(gradient) * double(gradient); });
    }
    double square = 0.0;
    for (const Pieces& of : found) square += total(of);
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
        Pieces& of = found[1 + group];
        const Share mine(of.size(), 1);
        for (int64_t i = mine.begin; i < mine.end; i++) {
            const Tensor& tensor = tensors[of[i].tensor];
            float* __restrict weights = tensor.p;
            float* __restrict first = tensor.m;
            float* __restrict second = tensor.v;
            const float step = steps[of[i].tensor], root = roots[of[i].tensor];
            of[i].sum = over(of[i], tensor, scale, [=](int64_t j, float gradient) {
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
            const int64_t length = tensors[of[i].tensor].length;
            for (int64_t j = of[i].begin * length; j < of[i].end * length; j++) weights[j] *= factor;
        }
    }
    return norm;
}
}
