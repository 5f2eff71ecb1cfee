// What CUDA says of an error code, for the bindings, which know no header of CUDA.

#include "platform.cuh"

extern "C" const char* fastgan_error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }
