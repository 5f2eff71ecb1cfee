// The bindings of csrc/mlp_step.cu. Tables say by addresses what an iteration moves: whoever launches keeps that alive.

#include "bindings.h"

extern "C" {
int fastgan_mlp_step(
    const int64_t* phases, const int64_t* params, const int64_t* slots, const int64_t* numbers, float* rates,
    void* base, unsigned* barrier, int64_t count, int64_t phase_fields, int64_t param_fields, int64_t panel_rows,
    int64_t blocks, int64_t iterations, void* stream);
int fastgan_mlp_step_members(
    const int64_t* programs, int64_t members, int64_t program_fields, int64_t phase_fields, int64_t param_fields,
    int64_t panel_rows, int64_t blocks, int64_t iterations, void* stream);
}

namespace {

using namespace fastgan;
using torch::headeronly::ScalarType;

const int64_t* integers(const Tensor& tensor) {
    STD_TORCH_CHECK(
        tensor.scalar_type() == ScalarType::Long && tensor.is_contiguous(), "mlp_step takes dense tables of int64");
    return static_cast<const int64_t*>(tensor.data_ptr());
}

// Iterations of one GAN by the whole grid; ``blocks`` 0: as many as are resident together. ``barrier``: 0 once, int32.
void mlp_step(
    Tensor phases, Tensor params, Tensor slots, Tensor numbers, Tensor rates, Tensor barrier, int64_t panel_rows,
    int64_t blocks, int64_t iterations) {
    STD_TORCH_CHECK(phases.dim() == 2 && params.dim() == 2, "mlp_step: tables have rows");
    STD_TORCH_CHECK(
        rates.scalar_type() == ScalarType::Float && barrier.scalar_type() == ScalarType::Int && barrier.numel() == 1,
        "mlp_step takes rates in fp32 and a barrier of one int32");
    check(fastgan_mlp_step(
              integers(phases), integers(params), integers(slots), integers(numbers),
              static_cast<float*>(rates.data_ptr()), nullptr, static_cast<unsigned*>(barrier.data_ptr()),
              phases.size(0), phases.size(1), params.size(1), panel_rows, blocks, iterations, stream_of(phases)),
          "mlp_step");
}

// Iterations of many GANs, each by a block of its own; ``programs`` [members, 7] as csrc/mlp_step_table.cuh has them.
void mlp_step_members(
    Tensor programs, int64_t phase_fields, int64_t param_fields, int64_t panel_rows, int64_t blocks,
    int64_t iterations) {
    STD_TORCH_CHECK(programs.dim() == 2, "mlp_step_members: programs have rows");
    check(fastgan_mlp_step_members(
              integers(programs), programs.size(0), programs.size(1), phase_fields, param_fields, panel_rows, blocks,
              iterations, stream_of(programs)),
          "mlp_step_members");
}

}  // namespace

FASTGAN_IMPL(m) {
    m.impl("mlp_step", TORCH_BOX(&mlp_step));
    m.impl("mlp_step_members", TORCH_BOX(&mlp_step_members));
}
