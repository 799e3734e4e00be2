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

#define NAP_RL_DECLARE_OF(Source, Number)                                                                              \
    void convolution(const Sizes&, const Source* x, const float* w, Number* y, int);                                   \
    void convolution_weight_gradient(const Sizes&, const Number* dy, const Source* x, float* dw, int);
#define NAP_RL_DECLARE(Number)                                                                                         \
    void product(int64_t rows, int64_t n_in, int64_t n_out, const Number* x, const Number* w, Number* y, int);         \
    void input_gradient(int64_t rows, int64_t n_in, int64_t n_out, const Number* dy, const Number* w, Number* dx, int); \
    void weight_gradient(int64_t rows, int64_t n_in, int64_t n_out, const Number* dy, const Number* x, float* dw, int); \
    NAP_RL_DECLARE_OF(Number, Number)                                                                                  \
    NAP_RL_DECLARE_OF(uint8_t, Number)                                                                                 \
    void convolution_input_gradient(const Sizes&, const Number* dy, const float* w, Number* dx, int);

NAP_RL_DECLARE(float)
NAP_RL_DECLARE(uint16_t)

void few_rows(int64_t rows, int64_t n_in, int64_t n_out, const float* x, const float* w, float* y, int);

}  // namespace nap_rl
