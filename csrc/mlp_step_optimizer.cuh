// The optimisers' part of mlp_step: what a parameter's elements share in a step (kernels/optimizer_rules.py has the
// formulas), a step of one element, and the phases RATE, NORM and STEP.
#pragma once

#include "mlp_step_table.cuh"

__device__ inline float lerp(float start, float end, float weight) {
    return weight < 0.5f ? start + weight * (end - start) : end - (end - start) * (1 - weight);
}

struct Element { float p, first, second, third; };

__device__ inline Element advance(Element e, float g, int rule, int form, const float* r) {
    g *= r[FACTOR];
    if (form & DECOUPLED)
        e.p *= r[SHRINK];
    else if (r[DECAY] != 0)
        g += r[DECAY] * e.p;
    if (rule == ADAM) {
        e.first = lerp(e.first, g, r[REST1]);
        e.second = e.second * r[KEPT] + r[REST2] * g * g;
        e.p -= r[PACE] * (e.first / (sqrtf(e.second) / r[ROOT] + r[EPS]));
    } else if (rule == RMSPROP) {
        e.first = e.first * r[KEPT] + r[REST2] * g * g;
        float spread = e.first;
        if (form & CENTERED) {
            e.third = lerp(e.third, g, r[REST2]);
            spread -= e.third * e.third;
        }
        float towards = g / (sqrtf(spread) + r[EPS]);
        if (form & MOMENTUM) towards = e.second = e.second * r[SPEED] + towards;
        e.p -= r[PACE] * towards;
    } else {
        float towards = g;
        if (form & MOMENTUM) {
            e.first = e.first * r[SPEED] + r[REST1] * g;
            towards = form & NESTEROV ? g + r[SPEED] * e.first : e.first;
        }
        e.p -= r[PACE] * towards;
    }
    if (r[CLIP] != 0) e.p = fminf(fmaxf(e.p, -r[CLIP]), r[CLIP]);
    return e;
}

// A parameter with its addresses, and what its elements share.
struct Moved {
    float *value, *first, *second, *third, *average, *gradient;
    bf16* shadow;
    float rates[RATES];
    int rule, form, moves;

    __device__ Moved(const Program& program, int64_t at, int64_t moves) : moves(static_cast<int>(moves)) {
        const Param& p = program.params[at];
        value = program.at<float>(p.value);
        first = program.maybe<float>(p.first), second = program.maybe<float>(p.second);
        third = program.maybe<float>(p.third), average = program.maybe<float>(p.average);
        gradient = program.maybe<float>(p.gradient), shadow = program.maybe<bf16>(p.shadow);
        rule = static_cast<int>(p.rule), form = static_cast<int>(p.form);
        for (int i = 0; i < RATES; ++i) rates[i] = moves == 1 ? load_fresh(program.rate(at) + i) : 0.0f;
    }

    // Elements at ``places``, those below 0 being none: all loads come before the first store.
    template <int N>
    __device__ void move(const int64_t (&places)[N], const float (&g)[N]) const {
        if (moves == 2) {
            for (int i = 0; i < N; ++i)
                if (places[i] >= 0) gradient[places[i]] = g[i];
            return;
        }
        if (rates[SKIP] != 0) return;
        Element e[N];
        float mean[N];
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const int64_t at = places[i] < 0 ? 0 : places[i];
            e[i] = {load_fresh(value + at), first ? load_fresh(first + at) : 0, second ? load_fresh(second + at) : 0,
                    third ? load_fresh(third + at) : 0};
            mean[i] = average ? load_fresh(average + at) : 0;
        }
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if (places[i] < 0) continue;
            const int64_t at = places[i];
            e[i] = advance(e[i], g[i], rule, form, rates);
            value[at] = e[i].p;
            if (first) first[at] = e[i].first;
            if (second) second[at] = e[i].second;
            if (third) third[at] = e[i].third;
            if (average) average[at] = lerp(mean[i], e[i].p, rates[FOLLOW]);
            if (shadow) shadow[at] = from_float<bf16>(e[i].p);
        }
    }
};

__device__ inline double power(double base, unsigned exponent) {
    double result = 1;
    for (; exponent; exponent /= 2, base *= base)
        if (exponent & 1) result *= base;
    return result;
}

// Which number of a group it is, in the order of kernels/optimizer_rules.py.
enum Number {
    N_LR, N_DECAY, N_EPS, N_BETA1, N_BETA2, N_MOMENTUM, N_DAMPENING, N_SIGN, N_AVERAGE, N_WARMUP, N_CLIP, NUMBERS
};

__device__ inline double number(const Program& program, int64_t group, int which) {
    const int64_t* pair = program.numbers + (group * NUMBERS + which) * 2;
    if (pair[1] == 0) return real64(pair[0]);
    return load_fresh(reinterpret_cast<const float*>(program.base + static_cast<uintptr_t>(pair[1])));
}

__device__ inline void rate_of(const Program& program, int64_t at, int64_t formed, double factor, bool skip) {
    const Param& p = program.params[at];
    float* step = program.at<float>(p.step);
    const float steps = load_fresh(step) + (skip ? 0.0f : 1.0f);
    *step = steps;
    auto n = [&](int which) { return number(program, p.group, which); };
    const double lr = n(N_LR), decay = n(N_DECAY), average = n(N_AVERAGE), warmup = n(N_WARMUP);
    double pace = lr, rest1 = 1 - n(N_BETA1), root = 1, follow = 1 - average;
    if (p.rule == ADAM) {
        const unsigned made = steps < 1 ? 1 : static_cast<unsigned>(steps);  // 0 where the first is skipped
        pace = lr / (1 - power(n(N_BETA1), made)), root = sqrt(1 - power(n(N_BETA2), made));
    } else if (p.rule == SGD) {
        rest1 = steps <= 1 ? 1 : 1 - n(N_DAMPENING);
    }
    if (warmup > 0) follow = fmax(follow, (warmup - 1) / (warmup + static_cast<double>(formed)));
    const double own[RATES] = {pace, decay, p.form & DECOUPLED ? 1 - lr * decay : 1.0, n(N_EPS), rest1, n(N_BETA2),
                               1 - n(N_BETA2), root, n(N_MOMENTUM), follow, n(N_CLIP), factor * n(N_SIGN),
                               skip ? 1.0 : 0.0};
    for (int i = 0; i < RATES; ++i) program.rates[at * RATES + i] = static_cast<float>(own[i]);
}

__device__ inline void rate_phase(const Program& program, const Phase& p, float* room) {
    float factor = 1;
    bool skip = false;
    if (p.verdict >= 0) {
        const Param& last = program.params[p.last - 1];
        const int strips = static_cast<int>(last.strip + (last.size + STRIP - 1) / STRIP);
        const float* verdict = program.at<float>(p.verdict);
        float squares = 0, spoilt = 0;
        for (int i = threadIdx.x; i < strips; i += THREADS)
            squares += load_fresh(verdict + 2 * i), spoilt += load_fresh(verdict + 2 * i + 1);
        const float norm = sqrtf(block_sum(squares, room)), most = real(p.most);
        spoilt = block_sum(spoilt, room);
        skip = p.guards && spoilt != 0;
        if (most != 0) factor = norm == norm ? fminf(1.0f, most / (norm + 1e-6f)) : norm;
    }
    int64_t* counters = program.at<int64_t>(program.params[p.first].counters);
    const int64_t formed = load_fresh(reinterpret_cast<const long long*>(counters) + 1);
    __syncthreads();
    bool averages = false;
    for (int64_t at = p.first + threadIdx.x; at < p.last; at += THREADS) rate_of(program, at, formed, factor, skip);
    for (int64_t at = p.first; at < p.last; ++at) averages = averages || program.params[at].average >= 0;
    if (threadIdx.x == 0) {
        if (skip) counters[0] = load_fresh(reinterpret_cast<const long long*>(counters)) + 1;
        if (!skip && averages) counters[1] = formed + 1;
    }
}

// The parameter whose strip it is, of those of a phase.
__device__ inline int64_t owner(const Program& program, const Phase& p, int64_t strip) {
    int64_t at = p.first;
    while (at + 1 < p.last && program.params[at + 1].strip <= strip) ++at;
    return at;
}

__device__ inline void norm_tile(const Program& program, const Phase& p, int strip, float* room) {
    const Param& param = program.params[owner(program, p, strip)];
    const float* gradient = program.at<float>(param.gradient);
    const int64_t begin = (strip - param.strip) * STRIP;
    float squares = 0, spoilt = 0;
    for (int64_t i = begin + threadIdx.x; i < param.size && i < begin + STRIP; i += THREADS) {
        const float g = load_fresh(gradient + i);
        squares += g * g;
        if (!(fabsf(g) <= 3.402823466e38f)) spoilt = 1;
    }
    squares = block_sum(squares, room), spoilt = block_sum(spoilt, room);
    if (threadIdx.x == 0) {
        float* verdict = program.at<float>(p.verdict) + 2 * strip;
        verdict[0] = squares, verdict[1] = spoilt != 0;
    }
}

__device__ inline void step_tile(const Program& program, const Phase& p, int strip) {
    const int64_t at = owner(program, p, strip);
    const Param& param = program.params[at];
    const Moved moved(program, at, 1);
    const int64_t begin = (strip - param.strip) * STRIP;
    for (int i = threadIdx.x; i < STRIP; i += 4 * THREADS) {
        int64_t places[4];
        float g[4];
        for (int j = 0; j < 4; ++j) {
            const int64_t place = begin + i + j * THREADS;
            places[j] = i + j * THREADS < STRIP && place < param.size ? place : NOWHERE;
            g[j] = places[j] < 0 ? 0 : load_fresh(moved.gradient + place);
        }
        moved.move(places, g);
    }
}
