"""The activations and their derivatives, as device functions that a kernel's epilogue or operand load calls in fp32.

| name       | forward          | derivative, from what was saved | saved                                            |
|------------|------------------|---------------------------------|--------------------------------------------------|
| none       | v                | 1                               | nothing                                          |
| relu       | max(v, 0)        | 1 where saved > 0, else 0       | output                                           |
| leaky_relu | v > 0 ? v : s v  | 1 where saved > 0, else s       | output; the pre-activation where the slope s < 0 |
| tanh       | tanh(v)          | 1 - saved^2                     | output                                           |
| sigmoid    | 1 / (1 + e^-v)   | saved (1 - saved)               | output                                           |

NaN in gives NaN out.
"""

import triton
import triton.language as tl


@triton.jit
def tanh(v):
    """Hyperbolic tangent without cancellation near 0: a fit of tanh(v)/v there, the exponential beyond."""
    square = v * v
    fit = -5.70498872745e-3  # Cephes' minimax coefficients for |v| < 0.625, error below 1 ulp in fp32
    fit = fit * square + 2.06390887954e-2
    fit = fit * square - 5.37397155531e-2
    fit = fit * square + 1.33314422036e-1
    fit = fit * square - 3.33332819422e-1
    size = tl.abs(v)
    far = 1.0 - 2.0 / (tl.exp(2.0 * size) + 1.0)
    return tl.where(size < 0.625, fit * square * v + v, tl.where(v < 0, -far, far))


@triton.jit
def activate(v, slope, ACTIVATION: tl.constexpr):
    """phi(v) for an fp32 pre-activation of any shape."""
    if ACTIVATION == "relu":
        v = tl.where(v < 0, 0.0, v)
    elif ACTIVATION == "leaky_relu":
        v = tl.where(v > 0, v, v * slope)
    elif ACTIVATION == "tanh":
        v = tanh(v)
    elif ACTIVATION == "sigmoid":
        v = 1.0 / (1.0 + tl.exp(-v))
    return v


@triton.jit
def times_derivative(grad, saved, slope, ACTIVATION: tl.constexpr):
    """grad * phi'(.) in fp32, the derivative taken from the saved output (pre-activation for negative slopes)."""
    grad = grad.to(tl.float32)
    saved = saved.to(tl.float32)
    if ACTIVATION == "relu":
        grad = tl.where(saved > 0, grad, saved)  # the saved 0 itself: one register less for each element than 0.0
    elif ACTIVATION == "leaky_relu":
        grad = tl.where(saved > 0, grad, grad * slope)
    elif ACTIVATION == "tanh":
        grad = grad * (1.0 - saved * saved)
    elif ACTIVATION == "sigmoid":
        grad = grad * (saved * (1.0 - saved))
    return grad
