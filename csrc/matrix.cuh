// One matrix instruction and the loads around it: a warp's d [16, 8] += a [16, 16] b [16, 8], accumulated in fp32.
//
// All 32 lanes call together. With group = lane / 4 and pair = 2 (lane % 4), a lane holds, two values to a register:
//
//     a[0]: (group, pair + {0, 1})        a[1]: (group + 8, pair + {0, 1})          a is (row, k)
//     a[2]: (group, pair + 8 + {0, 1})    a[3]: (group + 8, pair + 8 + {0, 1})
//     b[0]: (pair + {0, 1}, group)        b[1]: (pair + 8 + {0, 1}, group)          b is (k, column)
//     d[0], d[1]: (group, pair + {0, 1})  d[2], d[3]: (group + 8, pair + {0, 1})    d is (row, column), floats
//
// load_matrices fills four registers from four 8 x 8 tiles of 16-bit values in shared memory: lane l gives the address
// of row l % 8 of tile l / 8, 16 bytes and aligned to them. r[i] is then (group, pair + {0, 1}) of tile i; transposed,
// (pair + {0, 1}, group). Asynchronous copies of 16 bytes, both sides aligned: what copy_async began is in shared
// memory after copy_wait<n>(), for all groups closed by copy_commit() but the last n, and for others after a barrier.
#pragma once

#include "platform.cuh"

#ifdef __CUDACC__

template <typename T>
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

#define FASTGAN_MMA(T, NAME)                                                                                          \
    template <>                                                                                                       \
    __device__ inline void mma<T>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {                    \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 "                                   \
                     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                \
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                 \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                             \
    }
FASTGAN_MMA(bf16, "bf16")
FASTGAN_MMA(fp16, "f16")
#undef FASTGAN_MMA

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ inline void load_matrices(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

__device__ inline void copy_async(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)), "l"(global) : "memory");
}
__device__ inline void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT>
__device__ inline void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

#endif  // else cuda_host.h has them: the same layouts, lane by lane
