"""What one multiprocessor of each architecture offers to blocks, and how many blocks of a kernel fit in.

Source: CUDA C++ Programming Guide, "Compute Capabilities", table of technical specifications per compute capability.
"""

from __future__ import annotations

from dataclasses import dataclass

KB = 1024
REGISTERS = 65536  # on a multiprocessor, of every architecture below
REGISTER_UNIT = 256  # registers are given to a warp in pieces of so many
RESERVED = 1 * KB  # shared memory that the system takes from each block
TENSOR_COLUMNS = 512


@dataclass(frozen=True)
class Card:
    """The limits of one multiprocessor."""

    shared: int  # bytes of shared memory
    shared_block: int  # bytes that one block may ask for ("opt-in")
    warps: int
    blocks: int


CARDS = {
    80: Card(shared=164 * KB, shared_block=163 * KB, warps=64, blocks=32),
    86: Card(shared=100 * KB, shared_block=99 * KB, warps=48, blocks=16),
    89: Card(shared=100 * KB, shared_block=99 * KB, warps=48, blocks=24),
    90: Card(shared=228 * KB, shared_block=227 * KB, warps=64, blocks=32),
    100: Card(shared=228 * KB, shared_block=227 * KB, warps=64, blocks=32),
    120: Card(shared=100 * KB, shared_block=99 * KB, warps=48, blocks=24),
}


def occupancy(arch: int, *, warps: int, registers: int, shared: int, tensor_columns: int = 0) -> tuple[int, str]:
    """Return how many blocks one multiprocessor holds, and the resource that keeps the next one out.

    ``warps`` of the block, ``registers`` of a thread, ``shared`` bytes and ``tensor_columns`` of the block.
    """
    card = CARDS[arch]
    for_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    room = {
        "registers": REGISTERS // max(1, for_warp * warps),
        "shared memory": card.shared // (shared + RESERVED),
        "warps": card.warps // warps,
        "blocks": card.blocks,
    }
    if tensor_columns:
        room["tensor memory"] = TENSOR_COLUMNS // tensor_columns
    limiter = min(room, key=lambda resource: room[resource])
    return room[limiter], limiter
