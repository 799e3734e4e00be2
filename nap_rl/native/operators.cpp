// The functions of functions.h as the torch operators that the Python files beside this one define, on the CPU.
//
// An update calls dozens of them between passes over megabytes, which push Python's code and data out of the caches: a
// call through Python costs as much as a small function.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "functions.h"

namespace {

using at::MemoryFormat;
using at::ScalarType;
using at::Tensor;

// `run` with a number of this type.
template <class Run>
void with_number(ScalarType type, Run run) {
#ifdef __AVX512F__
    if (type == at::kFloat) return run(float());
#endif
#ifdef __AVX512BF16__
    if (type == at::kBFloat16) return run(uint16_t());
#endif
    TORCH_CHECK(false, "no native code for ", type, " on this CPU");
}

template <class Number>
Number* at_of(const Tensor& tensor) {
    return reinterpret_cast<Number*>(tensor.data_ptr());
}
float* floats(const Tensor& tensor) {
    TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.is_contiguous(), "expected contiguous float32");
    return at_of<float>(tensor);
}

Tensor last(const Tensor& images) { return images.contiguous(MemoryFormat::ChannelsLast); }
bool are_pixels(const Tensor& images) { return images.scalar_type() == at::kByte; }
Tensor laid(const Tensor& images) { return are_pixels(images) ? images.contiguous() : last(images); }

bool takes_product(int64_t n_in, int64_t n_out) { return n_in % 32 == 0 && n_out % 8 == 0; }
bool takes_convolution(int64_t C, int64_t O, int64_t k, int64_t s, bool pixels) {
    return (k == s || k == 2 * s || k == 3 * s) && (!pixels || s % 4 == 0) && O % 32 == 0 && s * C % 16 == 0 &&
           s * s * C % 32 == 0;
}

void check_product(const Tensor& rows, int64_t columns, const Tensor& weight, ScalarType type) {
    TORCH_CHECK(rows.dim() == 2 && weight.dim() == 2 && rows.size(1) == columns && rows.scalar_type() == type &&
                    takes_product(weight.size(1), weight.size(0)),
                "no native product of ", rows.sizes(), " ", rows.scalar_type(), " and ", weight.sizes(), " ", type);
}

Tensor product(const Tensor& of, const Tensor& by) {
    const Tensor x = of.contiguous(), weight = by.contiguous();
    check_product(x, weight.size(1), weight, weight.scalar_type());
    const Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
    with_number(x.scalar_type(), [&](auto number) {
        typedef decltype(number) N;
        nap_rl::product(x.size(0), x.size(1), weight.size(0), at_of<N>(x), at_of<N>(weight), at_of<N>(y),
                        at::get_num_threads());
    });
    return y;
}

Tensor few_rows(const Tensor& of, const Tensor& by) {
    const Tensor x = of.contiguous(), weight = by.contiguous();
    TORCH_CHECK(x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1), "no product of ", x.sizes(), " and ",
                weight.sizes());
    const Tensor y = at::empty({x.size(0), weight.size(0)}, x.options());
    nap_rl::few_rows(x.size(0), x.size(1), weight.size(0), floats(x), floats(weight), floats(y), at::get_num_threads());
    return y;
}

Tensor input_gradient(const Tensor& of, const Tensor& by) {
    const Tensor dy = of.contiguous(), weight = by.contiguous();
    check_product(dy, weight.size(0), weight, weight.scalar_type());
    const Tensor dx = at::empty({dy.size(0), weight.size(1)}, dy.options());
    with_number(dy.scalar_type(), [&](auto number) {
        typedef decltype(number) N;
        nap_rl::input_gradient(dy.size(0), weight.size(1), weight.size(0), at_of<N>(dy), at_of<N>(weight), at_of<N>(dx),
                               at::get_num_threads());
    });
    return dx;
}

Tensor weight_gradient(const Tensor& of, const Tensor& by) {
    const Tensor dy = of.contiguous(), x = by.contiguous();
    TORCH_CHECK(dy.dim() == 2 && x.dim() == 2 && dy.size(0) == x.size(0), "no gradient of ", dy.sizes(), " and ", x.sizes());
    const Tensor dw = at::empty({dy.size(1), x.size(1)}, x.options().dtype(at::kFloat));
    check_product(dy, dw.size(0), dw, x.scalar_type());
    with_number(x.scalar_type(), [&](auto number) {
        typedef decltype(number) N;
        nap_rl::weight_gradient(x.size(0), x.size(1), dy.size(1), at_of<N>(dy), at_of<N>(x), at_of<float>(dw),
                                at::get_num_threads());
    });
    return dw;
}

nap_rl::Sizes sizes_of(const Tensor& x, const Tensor& y, const Tensor& weight, int64_t stride) {
    TORCH_CHECK(x.dim() == 4 && y.dim() == 4 && weight.dim() == 4, "expected images and kernels of 4 dimensions");
    const nap_rl::Sizes sizes = {x.size(0), x.size(2), x.size(3), x.size(1), weight.size(0), weight.size(2), stride};
    const bool fits = weight.size(1) == sizes.C && weight.size(3) == sizes.k && y.size(0) == sizes.images &&
                      y.size(1) == sizes.O && y.size(2) == (sizes.height - sizes.k) / stride + 1 &&
                      y.size(3) == (sizes.width - sizes.k) / stride + 1;
    TORCH_CHECK(fits && takes_convolution(sizes.C, sizes.O, sizes.k, stride, are_pixels(x)) &&
                    (are_pixels(x) || x.scalar_type() == y.scalar_type()),
                "no native convolution of ", x.sizes(), " ", x.scalar_type(), " by ", weight.sizes(), ", stride ", stride,
                ", to ", y.sizes(), " ", y.scalar_type());
    return sizes;
}

Tensor convolution(const Tensor& of, const Tensor& by, int64_t stride, ScalarType type) {
    const Tensor x = laid(of), weight = by.contiguous();
    const int64_t k = weight.size(2), height = (x.size(2) - k) / stride + 1, width = (x.size(3) - k) / stride + 1;
    const Tensor y =
        at::empty({x.size(0), weight.size(0), height, width}, x.options().dtype(type), MemoryFormat::ChannelsLast);
    const nap_rl::Sizes sizes = sizes_of(x, y, weight, stride);
    with_number(type, [&](auto number) {
        typedef decltype(number) N;
        const auto run = [&](auto* from) {
            nap_rl::convolution(sizes, from, floats(weight), at_of<N>(y), at::get_num_threads());
        };
        are_pixels(x) ? run(at_of<uint8_t>(x)) : run(at_of<N>(x));
    });
    return y;
}

Tensor convolution_input_gradient(const Tensor& of, const Tensor& by, int64_t height, int64_t width, int64_t stride) {
    const Tensor dy = last(of), weight = by.contiguous();
    const Tensor dx =
        at::empty({dy.size(0), weight.size(1), height, width}, dy.options(), MemoryFormat::ChannelsLast);
    const nap_rl::Sizes sizes = sizes_of(dx, dy, weight, stride);
    with_number(dy.scalar_type(), [&](auto number) {
        typedef decltype(number) N;
        nap_rl::convolution_input_gradient(sizes, at_of<N>(dy), floats(weight), at_of<N>(dx), at::get_num_threads());
    });
    return dx;
}

Tensor convolution_weight_gradient(const Tensor& of, const Tensor& by, int64_t kernel, int64_t stride) {
    const Tensor dy = last(of), x = laid(by);
    const Tensor dw = at::empty({dy.size(1), x.size(1), kernel, kernel}, x.options().dtype(at::kFloat));
    const nap_rl::Sizes sizes = sizes_of(x, dy, dw, stride);
    with_number(dy.scalar_type(), [&](auto number) {
        typedef decltype(number) N;
        const auto run = [&](auto* from) {
            nap_rl::convolution_weight_gradient(sizes, at_of<N>(dy), from, floats(dw), at::get_num_threads());
        };
        are_pixels(x) ? run(at_of<uint8_t>(x)) : run(at_of<N>(x));
    });
    return dw;
}

bool has_type(bool bfloat16) {
#ifdef __AVX512BF16__
    return true;
#elif defined(__AVX512F__)
    return !bfloat16;
#else
    return false;
#endif
}

}  // namespace

TORCH_LIBRARY_IMPL(nap_rl, CPU, operators) {
    operators.impl("product", product);
    operators.impl("few_rows", few_rows);
    operators.impl("input_gradient", input_gradient);
    operators.impl("weight_gradient", weight_gradient);
    operators.impl("convolution", convolution);
    operators.impl("convolution_input_gradient", convolution_input_gradient);
    operators.impl("convolution_weight_gradient", convolution_weight_gradient);
}

extern "C" {  // whether there is code for it, in float32 or bfloat16, on this CPU

bool has_product(int64_t n_in, int64_t n_out, bool bfloat16) { return has_type(bfloat16) && takes_product(n_in, n_out); }

bool has_convolution(int64_t channels, int64_t outputs, int64_t kernel, int64_t stride, bool pixels, bool bfloat16) {
    return has_type(bfloat16) && takes_convolution(channels, outputs, kernel, stride, pixels);
}
}
