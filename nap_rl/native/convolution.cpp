// Convolutions without padding by Winograd's algorithm, and their gradients; channels last.
//
// A kernel of k x k with stride s, k = r s, is one of r x r with stride 1 where a block of s x s pixels is one place with
// K = s s C channels. Along one axis, m of its outputs want m r products; n = m + r - 1 are enough (Cook and Toom), and in
// the plane n n for m m r r (Winograd 1980; Lavin and Gray 2016, arXiv 1509.09308, equation 8), where f below counts the
// n n frequencies of a tile:
//
//     U = G g G'        M[f] = V[f] U[f]       [tiles][O] = [tiles][K] [K][O], a product of matrices
//     V = B d B'        y = A M A'             of g [r][r], d [n][n] in steps of m, y [m][m], for every channel alone
//
// All of it is linear in g and in d, so gradients are the same steps turned round: dM = A' dy A, dV = dM U', d += B' dV B,
// dU = V' dM, dg = G' dU G. With the points 0, 1, -1 the matrices hold halves, ones and zeros, and rounding is as in the
// plain sum; with 2 and -2 it is three times that, which float32 can bear.
//
// O and K are multiples of COLUMNS, s C is one of LANES. Every sum is taken in one order, for any count of threads.

#include <cstring>
#include <type_traits>
#include <vector>

#include "functions.h"
#include "lanes.h"

#ifdef __AVX512F__
namespace {

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

template <int m, int r>
struct Matrices {
    static constexpr int n = m + r - 1;
    float A[m][n]{}, G[n][r]{}, B[n][n]{};

    constexpr Matrices() {
        constexpr double points[] = {0, 1, -1, 2, -2};  // n - 1 of them, and infinity
        for (int p = 0; p < n; p++) {
            const bool infinity = p == n - 1;
            double product[n + 1] = {1}, scale = 1, power = 1;  // product: of (z - point) over the other points
            for (int l = 0, degree = 0; l < n - 1; l++) {
                if (l == p) continue;
                for (int d = ++degree; d >= 0; d--) product[d] = (d > 0 ? product[d - 1] : 0) - points[l] * product[d];
                if (!infinity) scale *= points[p] - points[l];
            }
            for (int d = 0; d < n; d++) B[p][d] = float(product[d]);
            for (int d = 0; d < std::max(m, r); d++) {
                if (d < m) A[d][p] = float(infinity ? d == m - 1 : power);
                if (d < r) G[p][d] = float(infinity ? d == r - 1 : power / scale);
                if (!infinity) power *= points[p];
            }
        }
    }
};

template <int m, int r>
constexpr Matrices<m, r> matrices{};

// sum_j matrix(i, j) in[j * step]; after unrolling every number of the matrix is a constant, most are 0 or 1.
template <int C, class Matrix>
INLINE Lanes sum_of(Matrix matrix, int i, const Lanes* in, int step) {
    Lanes sum;
    bool begun = false;
    UNROLL for (int j = 0; j < C; j++) {
        if (matrix(i, j) == 0) continue;
        sum = begun ? sum + matrix(i, j) * in[j * step] : matrix(i, j) * in[j * step];
        begun = true;
    }
    return sum;
}

// to = matrix in matrix', [R][C] [C][C] [C][R].
template <int R, int C, class Matrix>
INLINE void around(Matrix matrix, const Lanes (&in)[C][C], Lanes (&to)[R][R]) {
    Lanes half[R][C];
    UNROLL for (int i = 0; i < R; i++)
        UNROLL for (int c = 0; c < C; c++) half[i][c] = sum_of<C>(matrix, i, &in[0][c], C);
    UNROLL for (int i = 0; i < R; i++)
        UNROLL for (int c = 0; c < R; c++) to[i][c] = sum_of<C>(matrix, c, half[i], 1);
}

// Of images that are numbers [B][height][width][C], or pixels [B][C][height][width] to be divided by 255.
template <class Kind, class Source, int m, int r>
class Convolution : nap_rl::Sizes {
    typedef typename Kind::Number Number;
    typedef typename Kind::Item Item;
    static constexpr int n = m + r - 1, DEPTH = Kind::DEPTH;
    static constexpr bool PIXELS = std::is_same_v<Source, uint8_t>;
    static constexpr int64_t GROUPS = 4, BLOCK = 72;  // of images and of tiles: what a gradient is summed over at once

    const int64_t out_height = (height - k) / s + 1, out_width = (width - k) / s + 1;
    const int64_t down = (out_height + m - 1) / m, across = (out_width + m - 1) / m;  // tiles of an image
    const int64_t line = s * C, K = s * line;
    const int threads;
    std::vector<int64_t> four;  // where in an image the z-th four numbers of a line of a block begin, if they are pixels

    static constexpr float A(int i, int p) { return matrices<m, r>.A[i][p]; }
    static constexpr float G(int p, int i) { return matrices<m, r>.G[p][i]; }
    static constexpr float B(int p, int i) { return matrices<m, r>.B[p][i]; }

    struct Tile { int64_t image, row, column; };  // its first place
    Tile tile_at(int64_t t) const { return {t / (down * across), t / across % down * m, t % across * m}; }

    // Do something for each 16 of the K channels: q of them and, in line h of a block, z lie before.
    template <class Do>
    INLINE void channels(Do run) const {
        for (int64_t h = 0; h < s; h++)
            for (int64_t z = 0; z < line; z += LANES) run(h * line + z, h, z);
    }
    // Where they begin in an image, of a place.
    int64_t number(int64_t row, int64_t column, int64_t h, int64_t z) const {
        return ((row * s + h) * width + column * s) * C + z;
    }
    bool inside(int64_t row, int64_t column) const { return row < out_height + r - 1 && column < out_width + r - 1; }
    bool whole(Tile at) const { return inside(at.row + n - 1, at.column + n - 1); }
    bool outputs(int64_t row, int64_t column) const { return row < out_height && column < out_width; }

    // U as the factor [f][K][O] of items along K, or turned round [f][O][K] of items along O; within a parallel region.
    template <bool turned>
    void transform_kernel(const float* w, Item* U) const {
        const int64_t summed = turned ? O : K, others = turned ? K : O;
#pragma omp for schedule(static)
        for (int64_t z = 0; z < summed; z += DEPTH)
            for (int64_t others_begin = 0; others_begin < others; others_begin += LANES) {
                Number rounded[DEPTH][n][n][LANES];
                for (int d = 0; d < DEPTH; d++) {
                    Lanes g[r][r], u[n][n];
                    for (int lane = 0; lane < LANES; lane++) {
                        const int64_t o = turned ? z + d : others_begin + lane, q = turned ? others_begin + lane : z + d;
                        for (int i = 0; i < r; i++)
                            for (int j = 0; j < r; j++) g[i][j][lane] = w[weight(o, q, i, j)];
                    }
                    around<n, r>([](int p, int i) { return G(p, i); }, g, u);
                    for (int i = 0; i < n; i++)
                        for (int j = 0; j < n; j++) Kind::store(rounded[d][i][j], u[i][j]);
                }
                for (int f = 0; f < n * n; f++)
                    for (int lane = 0; lane < LANES; lane++) {
                        Number of[DEPTH];
                        for (int d = 0; d < DEPTH; d++) of[d] = rounded[d][f / n][f % n][lane];
                        U[(f * (summed / DEPTH) + z / DEPTH) * others + others_begin + lane] = Kind::pack(of);
                    }
            }
    }

    // Where the kernel [O][C][k][k] has channel q of place (i, j): q counts rows, columns, channels of a block, or rows,
    // channels, columns where it is of pixels.
    int64_t weight(int64_t o, int64_t q, int64_t i, int64_t j) const {
        const int64_t channel = PIXELS ? q % line / s : q % C, column = PIXELS ? q % s : q % line / C;
        return ((o * C + channel) * k + i * s + q / line) * k + j * s + column;
    }

    INLINE Lanes load(const Number* image, int64_t row, int64_t column, int64_t h, int64_t z) const {
        return Kind::load(image + number(row, column, h, z));
    }
    INLINE Lanes load(const uint8_t* image, int64_t row, int64_t column, int64_t h, int64_t z) const {
        const uint8_t* first = image + (row * s + h) * width + column * s;
        int32_t pixels[4];
        for (int i = 0; i < 4; i++) std::memcpy(pixels + i, first + four[z / 4 + i], 4);
        const __m128i bytes = _mm_set_epi32(pixels[3], pixels[2], pixels[1], pixels[0]);
        return (Lanes)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)) * (1.0f / 255.0f);
    }

    // V[f][row][K] of a tile, of `rows`; beyond the image are zeros.
    INLINE void transform_input(const Source* x, Tile at, Number* V, int64_t row, int64_t rows) const {
        const Source* image = x + at.image * height * width * C;
        channels([&](int64_t q, int64_t h, int64_t z) __attribute__((always_inline)) {
            Lanes d[n][n], v[n][n];
            if (whole(at)) {
                UNROLL for (int i = 0; i < n; i++)
                    UNROLL for (int j = 0; j < n; j++) d[i][j] = load(image, at.row + i, at.column + j, h, z);
            } else {
                for (int i = 0; i < n; i++)
                    for (int j = 0; j < n; j++)
                        d[i][j] = inside(at.row + i, at.column + j) ? load(image, at.row + i, at.column + j, h, z) : Lanes{};
            }
            around<n, n>([](int p, int i) { return B(p, i); }, d, v);
            UNROLL for (int i = 0; i < n; i++)
                UNROLL for (int j = 0; j < n; j++) Kind::store(V + ((i * n + j) * rows + row) * K + q, v[i][j]);
        });
    }

    // dM[f][row][O] of a tile, of `rows`.
    INLINE void transform_output_gradient(const Number* dy, Tile at, Number* dM, int64_t row, int64_t rows) const {
        for (int64_t o = 0; o < O; o += LANES) {
            Lanes d[m][m], out[n][n];
            UNROLL for (int i = 0; i < m; i++)
                UNROLL for (int j = 0; j < m; j++)
                    d[i][j] = outputs(at.row + i, at.column + j) ? Kind::load(dy + output(at, i, j) + o) : Lanes{};
            around<n, m>([](int p, int i) { return A(i, p); }, d, out);
            UNROLL for (int i = 0; i < n; i++)
                UNROLL for (int j = 0; j < n; j++) Kind::store(dM + ((i * n + j) * rows + row) * O + o, out[i][j]);
        }
    }

    int64_t output(Tile at, int i, int j) const {
        return ((at.image * out_height + at.row + i) * out_width + at.column + j) * O;
    }

    // to[f][ROWS][columns] = from[f][ROWS][length] factor[f][length][columns]
    static void multiply(int64_t length, int64_t columns, const Number* from, const Item* factor, float* to) {
        const int64_t items = length / DEPTH;
        for (int f = 0; f < n * n; f++)
            for (int64_t c = 0; c < columns; c += COLUMNS) {
                Lanes sums[ROWS][2] = {};
                const Item* a = reinterpret_cast<const Item*>(from + f * ROWS * length);
                tile<Kind>(items, a, 1, items, factor + f * items * columns + c, columns, sums);
                for (int i = 0; i < ROWS; i++)
                    for (int j = 0; j < 2; j++) lanes(to + (f * ROWS + i) * columns + c + j * LANES) = sums[i][j];
            }
    }

  public:
    Convolution(Sizes sizes, int threads) : Sizes(sizes), threads(threads), four(line / 4) {
        for (int64_t z = 0; z < line / 4; z++) four[z] = 4 * z / s * height * width + 4 * z % s;
    }

    // y[b][i][j][o] = sum_c,h,v w[o][c][h][v] x[b][s i + h][s j + v][c]
    void forward(const Source* x, const float* w, Number* y) const {
        Buffer<Item> U(n * n * K / DEPTH * O);
        const int64_t tiles = images * down * across;
#pragma omp parallel num_threads(threads)
        {
            transform_kernel<false>(w, U);
            Buffer<Number> V(n * n * ROWS * K);
            Buffer<float> M(n * n * ROWS * O);
#pragma omp for schedule(static)
            for (int64_t begin = 0; begin < tiles; begin += ROWS) {
                const int64_t used = std::min<int64_t>(ROWS, tiles - begin);
                for (int64_t t = 0; t < used; t++) transform_input(x, tile_at(begin + t), V, t, ROWS);
                multiply(K, O, V, U, M);
                for (int64_t t = 0; t < used; t++) {
                    const Tile at = tile_at(begin + t);
                    for (int64_t o = 0; o < O; o += LANES) {
                        Lanes in[n][n], out[m][m];
                        UNROLL for (int i = 0; i < n; i++)
                            UNROLL for (int j = 0; j < n; j++) in[i][j] = lanes(M + ((i * n + j) * ROWS + t) * O + o);
                        around<m, n>([](int i, int p) { return A(i, p); }, in, out);
                        UNROLL for (int i = 0; i < m; i++)
                            UNROLL for (int j = 0; j < m; j++)
                                if (outputs(at.row + i, at.column + j)) Kind::store(y + output(at, i, j) + o, out[i][j]);
                    }
                }
            }
        }
    }

    // dx[b][s i + h][s j + v][c] = sum over i, j, o of dy[b][i][j][o] w[o][c][h][v]
    void input_gradient(const Number* dy, const float* w, Number* dx) const {
        Buffer<Item> U(n * n * O / DEPTH * K);
        const int64_t size = height * width * C;
#pragma omp parallel num_threads(threads)
        {
            transform_kernel<true>(w, U);
            Buffer<Number> dM(n * n * ROWS * O);
            Buffer<float> dV(n * n * ROWS * K), image(size + LANES);  // tiles overlap: an image is summed here
            std::fill(&image[0], &image[size], 0.0f);
            const Share mine(images, 1);
            for (int64_t begin = mine.begin * down * across, end = mine.end * down * across; begin < end; begin += ROWS) {
                const int64_t used = std::min<int64_t>(ROWS, end - begin);
                for (int64_t t = 0; t < used; t++) transform_output_gradient(dy, tile_at(begin + t), dM, t, ROWS);
                multiply(O, K, dM, U, dV);
                for (int64_t t = 0; t < used; t++) {
                    const Tile at = tile_at(begin + t);
                    channels([&](int64_t q, int64_t h, int64_t z) __attribute__((always_inline)) {
                        Lanes in[n][n], out[n][n];
                        UNROLL for (int i = 0; i < n; i++)
                            UNROLL for (int j = 0; j < n; j++) in[i][j] = lanes(dV + ((i * n + j) * ROWS + t) * K + q);
                        around<n, n>([](int i, int p) { return B(p, i); }, in, out);
                        float* first = image + number(at.row, at.column, h, z);
                        if (whole(at)) {
                            UNROLL for (int i = 0; i < n; i++)
                                UNROLL for (int j = 0; j < n; j++) lanes(first + (i * width + j) * line) += out[i][j];
                        } else {
                            for (int i = 0; i < n; i++)
                                for (int j = 0; j < n; j++)
                                    if (inside(at.row + i, at.column + j)) lanes(first + (i * width + j) * line) += out[i][j];
                        }
                    });
                    if ((begin + t + 1) % (down * across) == 0) {
                        int64_t i = 0;
                        for (; i + LANES <= size; i += LANES) Kind::store(dx + at.image * size + i, lanes(image + i));
                        Number rest[LANES];
                        Kind::store(rest, lanes(image + i));
                        std::copy(rest, rest + size - i, dx + at.image * size + i);
                        std::fill(&image[0], &image[size], 0.0f);
                    }
                }
            }
        }
    }

    // dw[o][c][h][v] = sum_b,i,j dy[b][i][j][o] x[b][s i + h][s j + v][c]
    //
    // GROUPS of images are summed each into its own dU [f][K][O], and these in their order.
    void weight_gradient(const Number* dy, const Source* x, float* dw) const {
        const int64_t size = n * n * K * O;
        Buffer<float> dU(GROUPS * size);
#pragma omp parallel num_threads(threads)
        {
            Buffer<Number> V(n * n * BLOCK * K), dM(n * n * BLOCK * O);
            Buffer<Item> V_items(BLOCK * K), dM_items(BLOCK * O);
#pragma omp for schedule(static)
            for (int64_t group = 0; group < GROUPS; group++) {
                float* sum = dU + group * size;
                const int64_t first = images * group / GROUPS * down * across, end = images * (group + 1) / GROUPS * down * across;
                if (first == end) std::fill(sum, sum + size, 0.0f);
                for (int64_t begin = first; begin < end; begin += BLOCK) {
                    const int64_t used = std::min(BLOCK, end - begin), items = (used + DEPTH - 1) / DEPTH;
                    for (int64_t t = 0; t < used; t++) {
                        transform_input(x, tile_at(begin + t), V, t, BLOCK);
                        transform_output_gradient(dy, tile_at(begin + t), dM, t, BLOCK);
                    }
                    for (int f = 0; f < n * n; f++) {
                        pack_rows<Kind>(used, K, V + f * BLOCK * K, V_items, 0, K);
                        pack_rows<Kind>(used, O, dM + f * BLOCK * O, dM_items, 0, O);
                        for (int64_t q = 0; q < K; q += ROWS)
                            for (int64_t o = 0; o < O; o += COLUMNS) {
                                float* to = sum + (f * K + q) * O + o;
                                Lanes sums[ROWS][2] = {};
                                if (begin > first)
                                    for (int i = 0; i < ROWS; i++)
                                        for (int j = 0; j < 2; j++) sums[i][j] = lanes(to + i * O + j * LANES);
                                tile<Kind>(items, V_items + q, K, 1, dM_items + o, O, sums);
                                for (int i = 0; i < ROWS; i++)
                                    for (int j = 0; j < 2; j++) lanes(to + i * O + j * LANES) = sums[i][j];
                            }
                    }
                }
            }
#pragma omp for schedule(static)
            for (int64_t o = 0; o < O; o += LANES)
                for (int64_t q = 0; q < K; q++) {
                    Lanes in[n][n], out[r][r];
                    for (int f = 0; f < n * n; f++) {
                        Lanes total = {};
                        for (int64_t group = 0; group < GROUPS; group++) total += lanes(dU + group * size + (f * K + q) * O + o);
                        in[f / n][f % n] = total;
                    }
                    around<r, n>([](int i, int p) { return G(p, i); }, in, out);
                    for (int lane = 0; lane < LANES; lane++)
                        for (int i = 0; i < r; i++)
                            for (int j = 0; j < r; j++) dw[weight(o + lane, q, i, j)] = out[i][j][lane];
                }
        }
    }
};

// Outputs of a tile: as many as leave float32 its digits, and fewer for bfloat16, which has few.
template <class Kind> constexpr int OF_3 = std::is_same_v<Kind, Single> ? 4 : 2;

template <class Kind, class Source, class Do>
void with(const nap_rl::Sizes& sizes, int threads, Do run) {
    if (sizes.k == sizes.s) run(Convolution<Kind, Source, 1, 1>(sizes, threads));
    if (sizes.k == 2 * sizes.s) run(Convolution<Kind, Source, 3, 2>(sizes, threads));
    if (sizes.k == 3 * sizes.s) run(Convolution<Kind, Source, OF_3<Kind>, 3>(sizes, threads));
}

}  // namespace

namespace nap_rl {

#define NAP_RL_CONVOLUTION_OF(Source, Kind)                                                                            \
    void convolution(const Sizes& sizes, const Source* x, const float* w, Kind::Number* y, int threads) {              \
        with<Kind, Source>(sizes, threads, [=](const auto& convolution) { convolution.forward(x, w, y); });            \
    }                                                                                                                  \
    void convolution_weight_gradient(const Sizes& sizes, const Kind::Number* dy, const Source* x, float* dw,           \
                                     int threads) {                                                                    \
        with<Kind, Source>(sizes, threads, [=](const auto& convolution) { convolution.weight_gradient(dy, x, dw); });  \
    }
#define NAP_RL_CONVOLUTION(Kind)                                                                                       \
    NAP_RL_CONVOLUTION_OF(Kind::Number, Kind)                                                                          \
    NAP_RL_CONVOLUTION_OF(uint8_t, Kind)                                                                               \
    void convolution_input_gradient(const Sizes& sizes, const Kind::Number* dy, const float* w, Kind::Number* dx,      \
                                    int threads) {                                                                     \
        with<Kind, Kind::Number>(sizes, threads,                                                                       \
                                 [=](const auto& convolution) { convolution.input_gradient(dy, w, dx); });             \
    }

NAP_RL_FOR_EACH_KIND(NAP_RL_CONVOLUTION)

}  // namespace nap_rl
#endif
