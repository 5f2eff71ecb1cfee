// A small linear layer with its activation: forward in one launch, all of backward in another.
//
//     y  [M, N] = phi(x [M, K] W [N, K]^T + b [N])
//     g  [M, N] = gy * phi'(y), rounded to the operands' type
//     gx [M, K] = g W      gw [N, K] = g^T x      gb [N] = sum of g over M
//
// Contract: bf16 or fp16, one type for all operands; x, W, gy and y by any strides of whole elements, outputs
// contiguous; gw and gb in the operands' type or fp32. Any of M, N, K may be 0, for outputs that have elements. phi by
// its number in activation.cuh, a leaky slope >= 0. Products accumulate in fp32 and are rounded once; sums have a fixed
// order, so the same operands give the same bits. Addresses are int64. Nothing is allocated and no shared state is
// kept.
//
// csrc/linear_act_tiles.cuh says how operands are read and multiplied. Where the sum is long, 2, 4 or 8 warps of a
// block take every 2nd, 4th or 8th chunk and add up in shared memory. Backward's two products are two ranges of blocks
// of one launch. Operands that cannot be read by 16 bytes are read one by one, by the same code.
//
// Work, in elements and multiply-adds: a warp makes 32 x 32 outputs forward and 32 x 64 backward. Forward reads MNK /
// 16, mostly from L2, writes MN, and has MNK products. Backward reads MNK (3 + 3) / 64 and g's mask with it, writes MK
// + NK + N, and has 2 MNK products.
//
// Registers a thread, the most on sm_80, 90a and 100a (CUDA 13.0), where operands are read one by one; by 16 bytes
// forward takes 135 and backward 189. One block of 8 warps may have 255; nothing is spilled:
//     forward     174
//     backward    246

#include "launch.cuh"
#include "linear_act_tiles.cuh"

namespace {

template <typename T>
struct Forward {
    Factor<T> x, w;
    const T* bias;
    T* y;
    int64_t terms;
    int activation, parts;
    float slope;
};

template <typename T, bool VECTORS>
__global__ void __launch_bounds__(32 * WARPS, 1) linear_act_forward(const __grid_constant__ Forward<T> all) {
    const int64_t M = all.x.rows, N = all.w.rows;
    const Place at = place_of(blockIdx.x, all.parts, M, N, FORWARD);
    float sum[FORWARD / 4 + 1][4] = {};
    if (at.there)
        multiply<VECTORS, true, true, FORWARD, false>(
            sum, all.x, all.w, at.row, at.column, all.terms, at.part, all.parts);
    add_up(sum, all.parts);
    if (!at.there || at.part != 0) return;
    const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
#pragma unroll
    for (int j = 0; j < FORWARD / 8; ++j) {
        const int64_t n = at.column + 8 * j + 2 * pair;
        float bias[2] = {0.0f, 0.0f};
#pragma unroll
        for (int e = 0; e < 2; ++e)
            if (all.bias != nullptr && n + e < N) bias[e] = to_float(all.bias[n + e]);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int64_t m = at.row + 8 * r + group;
            float v[2];
#pragma unroll
            for (int e = 0; e < 2; ++e)
                v[e] = activate(sum[r / 2 * (FORWARD / 8) + j][r % 2 * 2 + e] + bias[e], all.activation, all.slope);
            store<VECTORS, 2, T>(all.y, false, m * N + n, v, m < M ? N - n : 0);
        }
    }
}

template <typename T>
struct Backward {
    Factor<T> g, w;    // of gx: rows m and k, terms n
    Factor<T> gt, xt;  // of gw: rows n and k, terms m
    T* gx;             // null: not asked for
    void *gw, *gb;     // likewise; gb only with gw
    bool wide_w, wide_b;
    int64_t blocks_of_gx;
    int parts_of_gx, parts_of_gw;
};

template <typename T, bool VECTORS>
__global__ void __launch_bounds__(32 * WARPS, 1) linear_act_backward(const __grid_constant__ Backward<T> all) {
    const int64_t M = all.g.rows, N = all.gt.rows, K = all.xt.rows;
    const bool to_input = blockIdx.x < all.blocks_of_gx;
    const int parts = to_input ? all.parts_of_gx : all.parts_of_gw;
    const int64_t rows = to_input ? M : N, block = blockIdx.x - (to_input ? 0 : all.blocks_of_gx);
    const Place at = place_of(block, parts, rows, K > 0 ? K : 1, BACKWARD);
    float sum[BACKWARD / 4 + 1][4] = {};
    if (at.there && to_input)
        multiply<VECTORS, true, false, BACKWARD, true>(sum, all.g, all.w, at.row, at.column, N, at.part, parts);
    else if (at.there)
        multiply<VECTORS, false, false, BACKWARD, true>(sum, all.gt, all.xt, at.row, at.column, M, at.part, parts);
    add_up(sum, parts);
    if (!at.there || at.part != 0) return;
    const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
        const int64_t row = at.row + (to_input ? 8 * r + group : 4 * group + r);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const int64_t k = at.column + 8 * (2 * pair + e);
            float v[8];
#pragma unroll
            for (int j = 0; j < 8; ++j) v[j] = sum[r / 2 * 8 + j][r % 2 * 2 + e];
            void* out = to_input ? static_cast<void*>(all.gx) : all.gw;
            store<VECTORS, 8, T>(out, !to_input && all.wide_w, row * K + k, v, row < rows ? K - k : 0);
        }
    }
    if (to_input || all.gb == nullptr || at.column != 0) return;
    float (&bias)[4] = sum[BACKWARD / 4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        bias[i] += __shfl_xor_sync(~0u, bias[i], 1);
        bias[i] += __shfl_xor_sync(~0u, bias[i], 2);
    }
    const int64_t n = at.row + 4 * group;
    if (pair == 0) store<VECTORS, 4, T>(all.gb, all.wide_b, n, bias, N - n);
}

// How many warps share a tile's sum, and how many blocks a product then takes.
int parts_for(int64_t terms) { return terms > 7 * CHUNK ? 8 : terms > 3 * CHUNK ? 4 : terms > CHUNK ? 2 : 1; }

int64_t blocks_for(int64_t rows, int64_t columns, int width, int parts) {
    const int64_t tiles = (rows + ROWS - 1) / ROWS * ((columns + width - 1) / width), each = WARPS / parts;
    return (tiles + each - 1) / each;
}

bool by_vectors(const void* p, int64_t row, int64_t term) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && term == 1 && row % 8 == 0;
}

template <typename T>
cudaError_t forward(
    const void* x, int64_t x_m, int64_t x_k, const void* w, int64_t w_n, int64_t w_k, const void* bias, void* y,
    int64_t M, int64_t N, int64_t K, int activation, float slope, cudaStream_t stream) {
    Forward<T> all{};
    all.x = {static_cast<const T*>(x), x_m, x_k, M};
    all.w = {static_cast<const T*>(w), w_n, w_k, N};
    all.bias = static_cast<const T*>(bias), all.y = static_cast<T*>(y);
    all.terms = K, all.activation = activation, all.slope = slope, all.parts = parts_for(K);
    const int64_t blocks = M * N == 0 ? 0 : blocks_for(M, N, FORWARD, all.parts);
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    const Where where{dim3(static_cast<unsigned>(blocks)), dim3(32 * WARPS), 0, stream};
    const bool vectors = (N | K) % 8 == 0 && by_vectors(x, x_m, x_k) && by_vectors(w, w_n, w_k) && by_vectors(y, 0, 1);
    return vectors ? launch(linear_act_forward<T, true>, where, all) : launch(linear_act_forward<T, false>, where, all);
}

template <typename T>
cudaError_t backward(
    const void* gy, int64_t g_m, int64_t g_n, const void* saved, const void* x, int64_t x_m, int64_t x_k, const void* w,
    int64_t w_n, int64_t w_k, void* gx, void* gw, int wide_w, void* gb, int wide_b, int64_t M, int64_t N, int64_t K,
    int activation, float slope, cudaStream_t stream) {
    Backward<T> all{};
    all.g = {static_cast<const T*>(gy), g_m, g_n, M, static_cast<const T*>(saved), N, 1, activation, slope};
    all.gt = {static_cast<const T*>(gy), g_n, g_m, N, static_cast<const T*>(saved), 1, N, activation, slope};
    all.w = {static_cast<const T*>(w), w_k, w_n, K};
    all.xt = {static_cast<const T*>(x), x_k, x_m, K};
    all.gx = static_cast<T*>(gx), all.gw = gw, all.gb = gb, all.wide_w = wide_w, all.wide_b = wide_b;
    all.parts_of_gx = parts_for(N), all.parts_of_gw = parts_for(M);
    all.blocks_of_gx = gx == nullptr ? 0 : blocks_for(M, K, BACKWARD, all.parts_of_gx);
    const int64_t columns = K == 0 && gb != nullptr ? 1 : K;  // a bias has a gradient even without inputs
    const int64_t blocks = all.blocks_of_gx + (gw == nullptr ? 0 : blocks_for(N, columns, BACKWARD, all.parts_of_gw));
    if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
    const Where where{dim3(static_cast<unsigned>(blocks)), dim3(32 * WARPS), 0, stream};
    const bool all_there =
        (N | K) % 8 == 0 && by_vectors(gy, g_m, g_n) && by_vectors(saved, 0, 1) && by_vectors(gb, 0, 1);
    const bool vectors = all_there && (gx == nullptr || (by_vectors(w, w_n, w_k) && by_vectors(gx, 0, 1))) &&
                         (gw == nullptr || (by_vectors(x, x_m, x_k) && by_vectors(gw, 0, 1)));
    return vectors ? launch(linear_act_backward<T, true>, where, all)
                   : launch(linear_act_backward<T, false>, where, all);
}

}  // namespace

// ``half``: fp16 rather than bf16. Sizes and strides in elements; ``bias``, ``saved`` may be null, and of the gradients
// those that nobody asked for, with what they alone need.
extern "C" int fastgan_linear_act_forward(
    int64_t half, const void* x, int64_t x_m, int64_t x_k, const void* w, int64_t w_n, int64_t w_k, const void* bias,
    void* y, int64_t M, int64_t N, int64_t K, int64_t activation, float slope, void* stream) {
    const auto run = half ? forward<fp16> : forward<bf16>;
    return run(x, x_m, x_k, w, w_n, w_k, bias, y, M, N, K, static_cast<int>(activation), slope,
               static_cast<cudaStream_t>(stream));
}

extern "C" int fastgan_linear_act_backward(
    int64_t half, const void* gy, int64_t g_m, int64_t g_n, const void* saved, const void* x, int64_t x_m, int64_t x_k,
    const void* w, int64_t w_n, int64_t w_k, void* gx, void* gw, int64_t wide_w, void* gb, int64_t wide_b, int64_t M,
    int64_t N, int64_t K, int64_t activation, float slope, void* stream) {
    const auto run = half ? backward<fp16> : backward<bf16>;
    return run(gy, g_m, g_n, saved, x, x_m, x_k, w, w_n, w_k, gx, gw, wide_w != 0, gb, wide_b != 0, M, N, K,
               static_cast<int>(activation), slope, static_cast<cudaStream_t>(stream));
}
