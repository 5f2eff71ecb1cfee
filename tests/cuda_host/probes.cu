// Small kernels that test the shim itself: each right one beside one with a fault that the shim must show.

#include "grid.cuh"
#include "launch.cuh"
#include "matrix.cuh"

namespace {

constexpr int THREADS = 96;

// Sums the block's values by a tree in shared memory; FAULT 1 forgets the barrier, 2 lets only some threads reach it,
// 3 has two barriers where one is meant, 4 writes past the array.
template <int FAULT>
__global__ void tree_sum(const float* x, float* sums) {
    SHARED(part, float[128]);
    const int t = threadIdx.x;
    part[t] = t < THREADS ? x[static_cast<int64_t>(blockIdx.x) * THREADS + t] : 0.0f;
    if (FAULT == 4 && t == 127) part[t + (x[0] < 1e30f)] = 0.0f;
    for (int half = 64; half > 0; half /= 2) {
        if (FAULT == 2) {
            if (t < 64) __syncthreads();  // the partial one
        } else if (FAULT == 3 && t % 2 == 0) {
            __syncthreads();  // one of two
        } else if (FAULT != 1) {
            __syncthreads();
        }
        if (t < half) part[t] += part[t + half];
    }
    if (t == 0) sums[blockIdx.x] = part[0];
}

// d [16, 8] = a [16, 16] b [16, 8] by fragments that are loaded by hand (WAY 0) or from shared memory, b stored as (k,
// n).
template <typename T, int WAY>
__global__ void product(const T* a, const T* b, float* d) {
    const int lane = threadIdx.x, group = lane / 4, pair = lane % 4 * 2;
    float sum[4] = {};
    uint32_t left[4], right[2];
    if (WAY == 0) {
        for (int i = 0; i < 4; ++i) {
            const int row = group + i % 2 * 8, k = pair + i / 2 * 8;
            left[i] = pack(a[row * 16 + k], a[row * 16 + k + 1]);
        }
        for (int i = 0; i < 2; ++i) right[i] = pack(b[(pair + 8 * i) * 8 + group], b[(pair + 8 * i + 1) * 8 + group]);
    } else {
        SHARED(tile, T[32][16]);
        SHARED(other, T[16][8]);
        copy_async(&tile[lane % 16][lane / 16 * 8], a + lane % 16 * 16 + lane / 16 * 8);
        if (lane < 16) copy_async(&other[lane][0], b + lane * 8);
        copy_commit();
        if (WAY == 1) copy_wait<0>();
        __syncthreads();
        uint32_t four[4];
        load_matrices(left, &tile[lane % 16][lane / 16 * 8]);
        load_matrices_transposed(four, &other[lane % 16][0]);
        right[0] = four[0], right[1] = four[1];
    }
    mma<T>(sum, left, right);
    for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + pair + i % 2] = sum[i];
}

// Blocks pass a value round the grid, a barrier between any two; FAULT 1 forgets it.
template <int FAULT>
__global__ void ring(int* values, unsigned* word, int rounds) {
    const int next = (blockIdx.x + 1) % gridDim.x;
    for (int i = 0; i < rounds; ++i) {
        const int v = load_fresh(values + blockIdx.x);
        if (FAULT == 0) grid_barrier(word);
        if (threadIdx.x == 0) values[next] = v + 1;
        if (FAULT == 0) grid_barrier(word);
    }
}

__global__ void warps(const int* x, int* out) {
    const int t = threadIdx.x, v = x[t];
    int sum = v;
    for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
    int* mine = out + t * 8;
    mine[0] = sum;
    mine[1] = __shfl_down_sync(~0u, v, 3);
    mine[2] = __shfl_up_sync(~0u, v, 2);
    mine[3] = __shfl_sync(~0u, v, 5);
    mine[4] = static_cast<int>(__ballot_sync(~0u, v > 0));
    mine[5] = __any_sync(~0u, v == x[0]) * 2 + __all_sync(~0u, v < 1000);
    mine[6] = t % 32 < 16 ? __shfl_xor_sync(0xffffu, v, 1) : __shfl_xor_sync(0xffff0000u, v, 2);
    mine[7] = __syncthreads_count(v > 0);
}

__global__ void convert(const float* x, bf16* b, fp16* h, float* from_b, float* from_h, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    b[i] = from_float<bf16>(x[i]), h[i] = from_float<fp16>(x[i]);
    from_b[i] = to_float(b[i]), from_h[i] = to_float(h[i]);
}

__global__ void tickets(unsigned* ticket, int* last, const int* x, int* sum) {
    DYNAMIC_SHARED(memory);
    int* mine = reinterpret_cast<int*>(memory);
    if (threadIdx.x == 0) {
        atomicAdd(sum, x[blockIdx.x]);
        __threadfence();
        mine[0] = atomicAdd(ticket, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (mine[0] && threadIdx.x == 0) *last = *sum;
}

}  // namespace

extern "C" {

int probe_tree_sum(const float* x, float* sums, int64_t blocks, int64_t fault) {
    const Where where{dim3(blocks), dim3(128), 0, nullptr};
    switch (fault) {
        case 0: return launch(tree_sum<0>, where, x, sums);
        case 1: return launch(tree_sum<1>, where, x, sums);
        case 2: return launch(tree_sum<2>, where, x, sums);
        case 3: return launch(tree_sum<3>, where, x, sums);
        default: return launch(tree_sum<4>, where, x, sums);
    }
}

int probe_product(const void* a, const void* b, float* d, int64_t half, int64_t way) {
    const Where where{dim3(1), dim3(32), 0, nullptr};
    auto* ah = static_cast<const fp16*>(a), *bh = static_cast<const fp16*>(b);
    auto* ab = static_cast<const bf16*>(a), *bb = static_cast<const bf16*>(b);
    if (way == 0) return half ? launch(product<fp16, 0>, where, ah, bh, d) : launch(product<bf16, 0>, where, ab, bb, d);
    if (way == 1) return half ? launch(product<fp16, 1>, where, ah, bh, d) : launch(product<bf16, 1>, where, ab, bb, d);
    return launch(product<bf16, 2>, where, ab, bb, d);
}

int probe_ring(int* values, unsigned* word, int64_t blocks, int64_t rounds, int64_t how) {
    const Where where{dim3(blocks), dim3(32), 0, nullptr};
    if (how == 0) return launch_cooperative(ring<0>, where, values, word, rounds);
    if (how == 1) return launch_cooperative(ring<1>, where, values, word, rounds);
    return launch(ring<0>, where, values, word, rounds);  // blocks that are not resident together wait for ever
}

int probe_warps(const int* x, int* out, int64_t threads) {
    return launch(warps, {dim3(1), dim3(threads), 0, nullptr}, x, out);
}

int probe_convert(const float* x, bf16* b, fp16* h, float* from_b, float* from_h, int64_t n) {
    return launch(convert, {dim3((n + 255) / 256), dim3(256), 0, nullptr}, x, b, h, from_b, from_h, n);
}

int probe_tickets(unsigned* ticket, int* last, const int* x, int* sum, int64_t blocks) {
    return launch(tickets, {dim3(blocks), dim3(64), 16, nullptr}, ticket, last, x, sum);
}
}
