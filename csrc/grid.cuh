// Blocks that wait for one another: loads and stores that other blocks see, and a barrier for the whole grid.
//
// grid_barrier(word) needs a cooperative launch, and an unsigned in global memory that was 0 before the first launch
// and is nobody else's; it comes out of a launch fit for the next. What any thread wrote before it, every thread sees
// after it, if it reads through L2 (load_fresh, copy_async) and never through the read-only cache (__ldg, const
// __restrict__).
#pragma once

#include "platform.cuh"

#ifdef __CUDACC__

__device__ inline unsigned load_acquire(const unsigned* word) {
    unsigned v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(word) : "memory");
    return v;
}
__device__ inline unsigned add_release(unsigned* word, unsigned v) {
    unsigned before;
    asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], %2;" : "=r"(before) : "l"(word), "r"(v) : "memory");
    return before;
}
__device__ inline void while_waiting() { __nanosleep(20); }

template <typename T>
__device__ inline T load_fresh(const T* p) { return __ldcg(p); }

#endif  // else cuda_host.h has them

__device__ inline void grid_barrier(unsigned* word) {
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0 && threadIdx.z == 0) {
        const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
        const bool first = blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0;
        __threadfence();
        // One block adds what the others lack to 2^31: with the last arrival the top bit flips, and the rest is 0
        // again.
        const unsigned before = add_release(word, first ? 0x80000000u - (blocks - 1) : 1u);
        while (((before ^ load_acquire(word)) & 0x80000000u) == 0) while_waiting();
        __threadfence();
    }
    __syncthreads();
}
