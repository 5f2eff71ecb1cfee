// How a kernel is launched: launch(kernel, {blocks, threads, shared bytes, stream}, arguments...).
//
// The kernel's own parameters say what the arguments are converted to. Returns CUDA's error code, 0 where all is well;
// nothing is synchronised and nothing allocated, so that both forms can be captured in a graph. A launch without blocks
// is none. launch_cooperative has all blocks resident at once, as a grid barrier (grid.cuh) needs, or fails: the most
// blocks that are is what resident_blocks(most, kernel, threads, shared bytes) sets. What failed is told once, by its
// own call, and not by the next launch too.
#pragma once

#include "platform.cuh"

struct Where {
    dim3 blocks, threads;
    int shared_bytes;
    cudaStream_t stream;
};

#ifdef __CUDACC__

// The runtime keeps an error until it is asked for it.
inline cudaError_t told(cudaError_t error) {
    if (error != cudaSuccess) cudaGetLastError();
    return error;
}

// More than 48 KB of dynamic shared memory must be asked for, at every launch: the answer is not remembered per thread.
template <typename Kernel>
cudaError_t allow_shared(Kernel kernel, int bytes) {
    if (bytes <= 48 * 1024) return cudaSuccess;
    return told(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

template <typename... P, typename... A>
cudaError_t launch(void (*kernel)(P...), const Where& where, A... arguments) {
    if (where.blocks.x == 0 || where.blocks.y == 0 || where.blocks.z == 0) return cudaSuccess;
    if (cudaError_t error = allow_shared(kernel, where.shared_bytes)) return error;
    kernel<<<where.blocks, where.threads, where.shared_bytes, where.stream>>>(static_cast<P>(arguments)...);
    return cudaGetLastError();
}

template <typename... P, typename... A>
cudaError_t launch_cooperative(void (*kernel)(P...), const Where& where, A... arguments) {
    if (cudaError_t error = allow_shared(kernel, where.shared_bytes)) return error;
    cudaLaunchAttribute together{};
    together.id = cudaLaunchAttributeCooperative;
    together.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = where.blocks;
    config.blockDim = where.threads;
    config.dynamicSmemBytes = where.shared_bytes;
    config.stream = where.stream;
    config.attrs = &together;
    config.numAttrs = 1;
    return told(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...));
}

template <typename Kernel>
cudaError_t resident_blocks(int& most, Kernel kernel, int threads, int shared_bytes) {
    int device = 0, processors = 0, each = 0;
    if (cudaError_t error = told(cudaGetDevice(&device))) return error;
    if (cudaError_t error = allow_shared(kernel, shared_bytes)) return error;
    if (cudaError_t error = told(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)))
        return error;
    if (cudaError_t error = told(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared_bytes)))
        return error;
    most = each * processors;
    return cudaSuccess;
}

#else

template <typename... P, typename... A>
cudaError_t launch(void (*kernel)(P...), const Where& where, A... arguments) {
    return cuda_host::run(where.blocks, where.threads, where.shared_bytes, false,
                          [=] { kernel(static_cast<P>(arguments)...); });
}

template <typename... P, typename... A>
cudaError_t launch_cooperative(void (*kernel)(P...), const Where& where, A... arguments) {
    return cuda_host::run(where.blocks, where.threads, where.shared_bytes, true,
                          [=] { kernel(static_cast<P>(arguments)...); });
}

template <typename Kernel>
cudaError_t resident_blocks(int& most, Kernel, int, int) { return most = 8, cudaSuccess; }

#endif
