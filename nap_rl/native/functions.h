// What the other files compute and operators.cpp gives to torch; the number of threads comes last.
#pragma once

#include <cstdint>

// For float32 and bfloat16 (uint16_t), where the CPU has registers for them: `Single` and `Half` of lanes.h.
#ifdef __AVX512BF16__
#define NAP_RL_FOR_EACH_KIND(define) define(Single) define(Half)
#else
#define NAP_RL_FOR_EACH_KIND(define) define(Single)
#endif

namespace nap_rl {

struct Sizes {  // of a convolution
    int64_t images, height, width, C, O, k, s;
};

struct Statistics {  // of an image
    float mean, scale;  // scale: 1 / deviation
};

#define NAP_RL_DECLARE_OF(Source, Number)                                                                              \
    void convolution(const Sizes&, const Source* x, const float* w, Number* y, int);                                   \
    void convolution_weight_gradient(const Sizes&, const Number* dy, const Source* x, float* dw, int);
#define NAP_RL_DECLARE(Number)                                                                                         \
    void product(int64_t rows, int64_t n_in, int64_t n_out, const Number* x, const Number* w, Number* y, int);         \
    void input_gradient(int64_t rows, int64_t n_in, int64_t n_out, const Number* dy, const Number* w, Number* dx, int); \
    void weight_gradient(int64_t rows, int64_t n_in, int64_t n_out, const Number* dy, const Number* x, float* dw, int); \
    NAP_RL_DECLARE_OF(Number, Number)                                                                                  \
    NAP_RL_DECLARE_OF(uint8_t, Number)                                                                                 \
    void convolution_input_gradient(const Sizes&, const Number* dy, const float* w, Number* dx, int);                  \
    void norm_relu(int64_t images, int64_t positions, int64_t C, const Number* x, const float* gain,                   \
                   const float* offset, double eps, Number* y, Statistics*, int);                                      \
    void norm_relu_gradient(int64_t images, int64_t positions, int64_t C, const Number* dy, const Number* x,           \
                            const float* gain, const float* offset, const Statistics*, Number* dx, float* dgain,       \
                            float* doffset, int);

NAP_RL_DECLARE(float)
NAP_RL_DECLARE(uint16_t)

void few_rows(int64_t rows, int64_t n_in, int64_t n_out, const float* x, const float* w, float* y, int);

void replay_draw(int64_t blocks, int64_t length, const double* leaf_sums, const double* valid_counts, const float* leaves,
                 const float* valid, double uniform, int64_t batch, const double* u, int64_t* slots, float* probabilities);
void replay_windows(int64_t batch, const int64_t* slots, int64_t length, int64_t stack, int64_t n_steps, int64_t zero_slot,
                    const bool* first, const float* rewards, const float* discounts, float discount, float reward_clip,
                    float* r_t, float* discount_t, int64_t* frames);
void replay_stacks(int64_t batch, int64_t stack, int64_t size, const int64_t* slots, const char* frames, char* stacks, int);
void replay_kept(int64_t batch, const int64_t* slots, const int64_t* serials, const int64_t* serials_now,
                 const float* valid, float max_priority, float* priorities, bool* keep, float* largest);
void replay_update(int64_t batch, const int64_t* slots, const float* priorities, const bool* keep, float exponent,
                   int64_t length, float* leaves, double* leaf_sums);

}  // namespace nap_rl
