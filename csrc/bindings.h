// What every binding needs of PyTorch, by its stable ABI: one library then serves torch 2.11 and later, with and
// without CUDA, and any Python. A kernel's own binding registers FASTGAN_IMPL(m) { m.impl("name",
// TORCH_BOX(&function)); }.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#ifndef FASTGAN_KEY
#define FASTGAN_KEY CUDA  // CPU where the kernels are compiled for the host, under test
#endif
#define FASTGAN_IMPL(m) STABLE_TORCH_LIBRARY_IMPL(fastgan_cuda, FASTGAN_KEY, m)

extern "C" const char* fastgan_error_text(int code);

namespace fastgan {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// The current stream of the tensor's device, as a cudaStream_t.
void* stream_of(const Tensor& operand);

// Contiguous memory of a type on the operand's device.
Tensor empty(const Tensor& operand, std::initializer_list<int64_t> sizes);

inline void* data_of(const MaybeTensor& tensor) { return tensor ? tensor->data_ptr() : nullptr; }

inline void check(int code, const char* launch) {
    STD_TORCH_CHECK(code == 0, launch, ": ", fastgan_error_text(code));
}

}  // namespace fastgan
