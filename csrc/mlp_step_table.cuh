// The phase table of fastgan/ops/mlp_step_form.py as C++ reads it: the same fields in the same order, all int64.
#pragma once

#include "grid.cuh"
#include "platform.cuh"

constexpr int NOWHERE = -1;
constexpr int THREADS = 256, WARPS = THREADS / 32;
constexpr int TILE_ROWS = 64, TILE_COLS = 16, TILE_WIDE = 64, STRIP = 4096;

enum Op { REAL, LATENT, LINEAR, LOSS, BACK, WEIGHT, RATE, NORM, STEP, TICK, MEND };
enum Term { CROSS_ENTROPY, LEAST_SQUARES, HINGE, TERM_LINEAR };
enum Rule { ADAM, RMSPROP, SGD };
enum Form { DECOUPLED = 1, MOMENTUM = 2, NESTEROV = 4, CENTERED = 8 };
enum Rates { PACE, DECAY, SHRINK, EPS, REST1, KEPT, REST2, ROOT, SPEED, FOLLOW, CLIP, FACTOR, SKIP, RATES };

struct Phase {
    int64_t op, stage, tiles, rows, cols, depth, group, a, a_row, b, b_row, out, out_row, out_step;
    int64_t weight, bias, gamma, beta, moves, still, raw, raw_row, stats, stats_row, mean, var, batches, momentum, eps;
    int64_t activation, slope, drop, kept, drop_first, seed, site, sites, kind, total, flip, scale;
    int64_t term, other, sides, label, sign, critic, seen, at, clock, table, values, sums, counts, finite;
    int64_t first, last, verdict, most, guards;
};

struct Param {
    int64_t value, first, second, third, step, average, shadow, gradient;
    int64_t size, group, rule, form, counters, side, strip;
};

constexpr int PHASE_FIELDS = sizeof(Phase) / 8, PARAM_FIELDS = sizeof(Param) / 8;

__device__ inline float real(int64_t bits) {
    double v;
    __builtin_memcpy(&v, &bits, 8);
    return static_cast<float>(v);
}
__device__ inline double real64(int64_t bits) {
    double v;
    __builtin_memcpy(&v, &bits, 8);
    return v;
}

// All that a launch is given. A slot is an address, counted from ``base``.
struct Program {
    const Phase* phases;
    const Param* params;
    const int64_t* slots;
    const int64_t* numbers;  // [groups, 11, 2]: fp64 bits, or where it is not 0 the address of a float
    float* rates;            // [params, RATES]
    uintptr_t base;
    int64_t count;

    template <typename T>
    __device__ T* at(int64_t slot) const {
        return reinterpret_cast<T*>(base + static_cast<uintptr_t>(slots[slot]));
    }
    template <typename T>
    __device__ T* maybe(int64_t slot) const {
        return slot < 0 ? nullptr : at<T>(slot);
    }
    __device__ float value(int64_t param, int64_t i, float missing) const {
        return param < 0 ? missing : load_fresh(at<float>(params[param].value) + i);
    }
    __device__ const float* rate(int64_t param) const { return rates + param * RATES; }
};
constexpr int PROGRAM_FIELDS = sizeof(Program) / 8;
static_assert(PROGRAM_FIELDS == 7, "fastgan/ops/mlp_step_launch.py writes them");

// The sum of a value over the block, in a fixed order, for every thread; ``room`` is THREADS floats.
__device__ inline float block_sum(float v, float* room) {
    __syncthreads();
    room[threadIdx.x] = v;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) room[threadIdx.x] += room[threadIdx.x + half];
        __syncthreads();
    }
    const float sum = room[0];
    __syncthreads();
    return sum;
}
