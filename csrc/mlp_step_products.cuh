// The products of mlp_step: LINEAR, BACK and WEIGHT, by mma.sync m16n8k16 in bf16 with fp32 sums.
//
// LINEAR and BACK: a tile is 64 rows by 16 columns; of eight warps four take 16 rows each and two halves of the depth.
// Where a norm stands behind, a tile is all rows of its 16 columns, group after group: their statistics are the block's
// own affair, and no barrier of the grid is spent on them. WEIGHT: 64 by 64, the depth is the rows of the batch.
// Operands come through shared memory in two turns: while one is multiplied, the next is on its way.
#pragma once

#include "activation.cuh"
#include "matrix.cuh"
#include "mlp_step_optimizer.cuh"
#include "mlp_step_table.cuh"
#include "streams.cuh"

constexpr int DEEP = 128;                      // of the sum, that are in shared memory at a time
constexpr int PITCH_A = DEEP + 8;              // of rows in shared memory: 16 bytes apart from a multiple of 128
constexpr int PITCH_B = TILE_COLS + 8, PITCH_W = TILE_WIDE + 8;
constexpr int TURN = TILE_ROWS * PITCH_A + DEEP * PITCH_B;  // elements of a turn's operands
static_assert(DEEP * PITCH_B >= TILE_COLS * PITCH_A, "either form of the second operand");
static_assert(TURN >= 2 * TILE_ROWS * PITCH_W, "WEIGHT's operands");

// Dynamic shared memory: two turns of operands, and behind them the panel, floats [rows][16] (or [64][64]).
struct Room {
    bf16* turns;
    float *panel, *sums;  // sums: THREADS floats
};

// rows x cols elements of a matrix [.., pitch] into shared memory, 0 where it has none (rows_left, cols_left there
// are).
template <int ROWS, int COLS>
__device__ void bring(
    bf16* into, int into_pitch, const bf16* from, int64_t pitch, int64_t rows_left, int64_t cols_left) {
    const bool whole = pitch % 8 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
    for (int i = threadIdx.x; i < ROWS * (COLS / 8); i += THREADS) {
        const int row = i / (COLS / 8), col = i % (COLS / 8) * 8;
        bf16* to = into + row * into_pitch + col;
        const bf16* source = from + row * pitch + col;
        if (whole && row < rows_left && col + 8 <= cols_left) {
            copy_async(to, source);
        } else {
            for (int j = 0; j < 8; ++j) {
                const bool there = row < rows_left && col + j < cols_left;
                to[j] = there ? load_fresh(source + j) : from_float<bf16>(0.0f);
            }
        }
    }
}

// panel[64][16] = a[64 rows][depth] times b: [16][depth] as it lies (ACROSS 0), or [depth][16] (ACROSS 1).
template <int ACROSS>
__device__ void product(const Room& room, float* panel, const bf16* a, int64_t rows, const bf16* b, int64_t b_pitch,
                        int64_t cols, int64_t depth) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, strip = warp % 4, half = warp / 4;
    const int turns = static_cast<int>((depth + DEEP - 1) / DEEP);
    float sum[2][4] = {};
    auto fetch = [&](int turn) {
        bf16* to = room.turns + turn % 2 * TURN;
        const int64_t k = static_cast<int64_t>(turn) * DEEP;
        bring<TILE_ROWS, DEEP>(to, PITCH_A, a + k, depth, rows, depth - k);
        to += TILE_ROWS * PITCH_A;
        if (ACROSS)
            bring<DEEP, TILE_COLS>(to, PITCH_B, b + k * b_pitch, b_pitch, depth - k, cols);
        else
            bring<TILE_COLS, DEEP>(to, PITCH_A, b + k, b_pitch, cols, depth - k);
        copy_commit();
    };
    fetch(0);
    for (int turn = 0; turn < turns; ++turn) {
        if (turn + 1 < turns) {
            fetch(turn + 1);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        const bf16* left = room.turns + turn % 2 * TURN + (strip * 16 + lane % 16) * PITCH_A + lane / 16 * 8;
        const bf16* right = room.turns + turn % 2 * TURN + TILE_ROWS * PITCH_A;
#pragma unroll
        for (int k = half * (DEEP / 2); k < (half + 1) * (DEEP / 2); k += 16) {
            uint32_t x[4], y[4];
            load_matrices(x, left + k);
            const int tile = lane / 8, line = lane % 8;
            if (ACROSS)
                load_matrices_transposed(y, right + (k + tile % 2 * 8 + line) * PITCH_B + tile / 2 * 8);
            else
                load_matrices(y, right + (tile / 2 * 8 + line) * PITCH_A + k + tile % 2 * 8);
            const uint32_t first[2] = {y[0], y[1]}, second[2] = {y[2], y[3]};
            mma<bf16>(sum[0], x, first);
            mma<bf16>(sum[1], x, second);
        }
        __syncthreads();
    }
    for (int turn = 0; turn < 2; ++turn) {  // the halves of the depth one after the other
        if (half == turn)
            for (int j = 0; j < 2; ++j)
                for (int i = 0; i < 4; ++i) {
                    float* to = panel + (strip * 16 + lane / 4 + i / 2 * 8) * TILE_COLS + j * 8 + lane % 4 * 2 + i % 2;
                    *to = turn == 0 ? sum[j][i] : *to + sum[j][i];
                }
        __syncthreads();
    }
}

// Whether an element of a layer's pass stays.
__device__ inline bool stays(const Program& program, const Phase& p, int64_t row, int64_t col) {
    const int64_t clock = load_fresh(program.at<long long>(p.clock)), at = row * p.cols + col;
    const Words words = philox(p.seed, FOR_DROPOUT, clock * p.sites + p.site, at / 4);
    return static_cast<int64_t>(words.w[at % 4]) >= p.drop;
}

// Which 16 columns a tile has, and which rows: 64 of them, or all where a norm needs them.
struct Place {
    int64_t col, cols, row;
    __device__ Place(const Phase& p, int tile) {
        const int64_t across = (p.cols + TILE_COLS - 1) / TILE_COLS;
        col = tile % across * TILE_COLS, row = tile / across * TILE_ROWS;
        cols = p.cols - col < TILE_COLS ? p.cols - col : TILE_COLS;
    }
};

// f(row in the panel, column in it) for each element, a column's rows by the threads of one half warp.
template <typename F>
__device__ void each(int64_t rows, int64_t cols, F f) {
    const int col = threadIdx.x % TILE_COLS;
    if (col < cols)
        for (int row = threadIdx.x / TILE_COLS; row < rows; row += THREADS / TILE_COLS) f(row, col);
}

// The sum over the threads of a column, in a fixed order, for each of them.
__device__ inline float column_sum(float v, float* room) {
    __syncthreads();
    room[threadIdx.x] = v;
    __syncthreads();
    float sum = 0;
    for (int i = threadIdx.x % TILE_COLS; i < THREADS; i += TILE_COLS) sum += room[i];
    return sum;
}

__device__ inline void linear_out(const Program& program, const Phase& p, int64_t row, int64_t col, float v) {
    const bool stay = p.drop == 0 || stays(program, p, row, col);
    if (p.drop && p.drop_first) v = stay ? v * real(p.kept) : 0;
    v = activate(v, static_cast<int>(p.activation), real(p.slope));
    if (p.drop && !p.drop_first) v = stay ? v * real(p.kept) : 0;
    const int64_t group = row / p.group, to = p.out_row + group * p.out_step + row % p.group;
    program.at<bf16>(p.out)[to * p.cols + col] = from_float<bf16>(v);
}

__device__ inline void linear_tile(const Program& program, const Phase& p, int tile, const Room& room) {
    const Place place(p, tile);
    const Param& w = program.params[p.weight];
    const bf16* weight = program.at<bf16>(w.shadow) + place.col * p.depth;
    const bf16* a = program.at<bf16>(p.a) + p.a_row * p.depth;
    const float* biases = p.bias < 0 ? nullptr : program.at<float>(program.params[p.bias].value);
    auto bias = [&](int64_t col) { return biases ? load_fresh(biases + col) : 0.0f; };
    if (p.stats < 0) {
        const int64_t rows = p.rows - place.row < TILE_ROWS ? p.rows - place.row : TILE_ROWS;
        product<0>(room, room.panel, a + place.row * p.depth, rows, weight, p.depth, place.cols, p.depth);
        each(rows, place.cols, [&](int row, int col) {
            const float v = room.panel[row * TILE_COLS + col] + bias(place.col + col);
            linear_out(program, p, place.row + row, place.col + col, v);
        });
        return;
    }
    const int64_t col = place.col + threadIdx.x % TILE_COLS;
    const bool mine = col < p.cols;
    const float own = mine ? bias(col) : 0, scale = mine ? program.value(p.gamma, col, 1) : 0;
    const float shift = mine ? program.value(p.beta, col, 0) : 0;
    bf16* raw = program.at<bf16>(p.raw);
    for (int64_t group = 0; group < p.rows / p.group; ++group) {
        const int64_t first = group * p.group;
        for (int64_t row = 0; row < p.group; row += TILE_ROWS) {
            const int64_t rows = p.group - row < TILE_ROWS ? p.group - row : TILE_ROWS;
            product<0>(room, room.panel + row * TILE_COLS, a + (first + row) * p.depth, rows, weight, p.depth,
                       place.cols, p.depth);
        }
        float sum = 0, squares = 0;
        each(p.group, place.cols, [&](int row, int c) {
            float& v = room.panel[row * TILE_COLS + c];
            const bf16 stored = from_float<bf16>(v + own);
            raw[(p.raw_row + first + row) * p.cols + col] = stored;
            sum += v = to_float(stored);
        });
        const float mean = column_sum(sum, room.sums) / p.group;
        each(p.group, place.cols, [&](int row, int c) {
            const float off = room.panel[row * TILE_COLS + c] - mean;
            squares += off * off;
        });
        const float var = column_sum(squares, room.sums) / p.group, sharp = 1 / sqrtf(var + real(p.eps));
        if (mine && threadIdx.x < TILE_COLS) {
            float* stats = program.at<float>(p.stats) + (p.stats_row + group) * 2 * p.cols + col;
            stats[0] = mean, stats[p.cols] = sharp;
            if (p.mean >= 0) {
                float *m = program.at<float>(p.mean) + col, *v = program.at<float>(p.var) + col;
                *m = lerp(load_fresh(m), mean, real(p.momentum));
                *v = lerp(load_fresh(v), var * (static_cast<float>(p.group) / (p.group - 1)), real(p.momentum));
            }
        }
        each(p.group, place.cols, [&](int row, int c) {
            const float v = (room.panel[row * TILE_COLS + c] - mean) * sharp * scale + shift;
            linear_out(program, p, first + row, col, v);
        });
        __syncthreads();
    }
    if (tile == 0 && threadIdx.x == 0 && p.batches >= 0) {
        long long* batches = program.at<long long>(p.batches);
        *batches = load_fresh(batches) + p.rows / p.group;
    }
}

// What arrives at an element in front of the activation below, times that one's derivative.
__device__ inline float through(const Program& program, const Phase& p, int64_t row, int64_t col, float v) {
    if (p.scale >= 0) v *= load_fresh(program.at<float>(p.scale) + p.a_row + row);
    float saved = to_float(load_fresh(program.at<bf16>(p.b) + (p.b_row + row) * p.cols + col));
    if (p.drop) {
        const float kept = real(p.kept);
        v = stays(program, p, p.raw_row + row, col) ? v * kept : 0;
        if (!p.drop_first && kept != 0) saved /= kept;
    }
    return times_derivative(v, saved, static_cast<int>(p.activation), real(p.slope));
}

__device__ inline void back_tile(const Program& program, const Phase& p, int tile, const Room& room) {
    const Place place(p, tile);
    const bf16* weight = program.at<bf16>(program.params[p.weight].shadow) + place.col;
    const bf16* a = program.at<bf16>(p.a) + p.a_row * p.depth;
    bf16* out = program.at<bf16>(p.out);
    if (p.stats < 0) {
        const int64_t rows = p.rows - place.row < TILE_ROWS ? p.rows - place.row : TILE_ROWS;
        product<1>(room, room.panel, a + place.row * p.depth, rows, weight, p.cols, place.cols, p.depth);
        each(rows, place.cols, [&](int row, int c) {
            const int64_t at = place.row + row, col = place.col + c;
            const float v = through(program, p, at, col, room.panel[row * TILE_COLS + c]);
            out[(p.out_row + at) * p.cols + col] = from_float<bf16>(v);
        });
        return;
    }
    const int64_t col = place.col + threadIdx.x % TILE_COLS;
    const bool mine = col < p.cols;
    const float scale = mine ? program.value(p.gamma, col, 1) : 0;
    float to_gamma = 0, to_beta = 0;
    for (int64_t group = 0; group < p.rows / p.group; ++group) {
        const int64_t first = group * p.group;
        for (int64_t row = 0; row < p.group; row += TILE_ROWS) {
            const int64_t rows = p.group - row < TILE_ROWS ? p.group - row : TILE_ROWS;
            product<1>(room, room.panel + row * TILE_COLS, a + (first + row) * p.depth, rows, weight, p.cols,
                       place.cols, p.depth);
        }
        const float* stats = program.at<float>(p.stats) + (p.stats_row + group) * 2 * p.cols + col;
        const float mean = mine ? load_fresh(stats) : 0, sharp = mine ? load_fresh(stats + p.cols) : 0;
        const bf16* raw = program.at<bf16>(p.raw) + (p.raw_row + first) * p.cols + col;
        float sum = 0, along = 0;
        each(p.group, place.cols, [&](int row, int c) {
            float& v = room.panel[row * TILE_COLS + c];
            v = through(program, p, first + row, col, v);
            sum += v, along += v * ((to_float(load_fresh(raw + row * p.cols)) - mean) * sharp);
        });
        sum = column_sum(sum, room.sums), along = column_sum(along, room.sums);
        to_beta += sum, to_gamma += along;
        each(p.group, place.cols, [&](int row, int c) {
            const float x = (to_float(load_fresh(raw + row * p.cols)) - mean) * sharp;
            const float v = (room.panel[row * TILE_COLS + c] - sum / p.group - x * (along / p.group)) * sharp * scale;
            out[(p.out_row + first + row) * p.cols + col] = from_float<bf16>(v);
        });
        __syncthreads();
    }
    if (p.moves && threadIdx.x < TILE_COLS) {
        const int64_t at[1] = {mine ? col : NOWHERE};
        if (p.gamma >= 0) Moved(program, p.gamma, p.moves).move<1>(at, {to_gamma});
        if (p.beta >= 0) Moved(program, p.beta, p.moves).move<1>(at, {to_beta});
    }
}

__device__ inline void weight_tile(const Program& program, const Phase& p, int tile, const Room& room) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, strip = warp % 4, half = warp / 4;
    const int64_t across = (p.depth + TILE_WIDE - 1) / TILE_WIDE;
    const int64_t n = tile / across * TILE_WIDE, k = tile % across * TILE_WIDE;
    const bf16* a = program.at<bf16>(p.a) + p.a_row * p.cols + n;
    const bf16* b = program.at<bf16>(p.b) + p.b_row * p.depth + k;
    const int turns = static_cast<int>((p.rows + TILE_ROWS - 1) / TILE_ROWS);
    float sum[4][4] = {}, bias = 0;
    auto fetch = [&](int turn) {
        bf16* to = room.turns + turn % 2 * TURN;
        const int64_t row = static_cast<int64_t>(turn) * TILE_ROWS;
        bring<TILE_ROWS, TILE_WIDE>(to, PITCH_W, a + row * p.cols, p.cols, p.rows - row, p.cols - n);
        bring<TILE_ROWS, TILE_WIDE>(to + TILE_ROWS * PITCH_W, PITCH_W, b + row * p.depth, p.depth, p.rows - row,
                                    p.depth - k);
        copy_commit();
    };
    fetch(0);
    for (int turn = 0; turn < turns; ++turn) {
        if (turn + 1 < turns) {
            fetch(turn + 1);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        const bf16* left = room.turns + turn % 2 * TURN;
        const bf16* right = left + TILE_ROWS * PITCH_W;
        if (k == 0 && threadIdx.x < TILE_WIDE)
            for (int row = 0; row < TILE_ROWS; ++row) bias += to_float(left[row * PITCH_W + threadIdx.x]);
        const int tile8 = lane / 8, line = lane % 8;
#pragma unroll
        for (int m = 0; m < TILE_ROWS; m += 16) {
            uint32_t x[4], y[4];
            load_matrices_transposed(x, left + (m + tile8 / 2 * 8 + line) * PITCH_W + strip * 16 + tile8 % 2 * 8);
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                load_matrices_transposed(
                    y, right + (m + tile8 % 2 * 8 + line) * PITCH_W + half * 32 + j * 16 + tile8 / 2 * 8);
                const uint32_t first[2] = {y[0], y[1]}, second[2] = {y[2], y[3]};
                mma<bf16>(sum[2 * j], x, first);
                mma<bf16>(sum[2 * j + 1], x, second);
            }
        }
        __syncthreads();
    }
    for (int j = 0; j < 4; ++j)
        for (int i = 0; i < 4; ++i)
            room.panel[(strip * 16 + lane / 4 + i / 2 * 8) * TILE_WIDE + half * 32 + j * 8 + lane % 4 * 2 + i % 2] =
                sum[j][i];
    __syncthreads();
    if (p.bias >= 0 && k == 0 && threadIdx.x < TILE_WIDE) {
        const int64_t at[1] = {n + threadIdx.x < p.cols ? n + static_cast<int64_t>(threadIdx.x) : NOWHERE};
        Moved(program, p.bias, p.moves).move<1>(at, {p.still ? 0.0f : bias});
    }
    const Moved moved(program, p.weight, p.moves);
    constexpr int AT_ONCE = 8;
    for (int begin = 0; begin < TILE_WIDE * TILE_WIDE; begin += AT_ONCE * THREADS) {
        int64_t places[AT_ONCE];
        float g[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            const int e = begin + i * THREADS + threadIdx.x;
            const int64_t row = n + e / TILE_WIDE, col = k + e % TILE_WIDE;
            places[i] = row < p.cols && col < p.depth ? row * p.depth + col : NOWHERE;
            g[i] = room.panel[e];
        }
        moved.move(places, g);
    }
}
