// A warp's tile of linear_act.cu: operands read as they lie, by any strides, multiplied, added up and stored.
//
// Made for batches that leave a card mostly idle, where what counts is how soon the last load returns. One warp makes a
// tile and needs no shared memory for its operands: the order in which a sum runs is free, and so is the order of a
// tile's columns, so each lane reads 16 bytes at a time and hands them to the matrix instruction as they lie. In a
// chunk of 32 terms, step s of 2, the lanes with pair p = lane % 4 hold the terms 8 p + 4 s + {0, 1, 2, 3}:
//
//     operand with its terms side by side (x, W forward; gy backward): 16 bytes are 8 terms of one row, for both steps
//     operand with its terms apart (W for gx; gy and x for gw): 16 bytes are 8 rows (of the product) of one term
#pragma once

#include "activation.cuh"
#include "matrix.cuh"

constexpr int WARPS = 8;         // of a block
constexpr int ROWS = 32;         // of a warp's tile
constexpr int CHUNK = 32;        // terms that a warp takes at a time
constexpr int FORWARD = 32, BACKWARD = 64;  // columns of a warp's tile

// A factor of a product: element (row, term) lies at row * rows + term * terms. With ``saved`` it is an incoming
// gradient that has yet to go through phi'.
template <typename T>
struct Factor {
    const T* data;
    int64_t row, term;  // strides in elements
    int64_t rows;       // how many there are
    const T* saved = nullptr;
    int64_t saved_row = 0, saved_term = 0;
    int activation = NONE;
    float slope = 0;
};

template <typename T, int COUNT>
struct alignas(sizeof(T) * COUNT) Some {
    T of[COUNT];
};

// COUNT elements, ``step`` apart, of which ``left`` are there: the rest is 0. By VECTORS they are one load, all or
// none.
template <bool VECTORS, int COUNT, typename T>
__device__ Some<T, COUNT> read(const T* p, int64_t step, int64_t left) {
    Some<T, COUNT> v;
    if (VECTORS && left > 0) return *reinterpret_cast<const Some<T, COUNT>*>(p);
#pragma unroll
    for (int i = 0; i < COUNT; ++i) v.of[i] = !VECTORS && i < left ? p[i * step] : from_float<T>(0.0f);
    return v;
}

// COUNT neighbours in a factor, along its terms or along its rows, gone through phi' if they must.
template <bool VECTORS, bool ALONG_TERMS, int COUNT, bool MASKED, typename T>
__device__ Some<T, COUNT> read(const Factor<T>& f, int64_t row, int64_t term, int64_t terms) {
    const bool there = row < f.rows && term < terms;
    const int64_t left = there ? (ALONG_TERMS ? terms - term : f.rows - row) : 0;
    const int64_t at = there ? row * f.row + term * f.term : 0;
    Some<T, COUNT> v = read<VECTORS, COUNT>(f.data + at, ALONG_TERMS ? f.term : f.row, left);
    if (!MASKED || f.saved == nullptr) return v;
    const int64_t beside = there ? row * f.saved_row + term * f.saved_term : 0;
    const Some<T, COUNT> y = read<VECTORS, COUNT>(f.saved + beside, ALONG_TERMS ? f.saved_term : f.saved_row, left);
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
        v.of[i] = from_float<T>(times_derivative(to_float(v.of[i]), to_float(y.of[i]), f.activation, f.slope));
    return v;
}

// The left factor's 32 rows from ``row`` on, for both steps of the chunk at ``term``. Terms side by side: row r of the
// tile is row r of the product. Terms apart: rows group and group + 8 of the i-th 16 are 4 group + 2 i and 4 group + 2
// i + 1, and ``sums`` [0..3] takes the sum over terms of row 4 group + {0, 1, 2, 3}.
template <bool VECTORS, bool SIDE_BY_SIDE, bool MASKED, typename T>
__device__ void left_factor(
    uint32_t (&a)[2][2][4], float (&sums)[4], const Factor<T>& f, int64_t row, int64_t term, int64_t terms) {
    const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
    if constexpr (SIDE_BY_SIDE) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const auto v = read<VECTORS, true, 8, MASKED>(f, row + 8 * r + group, term + 8 * pair, terms);
#pragma unroll
            for (int half = 0; half < 4; ++half)  // terms 2 half and 2 half + 1 of the eight
                a[half / 2][r / 2][half % 2 * 2 + r % 2] = pack(v.of[2 * half], v.of[2 * half + 1]);
        }
    } else {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            Some<T, 4> v[4];
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                v[q] = read<VECTORS, false, 4, MASKED>(f, row + 4 * group, term + 8 * pair + 4 * step + q, terms);
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[i] += to_float(v[q].of[i]);
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                a[step][i / 2][i % 2] = pack(v[0].of[i], v[1].of[i]);
                a[step][i / 2][2 + i % 2] = pack(v[2].of[i], v[3].of[i]);
            }
        }
    }
}

// The right factor's columns from ``column`` on. Side by side: column c of the tile is column c of the product. Apart:
// column c of the j-th 8 is 8 c + j.
template <bool VECTORS, bool SIDE_BY_SIDE, int COLUMNS, typename T>
__device__ void right_factor(
    uint32_t (&b)[2][COLUMNS / 8][2], const Factor<T>& f, int64_t column, int64_t term, int64_t terms) {
    const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
    if constexpr (SIDE_BY_SIDE) {
#pragma unroll
        for (int j = 0; j < COLUMNS / 8; ++j) {
            const auto v = read<VECTORS, true, 8, false>(f, column + 8 * j + group, term + 8 * pair, terms);
#pragma unroll
            for (int half = 0; half < 4; ++half)
                b[half / 2][j][half % 2] = pack(v.of[2 * half], v.of[2 * half + 1]);
        }
    } else {
#pragma unroll
        for (int step = 0; step < 2; ++step) {
            Some<T, COLUMNS / 8> v[4];
#pragma unroll
            for (int q = 0; q < 4; ++q)
                v[q] = read<VECTORS, false, COLUMNS / 8, false>(
                    f, column + COLUMNS / 8 * group, term + 8 * pair + 4 * step + q, terms);
#pragma unroll
            for (int j = 0; j < COLUMNS / 8; ++j) {
                b[step][j][0] = pack(v[0].of[j], v[1].of[j]);
                b[step][j][1] = pack(v[2].of[j], v[3].of[j]);
            }
        }
    }
}

// sum += the warp's part of a tile: every ``parts``-th chunk of terms from the ``part``-th on. The last four of ``sum``
// are the left factor's own sums over those terms.
template <bool VECTORS, bool LEFT_SIDE_BY_SIDE, bool RIGHT_SIDE_BY_SIDE, int COLUMNS, bool MASKED, typename T>
__device__ void multiply(
    float (&sum)[COLUMNS / 4 + 1][4], const Factor<T>& left, const Factor<T>& right, int64_t row, int64_t column,
    int64_t terms, int part, int parts) {
    for (int64_t term = static_cast<int64_t>(part) * CHUNK; term < terms; term += static_cast<int64_t>(parts) * CHUNK) {
        uint32_t a[2][2][4], b[2][COLUMNS / 8][2];
        left_factor<VECTORS, LEFT_SIDE_BY_SIDE, MASKED>(a, sum[COLUMNS / 4], left, row, term, terms);
        right_factor<VECTORS, RIGHT_SIDE_BY_SIDE, COLUMNS>(b, right, column, term, terms);
#pragma unroll
        for (int step = 0; step < 2; ++step)
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < COLUMNS / 8; ++j) mma<T>(sum[i * COLUMNS / 8 + j], a[step][i], b[step][j]);
    }
}

// Adds up what the ``parts`` warps of each tile have, in a fixed order; their first has it then. All threads call.
template <int COUNT>
__device__ void add_up(float (&sum)[COUNT][4], int parts) {
    SHARED(others, float[WARPS / 2][COUNT * 4][32]);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % parts;
    for (int half = parts / 2; half > 0; half /= 2) {
        float(&place)[COUNT * 4][32] = others[warp / parts * half + part % half];
        if (part >= half && part < 2 * half)
#pragma unroll
            for (int e = 0; e < COUNT * 4; ++e) place[e][lane] = sum[e / 4][e % 4];
        __syncthreads();
        if (part < half)
#pragma unroll
            for (int e = 0; e < COUNT * 4; ++e) sum[e / 4][e % 4] += place[e][lane];
        __syncthreads();
    }
}

// COUNT neighbours of a row, of which ``left`` are there, in T or, where it is ``wide``, in fp32.
template <bool VECTORS, int COUNT, typename T>
__device__ void store(void* out, bool wide, int64_t at, const float (&v)[COUNT], int64_t left) {
    if (wide) {
        float* p = static_cast<float*>(out) + at;
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            if (i < left) p[i] = v[i];
        return;
    }
    T* p = static_cast<T*>(out) + at;
    Some<T, COUNT> rounded;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) rounded.of[i] = from_float<T>(v[i]);
    if (VECTORS) {
        if (left > 0) *reinterpret_cast<Some<T, COUNT>*>(p) = rounded;
    } else {
#pragma unroll
        for (int i = 0; i < COUNT; ++i)
            if (i < left) p[i] = rounded.of[i];
    }
}

// Which tile a warp works at, and which part of its sum: the tiles of a product, row after row, ``parts`` warps to
// each.
struct Place {
    int64_t row, column;
    int part;
    bool there;
};

__device__ inline Place place_of(int64_t block, int parts, int64_t rows, int64_t columns, int width) {
    const int warp = threadIdx.x / 32;
    const int64_t wide = (columns + width - 1) / width, tile = block * (WARPS / parts) + warp / parts;
    const int64_t row = tile / wide * ROWS;
    return {row, tile % wide * width, warp % parts, row < rows};
}
