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
// Pieces of both then follow each other, so that g is read from memory once for the two. And g may be given by its factors
// (see `Factors` in adam.py): then it is multiplied piece by piece into the nearest caches, for both, and never written to
// memory; its square is a sum over pairs of the batch.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "factors.h"
#include "lanes.h"

namespace {

constexpr int64_t PIECE = 32768;  // floats of one tensor: long enough to stream; of weight, gradient and moments half a MB

// A row of what adam.py hands over.
struct Tensor {
    const float *g, *rows, *columns;
    const void *dy, *x;  // the factors of g, null where it is given itself
    float *p, *m, *v, *count;
    int64_t size, length, base, group;  // base and group: -1 for none
    int64_t batch, bfloat16;            // of the factors

    int64_t height() const { return size / length; }
};
static_assert(sizeof(Tensor) == 15 * 8, "fifteen numbers of 64 bits");

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
        if (tensors[t].base >= 0) continue;
        const int64_t rows = tensors[t].height(), fitting = std::max<int64_t>(1, PIECE / tensors[t].length);
        const int64_t some = tensors[t].dy == nullptr ? fitting : ROWS;
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

// The sum of `each(j, gradient)` over the elements j of one piece, whose g is given.
template <typename Each>
inline double over(const Piece& piece, const Tensor& tensor, const float* g, float scale, Each each) {
    const int64_t length = tensor.length, rows = piece.end - piece.begin;
    if (tensor.rows == nullptr) return sum_over(0, rows * length, [=](int64_t j) { return each(j, scale * g[j]); });
    const float* columns = tensor.columns;
    double sum = 0.0;
    for (int64_t i = 0; i < rows; i++) {
        const float row = scale * tensor.rows[piece.begin + i];
        const int64_t at = i * length;
        sum += sum_over(0, length, [=](int64_t j) { return each(at + j, g[at + j] * (row * columns[j])); });
    }
    return sum;
}

// What gives g: all tensors, and those of factors.
class Gradients {
    const Tensor* tensors;
    std::vector<std::unique_ptr<Factors>> factors;  // of each tensor that has them

    const Tensor& base(const Tensor& of) const { return of.base < 0 ? of : tensors[of.base]; }

  public:
    Gradients(int64_t count, const Tensor* tensors) : tensors(tensors), factors(count) {
        for (int64_t t = 0; t < count; t++)
            if (const Tensor& of = tensors[t]; of.base < 0 && of.dy != nullptr)
                factors[t] = std::make_unique<Factors>(of.dy, of.x, of.batch, of.height(), of.length, of.bfloat16);
    }

    void join() {
        for (const auto& each : factors)
            if (each != nullptr) each->join();
    }
    Factors* factors_of(const Tensor& tensor) const { return factors[&base(tensor) - tensors].get(); }
    const float* g_of(const Piece& piece) const {
        const Tensor& of = base(tensors[piece.tensor]);
        return of.g + piece.begin * of.length;
    }
};

// Of a thread: the last piece of g that it has multiplied.
class Multiplied {
    Room<float> product;
    const Factors* of = nullptr;
    int64_t row = -1;

  public:
    explicit Multiplied(int64_t length) : product(ROWS * length) {}

    const float* g(Factors& factors, int64_t begin) {
        if (of != &factors || row != begin) factors.multiply(begin, product);
        of = &factors, row = begin;
        return product;
    }
};

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
    Gradients gradients(count, tensors);
    std::vector<double> squares(count);
    int64_t longest = 0;
#pragma omp parallel num_threads(threads)
    {
        gradients.join();
        for (Pieces& of : found) {
            const Share mine(of.size(), 1);
            for (int64_t i = mine.begin; i < mine.end; i++) {
                const Tensor& tensor = tensors[of[i].tensor];
                if (gradients.factors_of(tensor) == nullptr)
                    of[i].sum = over(of[i], tensor, gradients.g_of(of[i]), 1.0f, [](int64_t, float gradient) {
                        return double(gradient) * double(gradient);
                    });
            }
        }
#pragma omp for schedule(dynamic) reduction(max : longest)
        for (int64_t t = 0; t < count; t++)
            if (Factors* factors = gradients.factors_of(tensors[t])) {
                squares[t] = factors->square(tensors[t].rows, tensors[t].columns);
                longest = std::max(longest, tensors[t].length);
            }
    }
    double square = std::accumulate(squares.begin(), squares.end(), 0.0);
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
    {
        Multiplied multiplied(longest);
        for (int64_t group = -1; group < groups; group++) {
            Pieces& of = found[1 + group];
            const Share mine(of.size(), 1);
            for (int64_t i = mine.begin; i < mine.end; i++) {
                const Tensor& tensor = tensors[of[i].tensor];
                Factors* factors = gradients.factors_of(tensor);
                const float* g = factors == nullptr ? gradients.g_of(of[i]) : multiplied.g(*factors, of[i].begin);
                const int64_t at = of[i].begin * tensor.length;
                float* __restrict weights = tensor.p + at;
                float* __restrict first = tensor.m + at;
                float* __restrict second = tensor.v + at;
                const float step = steps[of[i].tensor], root = roots[of[i].tensor];
                of[i].sum = over(of[i], tensor, g, scale, [=](int64_t j, float gradient) {
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
    }
    return norm;
}
}
