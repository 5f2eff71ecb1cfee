// A stack and where it is to go on: what fibres switch by.
#pragma once

#include <ucontext.h>

#include <cstddef>

namespace cuda_host {

constexpr size_t STACK = 256 * 1024;

// Where a stack is to go on. swapcontext would ask the kernel for the signal mask at each of a million switches.
#if defined(__x86_64__) && !defined(__CET__)
struct Context {
    void* top = nullptr;

    void begin(unsigned char* stack, void (*entry)()) {
        void** end = reinterpret_cast<void**>(stack + STACK) - 2;  // at an entry the ABI wants 8 beside 16's multiples
        *end = reinterpret_cast<void*>(entry);
        top = end - 6;
    }
};
extern "C" void cuda_host_switch(void** from, void* to);
asm(R"(
.local cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
)");
inline void change(Context& from, Context& to) { cuda_host_switch(&from.top, to.top); }
#else
struct Context {
    ucontext_t place;

    void begin(unsigned char* stack, void (*entry)()) {
        getcontext(&place);
        place.uc_stack.ss_sp = stack, place.uc_stack.ss_size = STACK;
        place.uc_link = nullptr;
        makecontext(&place, entry, 0);
        place.uc_stack.ss_sp = nullptr, place.uc_stack.ss_size = 0;  // else ASan wipes it at each switch
    }
};
inline void change(Context& from, Context& to) { swapcontext(&from.place, &to.place); }
#endif

}  // namespace cuda_host
