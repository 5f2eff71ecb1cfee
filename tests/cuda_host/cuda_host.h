// CUDA's words for a C++ compiler: what csrc/*.cu are compiled against where their kernels run on the CPU, under test.
//
// Offered: __global__ and its kin; threadIdx, blockIdx, blockDim, gridDim; SHARED and DYNAMIC_SHARED (platform.cuh);
// __syncthreads and its votes, __syncwarp, __shfl_*_sync, __ballot/any/all_sync, __reduce_add_sync; atomics; mma,
// load_matrices, copy_async (matrix.cuh); load_acquire, add_release, while_waiting, load_fresh (grid.cuh); bf16, fp16;
// a few intrinsics; cudaMemsetAsync. What is missing does not compile: add it here.
//
// How it runs (cuda_host.cpp): one fibre per thread. A fibre runs until it waits, so that a seed decides whose turn it
// is at barriers, shuffles and, for random seeds, at atomics. Seed 0: the lowest thread and block first. Seed 1: the
// highest. Others: by lot, with up to three blocks at a time in an ordinary launch. A cooperative one mixes all blocks.
//
// Stricter than a GPU: a barrier is one line of code that all threads of the block (all lanes of the mask) reach, those
// that have returned too; a wait that cannot end is reported with who waits where. Shared memory starts as NaN, each
// array between red zones. A copy_async writes NaN at once and its bytes only when it is waited for. A fault ends the
// process.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

struct uint3 { unsigned x, y, z; };
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
inline const char* cudaGetErrorString(cudaError_t e) { return e ? "a launch that no card would take" : "no error"; }
inline cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t) { return std::memset(p, v, n), cudaSuccess; }

extern uint3 threadIdx, blockIdx;  // of the fibre that runs
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#define HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()  // the caller's
#define AT file, line

namespace cuda_host {

cudaError_t run(dim3 blocks, dim3 threads, int shared_bytes, bool cooperative, std::function<void()> kernel);
void meet(const char* file, int line);  // all threads of the block
void take_turns();                      // at an atomic: perhaps another fibre goes first
void spin(const char* file, int line);  // another fibre must write first what this one polls for
[[noreturn]] void fail(const char* file, int line, const char* what);
void* shared_array(const void* key, size_t bytes);
int vote(int mine, const char* file, int line);  // how many threads of the block say yes

// All lanes of the mask put down up to 32 bytes each and see those of all 32: slots[lane], whole until their next
// meeting.
struct Slot { alignas(8) unsigned char bytes[32]; };
const Slot* exchange(unsigned mask, const void* mine, size_t bytes, const char* file, int line);

void copy_later(void* to, const void* from, const char* file, int line);
void commit_copies();
void wait_for_copies(int left);

inline int lane() { return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32; }
template <typename T>
T read(const Slot& slot) {
    T v;
    return std::memcpy(&v, slot.bytes, sizeof v), v;
}
template <typename T>
T shuffled(unsigned mask, T v, int from, const char* file, int line) {
    static_assert(sizeof(T) <= 8, "a shuffle takes 8 bytes at most");
    if (!(mask >> from & 1)) fail(AT, "a shuffle reads a lane outside its mask");
    return read<T>(exchange(mask, &v, sizeof v, AT)[from]);
}
float half_to_float(uint16_t bits);
uint16_t float_to_half(float v);

}  // namespace cuda_host

#define SHARED(name, ...)                                                          \
    static const char name##_key = 0; /* its address tells the kernel's arrays apart */ \
    auto& name =                                                                   \
        *static_cast<std::add_pointer_t<__VA_ARGS__>>(cuda_host::shared_array(&name##_key, sizeof(__VA_ARGS__)))
#define DYNAMIC_SHARED(name) auto* name = static_cast<unsigned char*>(cuda_host::shared_array(nullptr, 0))

// Numbers of 16 bits.
struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };

template <typename To, typename From>
To same_bits(From v) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To r;
    return std::memcpy(&r, &v, sizeof r), r;
}
inline float to_float(float v) { return v; }
inline float to_float(bf16 v) { return same_bits<float>(static_cast<uint32_t>(v.bits) << 16); }
inline float to_float(fp16 v) { return cuda_host::half_to_float(v.bits); }
template <typename T>
T from_float(float v);
template <>
inline float from_float<float>(float v) { return v; }
template <>
inline bf16 from_float<bf16>(float v) {
    const uint32_t bits = same_bits<uint32_t>(v);
    if (v != v) return {static_cast<uint16_t>(0x7fff)};
    return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline fp16 from_float<fp16>(float v) { return {cuda_host::float_to_half(v)}; }

// Barriers, votes and shuffles.
inline void __syncthreads(HERE) { cuda_host::meet(AT); }
inline int __syncthreads_count(int mine, HERE) { return cuda_host::vote(mine != 0, AT); }
inline int __syncthreads_or(int mine, HERE) { return cuda_host::vote(mine != 0, AT) > 0; }
inline int __syncthreads_and(int mine, HERE) { return cuda_host::vote(mine == 0, AT) == 0; }
inline void __syncwarp(unsigned mask = ~0u, HERE) { cuda_host::exchange(mask, nullptr, 0, AT); }

template <typename T>
T __shfl_sync(unsigned mask, T v, int from, int width = 32, HERE) {
    return cuda_host::shuffled(mask, v, (cuda_host::lane() & ~(width - 1)) + (from & (width - 1)), AT);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T v, int other, int width = 32, HERE) {
    const int me = cuda_host::lane(), from = me ^ other;
    return cuda_host::shuffled(mask, v, from / width > me / width ? me : from, AT);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32, HERE) {
    const int me = cuda_host::lane(), from = me + static_cast<int>(by);
    return cuda_host::shuffled(mask, v, from / width == me / width ? from : me, AT);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32, HERE) {
    const int me = cuda_host::lane(), from = me - static_cast<int>(by);
    return cuda_host::shuffled(mask, v, from >= (me & ~(width - 1)) ? from : me, AT);
}
inline unsigned __ballot_sync(unsigned mask, int mine, HERE) {
    const int yes = mine != 0;
    const cuda_host::Slot* slots = cuda_host::exchange(mask, &yes, sizeof yes, AT);
    unsigned all = 0;
    for (int i = 0; i < 32; ++i) all |= (mask >> i & 1 && cuda_host::read<int>(slots[i]) ? 1u : 0u) << i;
    return all;
}
inline int __any_sync(unsigned mask, int mine, HERE) { return __ballot_sync(mask, mine, AT) != 0; }
inline int __all_sync(unsigned mask, int mine, HERE) { return __ballot_sync(mask, !mine, AT) == 0; }
template <typename T>
T __reduce_add_sync(unsigned mask, T v, HERE) {
    const cuda_host::Slot* slots = cuda_host::exchange(mask, &v, sizeof v, AT);
    T sum = 0;
    for (int i = 0; i < 32; ++i) sum += mask >> i & 1 ? cuda_host::read<T>(slots[i]) : T{0};
    return sum;
}

// Atomics: whole, since a fibre is interrupted only where it waits.
template <typename T, typename Change>
T atomically(T* p, Change change) {
    cuda_host::take_turns();
    const T before = *p;
    *p = change(before);
    return before;
}
template <typename T>
using Same = std::common_type_t<T>;  // the argument is converted to what the pointer points to
template <typename T>
T atomicAdd(T* p, Same<T> v) { return atomically(p, [=](T old) { return static_cast<T>(old + v); }); }
template <typename T>
T atomicMax(T* p, Same<T> v) { return atomically(p, [=](T old) { return std::max(old, v); }); }
template <typename T>
T atomicMin(T* p, Same<T> v) { return atomically(p, [=](T old) { return std::min(old, v); }); }
template <typename T>
T atomicOr(T* p, Same<T> v) { return atomically(p, [=](T old) { return old | v; }); }
template <typename T>
T atomicAnd(T* p, Same<T> v) { return atomically(p, [=](T old) { return old & v; }); }
template <typename T>
T atomicExch(T* p, Same<T> v) { return atomically(p, [=](T) { return v; }); }
template <typename T>
T atomicCAS(T* p, Same<T> expected, Same<T> v) {
    return atomically(p, [=](T old) { return old == expected ? v : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned most) {
    return atomically(p, [=](unsigned old) { return old >= most ? 0 : old + 1; });
}

inline unsigned load_acquire(const unsigned* word) { return cuda_host::take_turns(), *word; }
inline unsigned add_release(unsigned* word, unsigned v) { return atomicAdd(word, v); }
inline void while_waiting(HERE) { cuda_host::spin(AT); }
inline void __threadfence() {}
inline void __threadfence_block() {}
template <typename T>
T load_fresh(const T* p) { return *p; }
template <typename T>
T __ldg(const T* p) { return *p; }
template <typename T>
T __ldcg(const T* p) { return *p; }
template <typename T>
void __stcg(T* p, Same<T> v) { *p = v; }

// The matrix instruction and the loads around it: csrc/matrix.cuh has the layouts.
namespace cuda_host {
template <typename T>
float half_of(uint32_t both, int high) {
    return to_float(same_bits<T>(static_cast<uint16_t>(high ? both >> 16 : both)));
}
template <bool TRANSPOSED>
void load_matrices(uint32_t (&r)[4], const void* row, const char* file, int line) {
    if (reinterpret_cast<uintptr_t>(row) % 16) fail(AT, "load_matrices takes rows that are aligned to 16 bytes");
    const Slot* slots = exchange(~0u, row, 16, AT);
    const int group = lane() / 4, pair = lane() % 4 * 2;
    for (int i = 0; i < 4; ++i) {
        uint16_t halves[2];
        for (int h = 0; h < 2; ++h) {
            const int at = TRANSPOSED ? group : pair + h;
            std::memcpy(&halves[h], slots[8 * i + (TRANSPOSED ? pair + h : group)].bytes + 2 * at, 2);
        }
        r[i] = halves[0] | static_cast<uint32_t>(halves[1]) << 16;
    }
}
}  // namespace cuda_host

template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], HERE) {
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const cuda_host::Slot* slots = cuda_host::exchange(~0u, mine, sizeof mine, AT);
    const int group = cuda_host::lane() / 4, pair = cuda_host::lane() % 4 * 2;
    for (int k = 0; k < 16; ++k) {
        const int quarter = k % 8 / 2, upper = k / 8;
        for (int i = 0; i < 4; ++i) {
            uint32_t left, right;  // a (group + 8 (i / 2), k) and b (k, pair + i % 2)
            std::memcpy(&left, slots[group * 4 + quarter].bytes + 4 * (2 * upper + i / 2), 4);
            std::memcpy(&right, slots[(pair + i % 2) * 4 + quarter].bytes + 4 * (4 + upper), 4);
            d[i] += cuda_host::half_of<T>(left, k % 2) * cuda_host::half_of<T>(right, k % 2);
        }
    }
}
inline void load_matrices(uint32_t (&r)[4], const void* row, HERE) { cuda_host::load_matrices<false>(r, row, AT); }
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row, HERE) {
    cuda_host::load_matrices<true>(r, row, AT);
}
inline void copy_async(void* shared, const void* global, HERE) { cuda_host::copy_later(shared, global, AT); }
inline void copy_commit() { cuda_host::commit_copies(); }
template <int LEFT>
void copy_wait() { cuda_host::wait_for_copies(LEFT); }

// Intrinsics: exact where the GPU's are approximate.
using std::max;
using std::min;
inline float __expf(float v) { return std::exp(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
inline unsigned __float_as_uint(float v) { return same_bits<unsigned>(v); }
inline float __uint_as_float(unsigned v) { return same_bits<float>(v); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32); }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
