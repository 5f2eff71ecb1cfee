// Draws as functions of a seed and a clock: the bits of kernels/streams.py, kernels/philox.py and
// kernels/permutation.py.
//
// Philox4x32 with 7 rounds, keyed by the seed; the lower half of its counter is the place in a draw, by fours, the
// upper half the purpose (bits 56 and up) and the number of the draw.
#pragma once

#include "platform.cuh"

enum Purpose : uint64_t { FOR_ORDER = 1, FOR_FLIP = 2, FOR_NOISE = 3, FOR_LATENT = 4, FOR_LABEL = 5, FOR_DROPOUT = 6 };

struct Words { uint32_t w[4]; };

__device__ inline Words philox(uint64_t seed, Purpose purpose, int64_t count, uint64_t place) {
    const uint64_t offset = static_cast<uint64_t>(count) + (static_cast<uint64_t>(purpose) << 56);
    uint32_t c0 = static_cast<uint32_t>(place), c1 = static_cast<uint32_t>(place >> 32);
    uint32_t c2 = static_cast<uint32_t>(offset), c3 = static_cast<uint32_t>(offset >> 32);
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 7; ++round) {
        const uint64_t left = static_cast<uint64_t>(c0) * 0xD2511F53u, right = static_cast<uint64_t>(c2) * 0xCD9E8D57u;
        c0 = static_cast<uint32_t>(right >> 32) ^ c1 ^ k0, c1 = static_cast<uint32_t>(right);
        c2 = static_cast<uint32_t>(left >> 32) ^ c3 ^ k1, c3 = static_cast<uint32_t>(left);
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

__device__ inline uint32_t below(uint32_t word, uint32_t size) {
    return static_cast<uint32_t>(static_cast<uint64_t>(word) * size >> 32);
}

__device__ inline uint32_t mixed(uint32_t word, uint32_t salt) {
    word = (word ^ word >> 16) * 0x7FEB352Du;
    return ((word ^ word >> 15) + salt) * 0x846CA68Bu;
}

// Which of n samples stands at a position of an epoch: a swap-or-not shuffle of 24 rounds.
__device__ inline int permuted(int position, int n, uint64_t seed, int64_t epoch) {
    const Words keys = philox(seed, FOR_ORDER, epoch, 0);
    uint32_t a = keys.w[0];
    int x = position;
    for (int round = 0; round < 24; ++round) {
        const uint32_t word = mixed(a, keys.w[1]);
        a += 0x9E3779B9u;
        int partner = static_cast<int>(below(word, n)) - x;
        if (partner < 0) partner += n;
        const uint32_t larger = static_cast<uint32_t>(x > partner ? x : partner);
        const uint32_t hashed = mixed(larger ^ (word + keys.w[2]), word ^ keys.w[3]);
        if (hashed >> 31) x = partner;
    }
    return x;
}

// Two normals of two words, by Box and Muller; sine and cosine by polynomials on an eighth of a turn.
__device__ inline float2 normals(uint32_t first, uint32_t second) {
    const float unit = static_cast<float>(first) * 2.3283064365386963e-10f + 1.1641532182693481e-10f;
    float radius = sqrtf(fmaxf(-2.0f * logf(unit), 0.0f));
    const uint32_t quarter = (second + 0x20000000u) >> 30;
    const float angle = static_cast<float>(static_cast<int32_t>(second - (quarter << 30))) * 1.4629180792671596e-9f;
    const float square = angle * angle;
    const float sine =
        ((-1.9515295891e-4f * square + 8.3321608736e-3f) * square - 1.6666654611e-1f) * square * angle + angle;
    float cosine = (2.443315711809948e-5f * square - 1.388731625493765e-3f) * square + 4.166664568298827e-2f;
    cosine = cosine * square * square - 0.5f * square + 1.0f;
    const bool odd = quarter & 1;
    if (quarter & 2) radius = -radius;
    return make_float2(radius * (odd ? -sine : cosine), radius * (odd ? cosine : sine));
}
