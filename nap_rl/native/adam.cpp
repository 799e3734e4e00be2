// Passes over all weights of a network at once, where torch makes several. Each is tested against plain torch.
//
// A tensor is taken as rows of `length` floats, and cut into pieces of whole rows. Sums are in double within a piece, and
// pieces are added in their order: the same numbers for any count of threads. Nothing here is compiled with -ffast-math,
// which would change how the whole process rounds.
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

namespace {

constexpr int64_t PIECE = 4096;  // floats of one tensor; those of weight, gradient and two moments fit a core's cache

struct Piece {
    int64_t tensor, begin, end;  // rows [begin, end)
};

std::vector<Piece> pieces(int64_t tensors, const int64_t* sizes, const int64_t* lengths, const int64_t* base) {
    std::vector<Piece> found;
    std::vector<std::vector<int64_t>> followers(tensors);
    for (int64_t t = 0; t < tensors; t++)
        if (base[t] >= 0) followers[base[t]].push_back(t);
    for (int64_t t = 0; t < tensors; t++) {
        if (base[t] >= 0) continue;
        const int64_t rows = sizes[t] / lengths[t], some = std::max<int64_t>(1, PIECE / lengths[t]);
        for (int64_t begin = 0; begin < rows; begin += some) {
            const int64_t end = std::min(begin + some, rows);
            found.push_back({t, begin, end});
            for (int64_t follower : followers[t]) found.push_back({follower, begin, end});
        }
    }
    return found;
}

void add_up(const std::vector<Piece>& found, const std::vector<double>& sums, int64_t tensors, double* squares) {
    std::fill(squares, squares + tensors, 0.0);
    for (size_t i = 0; i < found.size(); i++) squares[found[i].tensor] += sums[i];
}

// `each(j, gradient)` for the elements of one piece, in order.
template <typename Each>
inline double over(const Piece& piece, int64_t length, const float* g, const float* rows, const float* columns,
                   float scale, Each each) {
    double sum = 0.0;
    if (rows == nullptr) {
#pragma omp simd reduction(+ : sum)
        for (int64_t j = piece.begin * length; j < piece.end * length; j++) sum += each(j, scale * g[j]);
        return sum;
    }
    for (int64_t i = piece.begin; i < piece.end; i++) {
        const float row = scale * rows[i];
        const int64_t at = i * length;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < length; j++) sum += each(at + j, g[at + j] * (row * columns[j]));
    }
    return sum;
}

}  // namespace

extern "C" {

// squares[t] = sum of the squares of gradient t.
void gradient_squares(int64_t tensors, const int64_t* sizes, const int64_t* lengths, const int64_t* base,
                      const float* const* g, const float* const* rows, const float* const* columns, int threads,
                      double* squares) {
    const std::vector<Piece> found = pieces(tensors, sizes, lengths, base);
    std::vector<double> sums(found.size());
#pragma omp parallel for schedule(static) num_threads(threads)
    for (size_t i = 0; i < found.size(); i++) {
        const int64_t t = found[i].tensor;
        sums[i] = over(found[i], lengths[t], g[t], rows[t], columns[t], 1.0f,
                       [](int64_t, float gradient) { return double(gradient) * double(gradient); });
    }
    add_up(found, sums, tensors, squares);
}

// Adam (Kingma & Ba 2015, algorithm 1) on every tensor, as torch.optim.Adam does it:
//     t <- t + 1    m <- m + (1 - b1) (g - m)    v <- b2 v + (1 - b2) g^2    p <- p - step m / (root sqrt(v) + eps)
// with step = lr / (1 - b1^t) and root = 1 / sqrt(1 - b2^t); *counts[i] is t of tensor i. squares[i] = sum of the new p_i^2.
void adam(int64_t tensors, const int64_t* sizes, const int64_t* lengths, const int64_t* base, const float* const* g,
          const float* const* rows, const float* const* columns, int threads, double* squares, float* const* p,
          float* const* m, float* const* v, float* const* counts, double lr, double beta1, double beta2, float eps,
          float scale) {
    const std::vector<Piece> found = pieces(tensors, sizes, lengths, base);
    std::vector<double> sums(found.size());
    std::vector<float> steps(tensors), roots(tensors);
    for (int64_t t = 0; t < tensors; t++) {
        const double count = *counts[t] += 1.0f;
        steps[t] = float(lr / (1.0 - std::pow(beta1, count)));
        roots[t] = float(1.0 / std::sqrt(1.0 - std::pow(beta2, count)));
    }
    const float rest1 = float(1.0 - beta1), rest2 = float(1.0 - beta2), keep2 = float(beta2);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (size_t i = 0; i < found.size(); i++) {
        const int64_t t = found[i].tensor;
        float* __restrict weights = p[t];
        float* __restrict first = m[t];
        float* __restrict second = v[t];
        const float step = steps[t], root = roots[t];
        sums[i] = over(found[i], lengths[t], g[t], rows[t], columns[t], scale, [=](int64_t j, float gradient) {
            const float mean = first[j] + rest1 * (gradient - first[j]);
            const float square = keep2 * second[j] + rest2 * gradient * gradient;
            const float weight = weights[j] - step * mean / (std::sqrt(square) * root + eps);
            first[j] = mean;
            second[j] = square;
            weights[j] = weight;
            return double(weight) * double(weight);
        });
    }
    add_up(found, sums, tensors, squares);
}
}
