// The activations and their derivatives in fp32, as kernels/activation.py has them, by the number of their name.
//
//     name        number   forward           derivative, from the saved output
//     none        0        v                 1
//     relu        1        max(v, 0)         1 where saved > 0, else 0
//     leaky_relu  2        v > 0 ? v : s v   1 where saved > 0, else s >= 0
//     tanh        3        tanh(v)           1 - saved^2
//     sigmoid     4        1 / (1 + e^-v)    saved (1 - saved)
//
// NaN in gives NaN out. A launch has one activation, so that no warp ever diverges here.
#pragma once

#include "platform.cuh"

enum Activation : int { NONE = 0, RELU = 1, LEAKY_RELU = 2, TANH = 3, SIGMOID = 4 };

// Without cancellation near 0: Cephes' fit of tanh(v) / v there, below 1 ulp for |v| < 0.625, the exponential beyond.
__device__ inline float tanh_of(float v) {
    const float square = v * v, size = fabsf(v);
    float fit = -5.70498872745e-3f;
    fit = fit * square + 2.06390887954e-2f;
    fit = fit * square - 5.37397155531e-2f;
    fit = fit * square + 1.33314422036e-1f;
    fit = fit * square - 3.33332819422e-1f;
    const float far = 1.0f - 2.0f / (expf(2.0f * size) + 1.0f);
    return size < 0.625f ? fit * square * v + v : copysignf(far, v);
}

__device__ inline float activate(float v, int activation, float slope) {
    switch (activation) {
        case RELU: return v < 0.0f ? 0.0f : v;
        case LEAKY_RELU: return v > 0.0f ? v : v * slope;
        case TANH: return tanh_of(v);
        case SIGMOID: return 1.0f / (1.0f + expf(-v));
        default: return v;
    }
}

__device__ inline float times_derivative(float grad, float saved, int activation, float slope) {
    switch (activation) {
        case RELU: return saved > 0.0f ? grad : saved;  // the 0 itself, or the NaN
        case LEAKY_RELU: return saved > 0.0f ? grad : grad * slope;
        case TANH: return grad * (1.0f - saved * saved);
        case SIGMOID: return grad * (saved * (1.0f - saved));
        default: return grad;
    }
}
