// The scheduler behind cuda_host.h: fibres, their meetings, shared memory and late copies.

#include "cuda_host.h"
#include "cuda_host_context.h"

#include <sanitizer/asan_interface.h>
#include <sys/mman.h>

#include <deque>
#include <map>
#include <memory>
#include <queue>
#include <random>
#include <string>
#include <vector>

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_host {
namespace {

constexpr int MOST_SHARED = 227 * 1024, MOST_BYTES_A_COPY = 16;

enum class State { ready, waiting, spinning, done };

struct Free {
    void operator()(void* p) const { std::free(p); }
};

struct Block {
    uint3 index;
    std::map<const void*, std::unique_ptr<void, Free>> shared;  // by the address of an array's key; nullptr: dynamic
    size_t shared_bytes = 0;
};

struct Copy {
    void* to;
    unsigned char bytes[MOST_BYTES_A_COPY];
};

struct Fibre {
    Context context;
    void* fake_stack = nullptr;
    unsigned char* stack;
    Block* block;
    uint3 thread;
    int number, lane, warp;  // number: of the thread in its block; warp: among all that are resident
    State state = State::ready;
    const char* file = nullptr;  // where it waits
    int line = 0;
    std::deque<std::vector<Copy>> copies;  // groups in flight; the last is still open
};

// Where a set of fibres waits for the last of them. Slots alternate, so that a fast one does not overwrite what a slow
// one has yet to read: nobody comes to the meeting after the next before all have left this one.
struct Meeting {
    std::vector<Fibre*> arrived;
    Slot slots[2][32];
    int votes[2] = {0, 0};
    int turn = 0;
};

struct Launch {
    std::vector<Fibre> fibres;
    std::vector<Block> blocks;
    std::map<Block*, Meeting> of_blocks;
    std::map<std::pair<int, unsigned>, Meeting> of_warps;  // by warp and mask
    std::priority_queue<std::pair<long, size_t>> ready;    // by rank; which fibre
    std::vector<size_t> spinning;
    int idle_rounds = 0;  // since another fibre than a spinning one ran
    int shared_bytes;
    const std::function<void()>* kernel;
};

Launch* now = nullptr;
Fibre* self = nullptr;
Context scheduler;
void* scheduler_stack = nullptr;
const void* scheduler_bottom = nullptr;
size_t scheduler_size = 0;
std::vector<unsigned char*> stacks;
uint64_t seed = 0;
std::mt19937_64 lot;

// AddressSanitizer is told of every change of stacks; the extension's tests on the host do without it.
#ifdef __SANITIZE_ADDRESS__
constexpr auto leaving = __sanitizer_start_switch_fiber;
constexpr auto arrived = __sanitizer_finish_switch_fiber;
#else
void leaving(void**, const void*, size_t) {}
void arrived(void*, const void**, size_t*) {}
#endif

void resume(Fibre& fibre) {
    self = &fibre;
    threadIdx = fibre.thread, blockIdx = fibre.block->index;
    leaving(&scheduler_stack, fibre.stack, STACK);
    change(scheduler, fibre.context);
    arrived(scheduler_stack, nullptr, nullptr);
}

void pause() {
    Fibre& me = *self;
    leaving(me.state == State::done ? nullptr : &me.fake_stack, scheduler_bottom, scheduler_size);
    change(me.context, scheduler);
    arrived(me.fake_stack, &scheduler_bottom, &scheduler_size);
}

void enter() {
    arrived(nullptr, &scheduler_bottom, &scheduler_size);
    (*now->kernel)();
    wait_for_copies(0);
    self->state = State::done;
    pause();
}

void make_ready(Fibre& fibre) {
    const size_t which = &fibre - now->fibres.data();
    fibre.state = State::ready;
    const long last = static_cast<long>(which);
    now->ready.emplace(seed == 0 ? -last : seed == 1 ? last : static_cast<long>(lot() >> 1), which);
}

void wait_at(const char* file, int line, State state) {
    self->state = state, self->file = file, self->line = line;
    pause();
}

// Say who waits where, and end.
[[noreturn]] void report_stuck(const std::string& what) {
    std::map<std::string, std::pair<int, int>> groups;  // how many, and the first of them
    for (const Fibre& fibre : now->fibres) {
        const uint3 b = fibre.block->index;
        const auto number = [](unsigned v) { return std::to_string(v); };
        std::string text = "block (" + number(b.x) + ", " + number(b.y) + ", " + number(b.z) + "): ";
        if (fibre.state == State::done || fibre.state == State::ready)
            text += fibre.state == State::done ? "have returned" : "are on their way";
        else
            text += (fibre.state == State::spinning ? "poll at " : "wait at ") + std::string(fibre.file) + ":" +
                    std::to_string(fibre.line);
        ++groups.try_emplace(text, 0, fibre.number).first->second.first;
    }
    std::fprintf(stderr, "cuda_host: %s\n", what.c_str());
    for (const auto& [text, who] : groups)
        std::fprintf(stderr, "  %s: %d threads, the first is %d\n", text.c_str(), who.first, who.second);
    std::fflush(stderr);
    std::_Exit(70);
}

// Join the others; the last to come lets all go on. Returns which of the two sets of slots this meeting used.
int join(Meeting& meeting, int expected, const char* file, int line) {
    const int turn = meeting.turn;
    self->file = file, self->line = line, self->state = State::waiting;
    meeting.arrived.push_back(self);
    if (static_cast<int>(meeting.arrived.size()) == expected) {
        for (const Fibre* other : meeting.arrived)
            if (other->line != line || std::strcmp(other->file, file) != 0)
                report_stuck("threads meet at different barriers");
        for (Fibre* other : meeting.arrived) make_ready(*other);
        meeting.arrived.clear();
        meeting.turn ^= 1;
        meeting.votes[meeting.turn] = 0;
    }
    pause();
    return turn;
}

unsigned lanes_of_warp() {
    const int left = static_cast<int>(blockDim.x * blockDim.y * blockDim.z) - self->number / 32 * 32;
    return left >= 32 ? ~0u : (1u << left) - 1;
}

void run_fibres() {
    Launch& launch = *now;
    for (Fibre& fibre : launch.fibres) make_ready(fibre);
    while (true) {
        if (launch.ready.empty()) {
            if (launch.spinning.empty()) break;
            if (++launch.idle_rounds > 3) report_stuck("what is polled for is never written");
            for (size_t which : launch.spinning) make_ready(launch.fibres[which]);
            launch.spinning.clear();
        }
        const size_t which = launch.ready.top().second;
        launch.ready.pop();
        Fibre& fibre = launch.fibres[which];
        resume(fibre);
        if (fibre.state == State::spinning)
            launch.spinning.push_back(which);
        else
            launch.idle_rounds = 0;
    }
    for (const Fibre& fibre : launch.fibres)
        if (fibre.state != State::done) report_stuck("a barrier that not all threads reach");
}

// Run the blocks numbered by ``which`` to their ends, side by side.
void run_blocks(
    const std::vector<unsigned>& which, dim3 threads, int shared_bytes, const std::function<void()>& kernel) {
    Launch launch;
    const int each = static_cast<int>(threads.x * threads.y * threads.z), warps = (each + 31) / 32;
    launch.shared_bytes = shared_bytes, launch.kernel = &kernel;
    launch.blocks.resize(which.size());
    launch.fibres.resize(which.size() * each);
    while (stacks.size() < launch.fibres.size()) {
        void* p = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) fail("cuda_host", 0, "no memory for the threads' stacks");
        stacks.push_back(static_cast<unsigned char*>(p));
    }
    for (size_t b = 0; b < which.size(); ++b) {
        const unsigned row = which[b] / gridDim.x;
        launch.blocks[b].index = {which[b] % gridDim.x, row % gridDim.y, row / gridDim.y};
        for (int t = 0; t < each; ++t) {
            Fibre& fibre = launch.fibres[b * each + t];
            fibre.block = &launch.blocks[b], fibre.stack = stacks[b * each + t];
            fibre.number = t, fibre.lane = t % 32, fibre.warp = static_cast<int>(b) * warps + t / 32;
            fibre.thread = {t % threads.x, t / threads.x % threads.y, t / threads.x / threads.y};
            fibre.copies.resize(1);
            ASAN_UNPOISON_MEMORY_REGION(fibre.stack, STACK);
            fibre.context.begin(fibre.stack, enter);
        }
    }
    now = &launch;
    run_fibres();
    now = nullptr, self = nullptr;
}

}  // namespace

cudaError_t run(dim3 blocks, dim3 threads, int shared_bytes, bool cooperative, std::function<void()> kernel) {
    const uint64_t each = static_cast<uint64_t>(threads.x) * threads.y * threads.z, limit = (1u << 31) - 1;
    if (each == 0 || each > 1024) return cudaErrorInvalidConfiguration;
    if (shared_bytes < 0 || shared_bytes > MOST_SHARED) return cudaErrorInvalidConfiguration;
    if (blocks.x > limit || blocks.y > 65535 || blocks.z > 65535) return cudaErrorInvalidConfiguration;
    const size_t count = static_cast<size_t>(blocks.x) * blocks.y * blocks.z;
    if (count == 0) return cooperative ? cudaErrorInvalidConfiguration : cudaSuccess;
    lot.seed(seed);
    blockDim = threads, gridDim = blocks;
    std::vector<unsigned> order(count);
    for (size_t i = 0; i < count; ++i) order[i] = static_cast<unsigned>(seed == 1 ? count - 1 - i : i);
    if (seed > 1) std::shuffle(order.begin(), order.end(), lot);
    for (size_t done = 0; done < count;) {
        const size_t resident = cooperative ? count : seed > 1 ? 1 + lot() % 3 : 1;
        const size_t end = std::min(count, done + resident);
        run_blocks({order.begin() + done, order.begin() + end}, threads, shared_bytes, kernel);
        done = end;
    }
    return cudaSuccess;
}

void fail(const char* file, int line, const char* what) {
    std::fprintf(stderr, "cuda_host: %s:%d: %s\n", file, line, what);
    std::fflush(stderr);
    std::_Exit(70);
}

void meet(const char* file, int line) { vote(0, AT); }
int vote(int mine, const char* file, int line) {
    Meeting& meeting = now->of_blocks[self->block];
    meeting.votes[meeting.turn] += mine;
    return meeting.votes[join(meeting, static_cast<int>(blockDim.x * blockDim.y * blockDim.z), AT)];
}

const Slot* exchange(unsigned mask, const void* mine, size_t bytes, const char* file, int line) {
    mask &= lanes_of_warp();
    if (!(mask >> self->lane & 1)) fail(AT, "the calling lane is not in its own mask");
    Meeting& meeting = now->of_warps[{self->warp, mask}];
    Slot& slot = meeting.slots[meeting.turn][self->lane];
    if (bytes) std::memcpy(slot.bytes, mine, bytes);
    return meeting.slots[join(meeting, __builtin_popcount(mask), AT)];
}

void take_turns() {
    if (seed > 1 && lot() % 4 == 0) {
        make_ready(*self);
        pause();
    }
}

void spin(const char* file, int line) { wait_at(AT, State::spinning); }

void* shared_array(const void* key, size_t bytes) {
    auto& place = self->block->shared[key];
    if (!place) {
        bytes = key ? bytes : static_cast<size_t>(now->shared_bytes);
        self->block->shared_bytes += bytes;
        if (self->block->shared_bytes > MOST_SHARED)
            fail("cuda_host", 0, "a block has more than 227 KB of shared memory");
        void* p = nullptr;
        if (posix_memalign(&p, 128, std::max<size_t>(bytes, 1))) fail("cuda_host", 0, "no memory");
        std::memset(p, 0xff, bytes);  // NaN in fp32, bf16 and fp16
        place.reset(p);
    }
    return place.get();
}

void copy_later(void* to, const void* from, const char* file, int line) {
    const uintptr_t both = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
    if (both % MOST_BYTES_A_COPY) fail(AT, "copy_async takes addresses that are aligned to 16 bytes");
    Copy copy{to, {}};
    std::memcpy(copy.bytes, from, sizeof copy.bytes);
    std::memset(to, 0xff, sizeof copy.bytes);
    self->copies.back().push_back(copy);
}

void commit_copies() { self->copies.emplace_back(); }

void wait_for_copies(int left) {
    while (static_cast<int>(self->copies.size()) > left + 1) {  // the open group stays
        for (const Copy& copy : self->copies.front()) std::memcpy(copy.to, copy.bytes, sizeof copy.bytes);
        self->copies.pop_front();
    }
}

float half_to_float(uint16_t bits) {
    const int sign = bits >> 15, exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 0    ? std::ldexp(static_cast<float>(fraction), -24)
                 : exponent == 31 ? (fraction ? NAN : INFINITY)
                                  : std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
    return sign ? -size : size;
}

uint16_t float_to_half(float v) {
    const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
    if (v != v) return 0x7fff;
    const float size = std::fabs(v);
    if (size == 0) return sign;
    if (size >= 65520.0f) return sign | 0x7c00;
    int exponent = 0;
    std::frexp(size, &exponent);
    exponent = std::max(exponent, -13);  // below 2^-14 the steps stay 2^-24
    const float steps = std::nearbyint(std::ldexp(size, 11 - exponent));
    return sign | static_cast<uint16_t>(static_cast<int>(steps) + ((exponent + 13) << 10));
}

extern "C" void cuda_host_seed(uint64_t value) { seed = value; }

}  // namespace cuda_host
