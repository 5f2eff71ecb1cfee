// The words of CUDA that kernels are written in, under nvcc and, for tests without a GPU, under a C++ compiler.
//
// A kernel file includes this (or a header below it) and no header of CUDA. Two things that C++ cannot say have words
// of their own, and kernels are launched by launch.cuh in the place of <<<>>>:
//
//     SHARED(name, type)      __shared__ type name, for types with commas and brackets: SHARED(tile, float[32][33])
//     DYNAMIC_SHARED(name)    the launch's dynamic shared memory, as unsigned char*, aligned to 128 bytes
//
// bf16 and fp16 are the two 16-bit types; to_float(v), from_float<T>(v) and pack<T>(low, high) convert, to nearest
// even.
#pragma once

#include <cstdint>

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define SHARED(name, ...)              \
    using name##_type = __VA_ARGS__;   \
    __shared__ __align__(16) name##_type name
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

using bf16 = __nv_bfloat16;
using fp16 = __half;

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(bf16 v) { return __bfloat162float(v); }
__device__ inline float to_float(fp16 v) { return __half2float(v); }

template <typename T>
__device__ T from_float(float v);
template <>
__device__ inline float from_float<float>(float v) { return v; }
template <>
__device__ inline bf16 from_float<bf16>(float v) { return __float2bfloat16_rn(v); }
template <>
__device__ inline fp16 from_float<fp16>(float v) { return __float2half_rn(v); }

#else
#include "cuda_host.h"
#endif

// Two values in one register, the first in the lower half: what matrix fragments are made of.
template <typename T>
__device__ inline uint32_t pack(T low, T high) {
    uint16_t halves[2];
    static_assert(sizeof(T) == 2, "two values of 16 bits fill a register");
    __builtin_memcpy(&halves[0], &low, 2);
    __builtin_memcpy(&halves[1], &high, 2);
    return halves[0] | static_cast<uint32_t>(halves[1]) << 16;
}
template <typename T>
__device__ inline uint32_t pack(float low, float high) { return pack(from_float<T>(low), from_float<T>(high)); }
