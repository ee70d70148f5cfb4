// Lets a C++ compiler compile and run what is written in Metal's shading language: address spaces and attributes mean
// nothing, a threadgroup's threads are fibers that take turns at barriers, and what a SIMD group adds up goes through
// memory. Only what the kernels use is here.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <tuple>
#include <vector>

#define HEADROOM_HOST
#define kernel static
#define device
#define constant const
#define threadgroup
#define SHARED(T, name, n) static thread_local T name[n]

typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;

struct float2 {
    float x, y;
    float2(float x, float y) : x(x), y(y) {}
};
struct uint2 {
    uint x, y;
    uint2(uint x, uint y) : x(x), y(y) {}
};
struct uint3 {
    uint x, y, z;
};
struct uint4 {
    uint x, y, z, w;
    uint4(uint x, uint y, uint z, uint w) : x(x), y(y), z(z), w(w) {}
};

// IEEE half precision, by its bits.
struct half {
    ushort bits;
    operator float() const {
        uint sign = uint(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, fraction = bits & 1023;
        if (exponent == 0) {
            float small = std::ldexp(float(fraction), -24);
            return sign ? -small : small;
        }
        uint wide = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
};

template <class To, class From>
To as_type(From from) {
    static_assert(sizeof(To) == sizeof(From), "as_type keeps the size");
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

using std::copysign;
using std::exp;
using std::fabs;
using std::fma;
using std::log;
using std::sqrt;
using std::tanh;
inline float max(float a, float b) { return a > b ? a : b; }
inline uint max(uint a, uint b) { return a > b ? a : b; }
inline uint mulhi(uint a, uint b) { return uint(uint64_t(a) * b >> 32); }

// ---- Threads of a threadgroup ----

enum class mem_flags { mem_device, mem_threadgroup };

struct Thread {
    jmp_buf at;
    ucontext_t first;
    std::vector<char> stack;
    bool started = false, done = false;
    // Which of the two places for numbers is next.
    uint turn = 0;
};

struct Group {
    std::vector<std::unique_ptr<Thread>> threads;
    // Two, so that who is quick may give its next number while others still read.
    std::vector<float> given[2];
    jmp_buf caller;
    uint lanes = 0, lane = 0;
    void (*body)(void*, uint) = nullptr;
    void* argument = nullptr;
};
static thread_local Group group;

// Lets the others run up to their next barrier. (Not `swapcontext`, which asks the kernel each time.)
static void yield_thread() {
    if (_setjmp(group.threads[group.lane]->at) == 0) _longjmp(group.caller, 1);
}

// A thread serves one threadgroup after the other.
static void thread_main() {
    while (true) {
        group.body(group.argument, group.lane);
        group.threads[group.lane]->done = true;
        yield_thread();
    }
}

static void resume_thread(Thread& thread) {
    if (_setjmp(group.caller) != 0) return;
    if (thread.started) _longjmp(thread.at, 1);
    thread.started = true;
    thread.stack.resize(1 << 16);
    getcontext(&thread.first);
    thread.first.uc_stack.ss_sp = thread.stack.data();
    thread.first.uc_stack.ss_size = thread.stack.size();
    thread.first.uc_link = nullptr;
    makecontext(&thread.first, thread_main, 0);
    setcontext(&thread.first);
}

// Runs all threads of a group, each up to its next barrier, until all are done. Threads that do not meet at the same
// number of barriers are a fault of the kernel: Metal would hang.
static bool run_group(uint lanes, void (*body)(void*, uint), void* argument) {
    group.lanes = lanes;
    for (auto& given : group.given) given.assign(lanes, 0.0f);
    group.body = body;
    group.argument = argument;
    while (group.threads.size() < lanes) group.threads.push_back(std::make_unique<Thread>());
    for (uint i = 0; i < lanes; i++) {
        group.threads[i]->done = false;
        group.threads[i]->turn = 0;
    }
    while (true) {
        uint finished = 0;
        for (uint i = 0; i < lanes; i++) {
            group.lane = i;
            resume_thread(*group.threads[i]);
            finished += group.threads[i]->done;
        }
        if (finished == lanes) return true;
        if (finished > 0) return false;
    }
}

inline void threadgroup_barrier(mem_flags) { yield_thread(); }

template <class F>
float over_simd_group(float x, F both) {
    uint lane = group.lane, first = lane / 32 * 32;
    std::vector<float>& given = group.given[group.threads[lane]->turn++ % 2];
    given[lane] = x;
    yield_thread();
    float all = given[first];
    for (uint i = first + 1; i < first + 32 && i < group.lanes; i++) all = both(all, given[i]);
    return all;
}
inline float simd_sum(float x) {
    return over_simd_group(x, [](float a, float b) { return a + b; });
}
inline float simd_max(float x) {
    return over_simd_group(x, [](float a, float b) { return max(a, b); });
}

// ---- Calling a kernel: pointers come from the buffers in their order, a struct from the bytes, the rest says where ----

struct Call {
    void** buffers;
    const void* bytes;
    const uint* grid;
    uint3 at;
    uint row, lane, lanes, next_buffer, next_number;
};

template <class A>
struct Argument {
    static A get(Call& call) {
        if constexpr (std::is_pointer_v<A>) {
            return static_cast<A>(call.buffers[call.next_buffer++]);
        } else if constexpr (std::is_reference_v<A>) {
            return *static_cast<std::remove_reference_t<A>*>(call.bytes);
        } else if constexpr (std::is_same_v<A, uint3>) {
            return call.at;
        } else {
            const uint numbers[3] = {call.row, call.lane, call.lanes};
            return numbers[call.next_number++];
        }
    }
};

template <class... A>
void call_once(void (*f)(A...), Call& call) {
    call.next_buffer = call.next_number = 0;
    // Braces, because they are evaluated from left to right.
    std::tuple<A...> arguments{Argument<A>::get(call)...};
    std::apply(f, arguments);
}

template <class... A>
bool dispatch(void (*f)(A...), void** buffers, const void* bytes, const uint* grid, uint lanes) {
    Call call{buffers, bytes, grid, {0, 0, 0}, 0, 0, lanes, 0, 0};
    if (lanes == 0) {
        for (call.at.z = 0; call.at.z < grid[2]; call.at.z++)
            for (call.at.y = 0; call.at.y < grid[1]; call.at.y++)
                for (call.at.x = 0; call.at.x < grid[0]; call.at.x++) call_once(f, call);
        return true;
    }
    struct Row {
        void (*f)(A...);
        Call call;
    } row{f, call};
    for (row.call.row = 0; row.call.row < grid[0]; row.call.row++) {
        auto body = [](void* argument, uint lane) {
            Row* row = static_cast<Row*>(argument);
            Call own = row->call;
            own.lane = lane;
            call_once(row->f, own);
        };
        if (!run_group(lanes, body, &row)) return false;
    }
    return true;
}
