// The schemas of all ops of the extension, ``torch.ops.fastgan_cuda.*``, and the bindings of csrc/linear_act.cu.
//
// The ops know nothing of autograd, autocast or tracing, and check no more than would crash: fastgan/ops/extension.py
// calls them, below its own autograd functions, on operands that it has looked at.

#include "bindings.h"

#include <dlfcn.h>

using torch::headeronly::ScalarType;

namespace fastgan {

// CUDA builds of torch alone have the function, so that it is looked up: a null stream would break graph captures.
void* stream_of(const Tensor& operand) {
#ifdef FASTGAN_HOST
    return nullptr;
#else
    using Current = AOTITorchError (*)(int32_t, void**);
    static const Current current = [] {
        const char* name = "aoti_torch_get_current_cuda_stream";
        void* found = dlsym(RTLD_DEFAULT, name);
        if (found == nullptr)
            if (void* torch_cuda = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD)) found = dlsym(torch_cuda, name);
        return reinterpret_cast<Current>(found);
    }();
    STD_TORCH_CHECK(current != nullptr, "this build of torch has no CUDA streams");
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(current(operand.get_device_index(), &stream));
    return stream;
#endif
}

Tensor empty(const Tensor& operand, std::initializer_list<int64_t> sizes) {
    int64_t strides[8], step = 1;
    for (size_t i = sizes.size(); i-- > 0; step *= sizes.begin()[i]) strides[i] = step;
    int32_t dtype, device;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(operand.get(), &dtype));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(operand.get(), &device));
    AtenTensorHandle made;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        static_cast<int64_t>(sizes.size()), sizes.begin(), strides, dtype, device, operand.get_device_index(), &made));
    return Tensor(made);
}

}  // namespace fastgan

extern "C" {
int fastgan_linear_act_forward(
    int64_t half, const void* x, int64_t x_m, int64_t x_k, const void* w, int64_t w_n, int64_t w_k, const void* bias,
    void* y, int64_t M, int64_t N, int64_t K, int64_t activation, float slope, void* stream);
int fastgan_linear_act_backward(
    int64_t half, const void* gy, int64_t g_m, int64_t g_n, const void* saved, const void* x, int64_t x_m, int64_t x_k,
    const void* w, int64_t w_n, int64_t w_k, void* gx, void* gw, int64_t wide_w, void* gb, int64_t wide_b, int64_t M,
    int64_t N, int64_t K, int64_t activation, float slope, void* stream);
}

namespace {

using namespace fastgan;

struct Matrix {
    void* data = nullptr;
    int64_t strides[2] = {0, 0};

    Matrix(const Tensor& tensor) : data(tensor.data_ptr()) {
        const auto found = tensor.strides();
        STD_TORCH_CHECK(found.size() == 2, "linear_act takes matrices");
        strides[0] = found[0], strides[1] = found[1];
    }
    Matrix(const MaybeTensor& tensor) {
        if (tensor) *this = Matrix(*tensor);
    }
};

bool is_half(const Tensor& operand) {
    const ScalarType dtype = operand.scalar_type();
    STD_TORCH_CHECK(dtype == ScalarType::Half || dtype == ScalarType::BFloat16, "linear_act takes bf16 and fp16");
    return dtype == ScalarType::Half;
}

bool is_wide(const MaybeTensor& gradient) { return gradient && gradient->scalar_type() == ScalarType::Float; }

// y [M, N] = phi(x [M, K] w [N, K]^T + bias [N]); bias contiguous.
Tensor linear_act(Tensor x, Tensor w, MaybeTensor bias, int64_t activation, double slope) {
    const int64_t M = x.size(0), K = x.size(1), N = w.size(0);
    STD_TORCH_CHECK(w.size(1) == K, "linear_act: x and weight do not fit");
    Tensor y = fastgan::empty(x, {M, N});
    const Matrix at(x), weight(w);
    check(fastgan_linear_act_forward(
              is_half(x), at.data, at.strides[0], at.strides[1], weight.data, weight.strides[0], weight.strides[1],
              data_of(bias), y.data_ptr(), M, N, K, activation, static_cast<float>(slope), stream_of(x)),
          "linear_act");
    return y;
}

// gx [M, K] where w is given, else nothing; writes gw [N, K] and gb [N], contiguous, where they are given, x with gw.
Tensor linear_act_backward(
    Tensor gy, MaybeTensor saved, MaybeTensor x, MaybeTensor w, MaybeTensor gw, MaybeTensor gb, int64_t activation,
    double slope) {
    STD_TORCH_CHECK(x.has_value() == gw.has_value() && (x || !gb), "linear_act: gw and gb are formed with x");
    const int64_t M = gy.size(0), N = gy.size(1), K = x ? x->size(1) : w ? w->size(1) : 0;
    Tensor gx = fastgan::empty(gy, {w ? M : 0, K});
    const Matrix grad(gy), input(x), weight(w);
    check(fastgan_linear_act_backward(
              is_half(gy), grad.data, grad.strides[0], grad.strides[1], data_of(saved), input.data, input.strides[0],
              input.strides[1], weight.data, weight.strides[0], weight.strides[1], w ? gx.data_ptr() : nullptr,
              data_of(gw), is_wide(gw), data_of(gb), is_wide(gb), M, N, K, activation, static_cast<float>(slope),
              stream_of(gy)),
          "linear_act_backward");
    return gx;
}

}  // namespace

STABLE_TORCH_LIBRARY(fastgan_cuda, m) {
    m.def("linear_act(Tensor x, Tensor w, Tensor? bias, int activation, float slope) -> Tensor");
    m.def(
        "linear_act_backward(Tensor gy, Tensor? saved, Tensor? x, Tensor? w, Tensor(a!)? gw, Tensor(b!)? gb, "
        "int activation, float slope) -> Tensor");
    m.def(
        "mlp_step(Tensor phases, Tensor params, Tensor slots, Tensor numbers, Tensor(a!) rates, Tensor(b!) barrier, "
        "int panel_rows, int blocks, int iterations) -> ()");
    m.def(
        "mlp_step_members(Tensor(a!) programs, int phase_fields, int param_fields, int panel_rows, int blocks, "
        "int iterations) -> ()");
}

FASTGAN_IMPL(m) {
    m.impl("linear_act", TORCH_BOX(&linear_act));
    m.impl("linear_act_backward", TORCH_BOX(&linear_act_backward));
}
