/* Preloaded into the client's processes (harness.py).
 *
 * CPython before 3.14 ends a thread that wants the GIL while the interpreter is being torn down by pthread_exit, which unwinds
 * frames of C++ and Rust that cannot be unwound: now and then a client that has done its work aborts instead of ending
 * (github.com/python/cpython/issues/87135, github.com/curioswitch/pyqwest/issues/164). Here such a thread stands still, as it
 * does in CPython 3.14. An abort for any other reason says where it came from.
 */
#define _GNU_SOURCE
#include <execinfo.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

_Noreturn void pthread_exit(void *result)
{
    (void)result;
    for (;;)
        pause();
}

_Noreturn void abort(void)
{
    static const char said[] = "\nabort() was called by:\n";
    void *frames[64];

    if (write(STDERR_FILENO, said, strlen(said)) > 0)
        backtrace_symbols_fd(frames, backtrace(frames, 64), STDERR_FILENO);
    signal(SIGABRT, SIG_DFL);
    raise(SIGABRT);
    _exit(134);
}
