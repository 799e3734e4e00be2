// Sums in the registers of AVX-512: 16 floats are a register's lanes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include <omp.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int ROWS = 8, LANES = 16, COLUMNS = 2 * LANES;
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));

inline const Lanes& lanes(const float* at) { return *reinterpret_cast<const Lanes*>(at); }
inline Lanes& lanes(float* at) { return *reinterpret_cast<Lanes*>(at); }

// What is multiplied at once along a sum: one float, or two bfloat16.
struct Single {
    typedef float Number, Item;
    typedef Lanes Items;
    static constexpr int DEPTH = 1;

    static Items items(const Item* at) { return lanes(at); }
    static void add(Lanes& sum, Item a, const Items& b) { sum += a * b; }
    static Item pack(const Number* of) { return of[0]; }
    static Lanes load(const Number* at) { return lanes(at); }
    static void store(Number* at, const Lanes& values) { lanes(at) = values; }
    static void columns(const Number* at, int64_t, Items of[2]) {
        for (int j = 0; j < 2; j++) of[j] = lanes(at + j * LANES);
    }
    static void in_order(Lanes[2]) {}
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
    static Item pack(const Number* of) { return of[0] | Item(of[1]) << 16; }
    static Lanes load(const Number* at) {
        return (Lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)at)), 16);
    }
    static void store(Number* at, const Lanes& values) {
        _mm256_storeu_si256((__m256i*)at, (__m256i)_mm512_cvtneps_pbh((__m512)values));
    }
    // COLUMNS of DEPTH rows, `next` numbers apart, packed; where registers are four parts of eight columns, the first has
    // four of each and the second the other four, until `in_order`.
    static void columns(const Number* at, int64_t next, Items of[2]) {
        const __m512i first = _mm512_loadu_si512(at), second = _mm512_loadu_si512(at + next);
        of[0] = (Items)_mm512_unpacklo_epi16(first, second);
        of[1] = (Items)_mm512_unpackhi_epi16(first, second);
    }
    static void in_order(Lanes sums[2]) {
        const __m512d a = (__m512d)sums[0], b = (__m512d)sums[1];  // by two floats
        sums[0] = (Lanes)_mm512_permutex2var_pd(a, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), b);
        sums[1] = (Lanes)_mm512_permutex2var_pd(a, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), b);
    }
};
#endif

// sums[i][j] += sum_t a[t * a_t + i * a_i] b[t][j], ROWS x COLUMNS, of which `load` gives two registers for a t.
template <class Kind, class Load>
inline __attribute__((always_inline)) void tile_of(int64_t length, const typename Kind::Item* a, int64_t a_t, int64_t a_i,
                                                   Load load, Lanes sums[ROWS][2]) {
    for (int64_t t = 0; t < length; t++) {
        typename Kind::Items b[2];
        load(t, b);
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < 2; j++) Kind::add(sums[i][j], a[t * a_t + i * a_i], b[j]);
    }
}

// The same, of b[t * b_t + j].
template <class Kind>
inline __attribute__((always_inline)) void tile(int64_t length, const typename Kind::Item* a, int64_t a_t, int64_t a_i,
                                                const typename Kind::Item* b, int64_t b_t, Lanes sums[ROWS][2]) {
    const auto load = [=](int64_t t, typename Kind::Items of[2]) __attribute__((always_inline)) {
        for (int j = 0; j < 2; j++) of[j] = Kind::items(b + t * b_t + j * LANES);
    };
    tile_of<Kind>(length, a, a_t, a_i, load, sums);
}

// Rows as they are summed over: x [rows][n] -> [items][n], where zeros fill the last item; columns [begin, end) of it.
template <class Kind>
void pack_rows(int64_t rows, int64_t n, const typename Kind::Number* x, typename Kind::Item* to, int64_t begin,
               int64_t end) {
    for (int64_t b = 0; b < rows; b += Kind::DEPTH)
        for (int64_t j = begin; j < end; j++) {
            typename Kind::Number of[Kind::DEPTH];
            for (int d = 0; d < Kind::DEPTH; d++) of[d] = b + d < rows ? x[(b + d) * n + j] : typename Kind::Number(0);
            to[b / Kind::DEPTH * n + j] = Kind::pack(of);
        }
}

struct Share {  // of a thread: [begin, end), in whole steps
    int64_t begin, end;

    Share(int64_t size, int64_t step) {
        const int64_t steps = (size + step - 1) / step, threads = omp_get_num_threads(), me = omp_get_thread_num();
        begin = std::min(steps * me / threads * step, size);
        end = std::min(steps * (me + 1) / threads * step, size);
    }
};

// Uninitialised numbers that begin with a line of the cache.
template <class Number>
class Buffer {
    struct alignas(64) Line { char bytes[64]; };
    std::unique_ptr<Line[]> lines;

  public:
    explicit Buffer(int64_t size) : lines(new Line[size * sizeof(Number) / sizeof(Line) + 1]) {}
    operator Number*() { return reinterpret_cast<Number*>(lines.get()); }
};

}  // namespace
