// mlp_step: whole training iterations of a fully connected GAN in one cooperative launch, or of many in an ordinary
// one.
//
// The kernel interprets the table of phases that fastgan/ops/mlp_step_plan.py writes: phases of one stage are shared
// out tile by tile among the blocks, and a barrier of the grid ends each stage. fastgan/ops/mlp_step_interpreter.py
// does the same in PyTorch and says what a phase's fields mean. One or many iterations a launch: the clock, the
// schedules and the sums of metrics lie on the device and move here. Many GANs of a small kind go one to a block, each
// with a table of its own and no barrier of the grid: its weights stream from L2, and blocks of a launch have nothing
// to do with each other.
//
// Contract. Activations, their gradients and shadows of weights are bf16; weights, biases, states of optimisers,
// averages, statistics and metrics fp32; clock and counts int64; data uint8 or fp32, all dense. Products have bf16
// operands and fp32 sums, activations are rounded as they are stored. Widths and batch: any up to what shared memory
// has for a panel of ``panel_rows`` rows (those of a group behind a norm, up to a multiple of 64 and at least 256), 16
// columns of fp32. All that one block writes and another reads goes through L2. Everything is summed in a fixed order,
// whatever the grid: the same table and the same state give the same bits.
//
// Registers a thread at most (nvcc 13.0: 207 on sm_80, 209 on sm_90a, 213 on sm_100a); nothing spilled:
//
//     kernel     213
//
// Shared memory: 1.5 KB, and dynamic 46 KB of operands and 64 bytes for each row of the panel, so 62 KB to 110 KB. One
// block to an SM.

#include "grid.cuh"
#include "launch.cuh"
#include "mlp_step_optimizer.cuh"
#include "mlp_step_products.cuh"
#include "mlp_step_table.cuh"
#include "streams.cuh"

namespace {

constexpr int REAL_ROWS = 8;  // of a tile: one a warp
constexpr float SMALLEST_SEED = 1e-20f;

__device__ void real_tile(const Program& program, const Phase& p, int tile) {
    const int row = tile * REAL_ROWS + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= p.rows) return;
    const int64_t count = load_fresh(program.at<long long>(p.clock)) * p.sites + p.site, batches = p.total / p.rows;
    const int position = static_cast<int>(count % batches * p.rows) + row;
    const int64_t sample = permuted(position, static_cast<int>(p.total), p.seed, count / batches);
    const bool turned = p.flip && philox(p.seed, FOR_FLIP, count, row).w[0] >> 31;
    const auto* bytes = program.at<uint8_t>(p.a) + sample * p.cols;
    const auto* numbers = program.at<float>(p.a) + sample * p.cols;
    bf16* out = program.at<bf16>(p.out) + (p.out_row + row) * p.cols;
    for (int64_t col = lane; col < p.cols; col += 32) {
        const int64_t from = turned ? col + p.flip - 1 - 2 * (col % p.flip) : col;
        const float v = p.kind == 0 ? static_cast<float>(bytes[from]) / 127.5f - 1 : numbers[from];
        out[col] = from_float<bf16>(v);
    }
}

__device__ void latent_tile(const Program& program, const Phase& p, int tile) {
    const int64_t count = load_fresh(program.at<long long>(p.clock)) * p.sites + p.site, size = p.rows * p.cols;
    bf16* out = program.at<bf16>(p.out) + p.out_row * p.cols;
    for (int64_t four = threadIdx.x + static_cast<int64_t>(tile) * (STRIP / 4);
         four < (tile + int64_t{1}) * (STRIP / 4) && 4 * four < size; four += THREADS) {
        const Words words = philox(p.seed, FOR_LATENT, count, four);
        float v[4];
        for (int i = 0; i < 4; i += 2) {
            const float2 pair = normals(words.w[i], words.w[i + 1]);
            v[i] = pair.x, v[i + 1] = pair.y;
        }
        for (int i = 0; i < 4 && 4 * four + i < size; ++i) {
            if (p.kind == 1) v[i] = static_cast<float>(words.w[i] >> 8) * 1.1920928955078125e-07f - 1;
            if (p.kind == 2) v[i] = words.w[i] >> 31 ? 1.0f : -1.0f;
            out[4 * four + i] = from_float<bf16>(v[i]);
        }
    }
}

__device__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }
__device__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }

// One logit's term and slope, for a label of 0 or 1.
__device__ float2 term(int64_t how, float x, float label) {
    const float side = 1 - 2 * label;
    if (how == CROSS_ENTROPY) return make_float2(softplus(side * x), side * sigmoid(side * x));
    if (how == LEAST_SQUARES) return make_float2(0.5f * (x - label) * (x - label), x - label);
    if (how == HINGE) return make_float2(fmaxf(1 + side * x, 0.0f), 1 + side * x <= 0 ? 0 : side);
    return make_float2(side * x, side);
}

// The critic's last layer, the loss, and the slope of every logit: one tile, by one block.
__device__ void loss_tile(const Program& program, const Phase& p, const Room& room) {
    const bf16* a = program.at<bf16>(p.a) + p.a_row * p.depth;
    const bf16* weight = program.at<bf16>(program.params[p.weight].shadow);
    const float bias = program.value(p.bias, 0, 0);
    float *logits = room.panel, *seen = program.at<float>(p.seen);
    for (int64_t row = threadIdx.x / 32; row < p.rows; row += WARPS) {
        float sum = 0;
        for (int64_t k = threadIdx.x % 32; k < p.depth; k += 32)
            sum += to_float(load_fresh(a + row * p.depth + k)) * to_float(load_fresh(weight + k));
        for (int by = 16; by > 0; by /= 2) sum += __shfl_xor_sync(~0u, sum, by);
        if (threadIdx.x % 32 == 0) logits[row] = to_float(from_float<bf16>(sum + bias));
    }
    __syncthreads();
    bf16* out = program.at<bf16>(p.out);
    const int64_t reals = p.group, fakes = p.rows - reals;
    const float label = real(p.label), sign = real(p.sign);
    float loss[2] = {}, score[2] = {}, theirs = 0;
    for (int64_t row = threadIdx.x; row < p.rows; row += THREADS) {
        const float x = logits[row];
        const int fake = row >= reals;
        float slope = 0;
        if (p.sides & 1) {
            const float2 own = term(p.term, x, fake ? 0.0f : 1.0f);
            loss[fake] += own.x, slope = own.y / (fake ? fakes : reals);
            score[fake] += p.critic ? x : sigmoid(x);
        }
        if ((p.sides & 2) && fake) {
            const float2 other = term(p.other, x, label);
            const float wanted = sign * other.y / fakes;
            theirs += other.x;
            if (p.sides & 1) {
                slope = to_float(from_float<bf16>(fabsf(slope) < SMALLEST_SEED ? SMALLEST_SEED : slope));
                program.at<float>(p.scale)[row] = wanted / slope;
            } else {
                slope = wanted;
            }
        }
        out[row] = from_float<bf16>(slope);
    }
    for (int i = 0; i < 2; ++i) loss[i] = block_sum(loss[i], room.sums), score[i] = block_sum(score[i], room.sums);
    theirs = block_sum(theirs, room.sums);
    if (threadIdx.x == 0) {
        if (p.sides & 1) {
            seen[p.at * 4] = loss[0] / reals + loss[1] / fakes;
            seen[p.at * 4 + 2] = score[0] / reals, seen[p.at * 4 + 3] = score[1] / fakes;
        }
        if (p.sides & 2) seen[p.total * 4 + 1] = sign * (theirs / fakes);
    }
}

__device__ double half_cosine(double p) {  // cos(pi p / 2)
#ifdef __CUDACC__
    return cospi(0.5 * p);
#else
    return cos(1.5707963267948966 * p);
#endif
}

// One row of schedules (kind, first, last, begin, length) at a clock.
__device__ double scheduled(const double* row, double clock) {
    const double kind = row[0], first = row[1], last = row[2], age = clock - row[3], length = row[4];
    if (kind == 0) return first;
    if (age >= length) return last;
    if (!(age > 0)) return first;
    const double p = age / length, c = half_cosine(p);
    if (kind == 1) return first + (last - first) * p;
    return kind == 2 ? last - (last - first) * c * c : first * exp(p * log(last / first));
}

__device__ void tick_tile(const Program& program, const Phase& p) {
    long long* clock = program.at<long long>(p.clock);
    const long long now = load_fresh(clock) + 1;
    __syncthreads();
    if (threadIdx.x == 0) {
        const float* seen = program.at<float>(p.seen);
        float* sums = program.at<float>(p.sums);
        long long* counts = program.at<long long>(p.counts);
        for (int what = 0; what < 4; ++what) {  // loss of D, loss of G, scores of real and fake
            float sum = load_fresh(sums + what);
            long long count = load_fresh(counts + what);
            for (int64_t at = what == 1 ? p.rows : 0; at < (what == 1 ? p.rows + 1 : p.rows); ++at) {
                const float v = load_fresh(seen + at * 4 + what);
                if (p.finite && !(fabsf(v) <= 3.402823466e38f)) continue;
                sum += v, ++count;
            }
            sums[what] = sum, counts[what] = count;
        }
        *clock = now;
    }
    if (p.table >= 0 && threadIdx.x < p.cols)
        program.at<float>(p.values)[threadIdx.x] =
            static_cast<float>(scheduled(program.at<double>(p.table) + threadIdx.x * 5, static_cast<double>(now)));
}

__device__ void mend_tile(const Program& program, const Phase& p) {
    float *buffer = program.at<float>(p.a), *kept = program.at<float>(p.out);
    for (int64_t i = threadIdx.x; i < p.cols; i += THREADS) {
        const float v = load_fresh(buffer + i);
        if (fabsf(v) <= 3.402823466e38f)
            kept[i] = v;
        else
            buffer[i] = load_fresh(kept + i);
    }
}

__device__ void perform(const Program& program, const Phase& p, int tile, const Room& room) {
    switch (p.op) {
        case REAL: return real_tile(program, p, tile);
        case LATENT: return latent_tile(program, p, tile);
        case LINEAR: return linear_tile(program, p, tile, room);
        case LOSS: return loss_tile(program, p, room);
        case BACK: return back_tile(program, p, tile, room);
        case WEIGHT: return weight_tile(program, p, tile, room);
        case RATE: return rate_phase(program, p, room.sums);
        case NORM: return norm_tile(program, p, tile, room.sums);
        case STEP: return step_tile(program, p, tile);
        case TICK: return tick_tile(program, p);
        case MEND: return mend_tile(program, p);
    }
}

// A block's share of a stage; the first row of the next.
__device__ int stage(const Program& program, Phase& phase, int first, int share, int shares, const Room& room) {
    int tiles = 0, end = first;
    for (; end < program.count && program.phases[end].stage == program.phases[first].stage; ++end)
        tiles += static_cast<int>(program.phases[end].tiles);
    int row = first, before = 0, held = -1;  // of the phase at hand: its row, the tiles in front of it
    for (int tile = share; tile < tiles; tile += shares) {
        while (tile - before >= program.phases[row].tiles) before += static_cast<int>(program.phases[row++].tiles);
        __syncthreads();
        if (row != held && threadIdx.x < PHASE_FIELDS)
            reinterpret_cast<int64_t*>(&phase)[threadIdx.x] =
                reinterpret_cast<const int64_t*>(program.phases + row)[threadIdx.x];
        held = row;
        __syncthreads();
        perform(program, phase, tile - before, room);
    }
    return end;
}

// One GAN to the whole grid, or, where ``members`` is given, to a block: then a block waits for nobody but itself.
__global__ void __launch_bounds__(THREADS, 1)
mlp_step_kernel(Program one, const Program* members, int count, unsigned* barrier, int iterations) {
    DYNAMIC_SHARED(memory);
    SHARED(program, Program);
    SHARED(phase, Phase);
    SHARED(sums, float[THREADS]);
    const Room room{reinterpret_cast<bf16*>(memory), reinterpret_cast<float*>(memory + 2 * TURN * sizeof(bf16)), sums};
    const int share = members ? 0 : blockIdx.x, shares = members ? 1 : gridDim.x;
    for (int member = members ? blockIdx.x : 0; member < count; member += members ? gridDim.x : 1) {
        if (threadIdx.x == 0) program = members ? members[member] : one;
        __syncthreads();
        for (int iteration = 0; iteration < iterations; ++iteration) {
            for (int first = 0, end; first < program.count; first = end) {
                end = stage(program, phase, first, share, shares, room);
                if (members)
                    __syncthreads();
                else
                    grid_barrier(barrier);
            }
        }
    }
}

int shared_bytes(int64_t panel_rows) {
    const int64_t whole = (panel_rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;  // a product writes 64 rows at a time
    const int64_t rows = whole < 256 ? 256 : whole;
    return static_cast<int>(2 * TURN * sizeof(bf16) + rows * TILE_COLS * sizeof(float));
}

}  // namespace

extern "C" {

// ``blocks`` 0: as many as are resident together. The widths of both tables' rows come along, to be refused where they
// are others than these; ``barrier`` is an unsigned that was 0 once; ``panel_rows``: the most rows behind a norm.
int fastgan_mlp_step(const int64_t* phases, const int64_t* params, const int64_t* slots, const int64_t* numbers,
                     float* rates, void* base, unsigned* barrier, int64_t count, int64_t phase_fields,
                     int64_t param_fields, int64_t panel_rows, int64_t blocks, int64_t iterations, void* stream) {
    if (phase_fields != PHASE_FIELDS || param_fields != PARAM_FIELDS) return cudaErrorInvalidValue;
    const int bytes = shared_bytes(panel_rows);
    int most = 0;
    if (cudaError_t error = resident_blocks(most, mlp_step_kernel, THREADS, bytes)) return error;
    if (blocks == 0) blocks = most;
    if (most == 0 || blocks > most) return cudaErrorInvalidConfiguration;
    const Program program{
        reinterpret_cast<const Phase*>(phases), reinterpret_cast<const Param*>(params), slots, numbers, rates,
        reinterpret_cast<uintptr_t>(base), count};
    const Where where{dim3(static_cast<unsigned>(blocks)), dim3(THREADS), bytes, static_cast<cudaStream_t>(stream)};
    return launch_cooperative(mlp_step_kernel, where, program, nullptr, 1, barrier, static_cast<int>(iterations));
}

// Members, each a block's: ``programs`` [members, 7] are their Programs as the device has them. ``blocks`` 0: one each.
int fastgan_mlp_step_members(const int64_t* programs, int64_t members, int64_t program_fields, int64_t phase_fields,
                             int64_t param_fields, int64_t panel_rows, int64_t blocks, int64_t iterations,
                             void* stream) {
    if (program_fields != PROGRAM_FIELDS || phase_fields != PHASE_FIELDS || param_fields != PARAM_FIELDS)
        return cudaErrorInvalidValue;
    if (blocks == 0) blocks = members;
    const Where where{dim3(static_cast<unsigned>(blocks)), dim3(THREADS), shared_bytes(panel_rows),
                      static_cast<cudaStream_t>(stream)};
    return launch(mlp_step_kernel, where, Program{}, reinterpret_cast<const Program*>(programs), members, nullptr,
                  iterations);
}
}
