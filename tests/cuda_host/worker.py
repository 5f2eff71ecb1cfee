"""Runs launchers of one library: the process that the sanitizers live in, and that ends where they find something.

Reads pickled (function, arguments, blocks, seed) from its input: an argument is an int (int64), a float (fp32), None (a
null pointer), or ("memory", which, offset) for a place in one of the blocks of bytes. Answers with what the function
returned and the blocks as they are then. The blocks are the heap's, so that a step beside one of them is seen.
"""

import ctypes
import pickle
import sys

import numpy

Argument = int | float | None | tuple[str, int, int]


def as_c(argument: Argument, blocks: list[numpy.ndarray]) -> object:
    if isinstance(argument, tuple):
        _, which, offset = argument
        return ctypes.c_void_p(blocks[which].ctypes.data + offset)
    if argument is None:
        return ctypes.c_void_p(None)
    return ctypes.c_float(argument) if isinstance(argument, float) else ctypes.c_int64(argument)


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            function, arguments, contents, seed = pickle.load(requests)  # noqa: S301 -- our own parent
        except EOFError:
            return
        blocks = [numpy.frombuffer(content, numpy.uint8).copy() for content in contents]
        library.cuda_host_seed(ctypes.c_uint64(seed))
        status = getattr(library, function)(*(as_c(argument, blocks) for argument in arguments))
        pickle.dump((status, [block.tobytes() for block in blocks]), answers)
        answers.flush()


main()
