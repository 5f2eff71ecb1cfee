// A small linear layer with its activation: forward in one launch, all of backward in another.
//
//     y  [M, N] = phi(x [M, K] W [N, K]^T + b [N])
//     g  [M, N] = gy * phi'(y), rounded to the operands' type
//     gx [M, K] = g W      gw [N, K] = g^T x      gb [N] = sum of g over M
//
// Contract: bf16 or fp16, one type for all operands; x, W, gy and y by any strides of whole elements, outputs contiguous;
// gw and gb in the operands' type or fp32. Any of M, N, K may be 0, for outputs that have elements. phi by its number in
// activation.cuh, a leaky slope >= 0. Products accumulate in fp32 and are rounded once; sums have a fixed order, so the
// same operands give the same bits. Addresses are int64. Nothing is allocated and no shared state is kept.
//
// Made for batches that leave a card mostly idle, where what counts is how soon the last load returns. One warp makes a
// tile and needs no shared memory for its operands: the order in which a sum runs is free, and so is the order of a
// tile's columns, so each lane reads 16 bytes at a time and hands them to the matrix instruction as they lie. In a chunk
// of 32 terms, step s of 2, the lanes with pair p = lane % 4 hold the terms 8 p + 4 s + {0, 1, 2, 3}:
//
//     operand with its terms side by side (x, W forward; gy backward): 16 bytes are 8 terms of one row, for both steps
//     operand with its terms apart (W for gx; gy and x for gw): 16 bytes are 8 rows (of the product) of one term
//
// Where the sum is long, 2, 4 or 8 warps of a block take every 2nd, 4th or 8th chunk and add up in shared memory.
// Backward's two products are two ranges of blocks of one launch. Operands that cannot be read by 16 bytes are read one
// by one, by the same code.
//
// Work, in elements and multiply-adds: a warp makes 32 x 32 outputs forward and 32 x 64 backward. Forward reads MNK / 16,
// mostly from L2, writes MN, and has MNK products. Backward reads MNK (3 + 3) / 64 and g's mask with it, writes MK + NK + N,
// and has 2 MNK products.
//
// Registers a thread, the most on sm_80, 90a and 100a (CUDA 13.0), where operands are read one by one; by 16 bytes forward
// takes 135 and backward 189. One block of 8 warps may have 255; nothing is spilled:
//     forward     174
//     backward    246

#include "activation.cuh"
#include "launch.cuh"
#include "matrix.cuh"

namespace {

constexpr int WARPS = 8;         // of a block
constexpr int ROWS = 32;         // of a warp's tile
constexpr int CHUNK = 32;        // terms that a warp takes at a time
constexpr int FORWARD = 32, BACKWARD = 64;  // columns of a warp's tile

// A factor of a product: element (row, term) lies at row * rows + term * terms. With ``saved`` it is an incoming gradient
// that has yet to go through phi'.
template <typename T>
struct Factor {
    const T* data;
    int64_t row, term;  // strides in elements
    int64_t rows;       // how many there are
    const T* saved = nullptr;
    int64_t saved_row = 0, saved_term = 0;
    int activation = NONE;
    float slope = 0;
};

template <typename T, int COUNT>
struct alignas(sizeof(T) * COUNT) Some {
    T of[COUNT];
};

// COUNT elements, ``step`` apart, of which ``left`` are there: the rest is 0. By VECTORS they are one load, all or none.
template <bool VECTORS, int COUNT, typename T>
__device__ Some<T, COUNT> read(const T* p, int64_t step, int64_t left) {
    Some<T, COUNT> v;
    if (VECTORS && left > 0) return *reinterpret_cast<const Some<T, COUNT>*>(p);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v.of[i] = !VECTORS && i < left ? p[i * step] : from_float<T>(0.0f);
    return v;
}

// COUNT neighbours in a factor, along its terms or along its rows, gone through phi' if they must.
template <bool VECTORS, bool ALONG_TERMS, int COUNT, bool MASKED, typename T>
__device__ Some<T, COUNT> read(const Factor<T>& f, int64_t row, int64_t term, int64_t terms) {
    const bool there = row < f.rows && term < terms;
    const int64_t left = there ? (ALONG_TERMS ? terms - term : f.rows - row) : 0;
    const int64_t at = there ? row * f.row + term * f.term : 0;
    Some<T, COUNT> v = read<VECTORS, COUNT>(f.data + at, ALONG_TERMS ? f.term : f.row, left);
    if (!MASKED || f.saved == nullptr) return v;
    const int64_t beside = there ? row * f.saved_row + term * f.saved_term : 0;
    const Some<T, COUNT> y = read<VECTORS, COUNT>(f.saved + beside, ALONG_TERMS ? f.saved_term : f.saved_row, left);
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
        v.of[i] = from_float<T>(times_derivative(to_float(v.of[i]), to_float(y.of[i]), f.activation, f.slope));
    return v;
}

// The left factor's 32 rows from ``row`` on, for both steps of the chunk at ``term``. Terms side by side: row r of the tile
// is row r of the product. Terms apart: rows group and group + 8 of the i-th 16 are 4 group + 2 i and 4 group + 2 i + 1, and
// ``sums`` [0..3] takes the sum over terms of row 4 group + {0, 1, 2, 3}.
template <bool VECTORS, bool SIDE_BY_SIDE, bool MASKED, typename T>
__device__ void left_factor(
    uint32_t (&a)[2][2][4], float (&sums)[4], const Factor<T>& f, int64_t row, int64_t term, int64_t terms) {
    const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
    if constexpr (SIDE_BY_SIDE) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const auto v = read<VECTORS, true, 8, MASKED>(f, row + 8 * r + group, term + 8 * pair, terms);
#pragma unroll
            for (int half = 0; half < 4; ++half)  // terms 2 half and 2 half + 1 of the eight
                a[half / 2][r / 2][half % 2 * 2 + r % 2] = pack(v.of[2 * half], v.of[2 * half + 1]);
        }
    } else {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            Some<T, 4> v[4];
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                v[q] = read<VECTORS, false, 4, MASKED>(f, row + 4 * group, term + 8 * pair + 4 * step + q, terms);
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[i] += to_float(v[q].of[i]);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                a[step][i / 2][i % 2] = pack(v[0].of[i], v[1].of[i]);
                a[step][i / 2][2 + i % 2] = pack(v[2].of[i], v[3].of[i]);
            }
        }
    }
}

// The right factor's columns from ``column`` on. Side by side: column c of the tile is column c of the product. Apart:
// column c of the j-th 8 is 8 c + j.
template <bool VECTORS, bool SIDE_BY_SIDE, int COLUMNS, typename T>
__device__ void right_factor(
    uint32_t (&b)[2][COLUMNS / 8][2], const Factor<T>& f, int64_t column, int64_t term, int64_t terms) {
    const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
    if constexpr (SIDE_BY_SIDE) {
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) {
            const auto v = read<VECTORS, true, 8, false>(f, column + 8 * j + group, term + 8 * pair, terms);
#pragma unroll
            for (int half = 0; half < 4; ++half)
                b[half / 2][j][half % 2] = pack(v.of[2 * half], v.of[2 * half + 1]);
        }
    } else {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            Some<T, COLUMNS / 8> v[4];
#pragma unroll
            for (int q = 0; q < 4; ++q)
                v[q] = read<VECTORS, false, COLUMNS / 8, false>(
                    f, column + COLUMNS / 8 * group, term + 8 * pair + 4 * step + q, terms);
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; ++j) {
                b[step][j][0] = pack(v[0].of[j], v[1].of[j]);
                b[step][j][1] = pack(v[2].of[j], v[3].of[j]);
            }
        }
    }
}

// sum += the warp's part of a tile: every ``parts``-th chunk of terms from the ``part``-th on. The last four of ``sum``
// are the left factor's own sums over those terms.
template <bool VECTORS, bool LEFT_SIDE_BY_SIDE, bool RIGHT_SIDE_BY_SIDE, int COLUMNS, bool MASKED, typename T>
__device__ void multiply(
    float (&sum)[COLUMNS / 4 + 1][4], const Factor<T>& left, const Factor<T>& right, int64_t row, int64_t column,
    int64_t terms, int part, int parts) {
    for (int64_t term = static_cast<int64_t>(part) * CHUNK; term < terms; term += static_cast<int64_t>(parts) * CHUNK) {
        uint32_t a[2][2][4], b[2][COLUMNS / 8][2];
        left_factor<VECTORS, LEFT_SIDE_BY_SIDE, MASKED>(a, sum[COLUMNS / 4], left, row, term, terms);
        right_factor<VECTORS, RIGHT_SIDE_BY_SIDE, COLUMNS>(b, right, column, term, terms);
#pragma unroll
        for (int step = 0; step < 2; ++step)
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < COLUMNS / 8; ++j) mma<T>(sum[i * COLUMNS / 8 + j], a[step][i], b[step][j]);
    }
}

// Adds up what the ``parts`` warps of each tile have, in a fixed order; their first has it then. All threads call.
template <int COUNT>
__device__ void add_up(float (&sum)[COUNT][4], int parts) {
    SHARED(others, float[WARPS / 2][COUNT * 4][32]);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % parts;
    for (int half = parts / 2; half > 0; half /= 2) {
        float(&place)[COUNT * 4][32] = others[warp / parts * half + part % half];
        if (part >= half && part < 2 * half)
#pragma unroll
            for (int e = 0; e < COUNT * 4; ++e) place[e][lane] = sum[e / 4][e % 4];
        __syncthreads();
        if (part < half)
#pragma unroll
            for (int e = 0; e < COUNT * 4; ++e) sum[e / 4][e % 4] += place[e][lane];
        __syncthreads();
    }
}

// COUNT neighbours of a row, of which ``left`` are there, in T or, where it is ``wide``, in fp32.
template <bool VECTORS, int COUNT, typename T>
__device__ void store(void* out, bool wide, int64_t at, const float (&v)[COUNT], int64_t left) {
    if (wide) {
        float* p = static_cast<float*>(out) + at;
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            if (i < left) p[i] = v[i];
        return;
    }
    T* p = static_cast<T*>(out) + at;
    Some<T, COUNT> rounded;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) rounded.of[i] = from_float<T>(v[i]);
    if (VECTORS) {
        if (left > 0) *reinterpret_cast<Some<T, COUNT>*>(p) = rounded;
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            if (i < left) p[i] = rounded.of[i];
    }
}

// Which tile a warp works at, and which part of its sum: the tiles of a product, row after row, ``parts`` warps to each.
struct Place {
    int64_t row, column;
    int part;
    bool there;
};

__device__ inline Place place_of(int64_t block, int parts, int64_t rows, int64_t columns, int width) {
    const int warp = threadIdx.x / 32;
    const int64_t wide = (columns + width - 1) / width, tile = block * (WARPS / parts) + warp / parts;
    const int64_t row = tile / wide * ROWS;
    return {row, tile % wide * width, warp % parts, row < rows};
}

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
    const bool all_there = (N | K) % 8 == 0 && by_vectors(gy, g_m, g_n) && by_vectors(saved, 0, 1) && by_vectors(gb, 0, 1);
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
