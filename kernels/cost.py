"""What a product is expected to take by each tile: an estimate, to order candidates by and never to be reported.

    time = launch + max(busiest multiprocessor, memory) + adding up what programs of one tile have formed apart

The busiest multiprocessor runs ceil(programs / multiprocessors) programs, as many at once as its shared memory, warps
and registers hold. A trip through the reduction takes the longest of three: its products, at a share of the matrix rate
that grows with the tile's sides; its operands, at the L2's pace; the latency that its stages leave uncovered. Memory
moves each operand once where all fit in L2, and once per wave of programs where they do not.

Rates are of one card of each architecture: NVIDIA's data sheets of the A100 80GB, GeForce RTX 3090, GeForce RTX 4090,
H200 SXM, B200 and GeForce RTX 5090 (dense, fp32 accumulation), scaled by the multiprocessors of the card at hand.
Shared memory and warps: CUDA C++ Programming Guide, "Compute Capabilities". The other constants are assumptions in
round numbers, not measured; what was measured on a card stands in its tuned table and takes precedence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fastgan.kernels.problem import GROUP, REGISTERS, Config, Problem

LAUNCH = 2.0  # us: a kernel's start and end
LATENCY = 0.6  # us: from a load to its use
TRIP = 0.1  # us: the least for one trip of a program by itself
EDGE = 1.0  # us: a program's first load and its epilogue
GATHER = 2.0  # us: tickets set to 0, and one drawn when all is stored
PART = 0.4  # us: the least to load another program's part
L2_PACE = 56e3  # bytes a us, of each multiprocessor where all of them read: 32 bytes a clock
LONE_PACE = 112e3  # where few do: 64 bytes a clock
RESIDENT = 0.8  # of the L2, that operands may take to stay there
ALONE = 2  # times slower: operands that load element by element
SIDE = 48  # of a tile, at which half of the matrix rate is reached
PEAK = 0.85  # of the matrix rate, by a tile without end
LIBRARY_GAIN = 0.85  # cuBLAS's time over ours, by the same tile
FORMED = 22e3  # elements a us that a multiprocessor normalises while it loads them
SURELY = 1.2  # how much faster the library must be expected to be


@dataclass(frozen=True)
class Card:
    """What one card offers."""

    multiprocessors: int
    gbs: float  # memory bandwidth
    l2_mb: float
    half: float  # TFLOP/s in 16 bits
    tf32: float
    ieee: float
    shared_kb: int  # of a multiprocessor
    warps: int  # of a multiprocessor


CARDS = {
    80: Card(108, 2039, 40, half=312, tf32=156, ieee=19.5, shared_kb=164, warps=64),
    86: Card(82, 936, 6, half=71, tf32=35.6, ieee=35.6, shared_kb=100, warps=48),
    89: Card(128, 1008, 72, half=165, tf32=82.6, ieee=82.6, shared_kb=100, warps=48),
    90: Card(132, 4800, 50, half=989, tf32=494, ieee=67, shared_kb=228, warps=64),
    100: Card(148, 8000, 126, half=2250, tf32=1125, ieee=75, shared_kb=228, warps=64),
    120: Card(170, 1792, 96, half=209, tf32=105, ieee=105, shared_kb=100, warps=48),
}
NEAR = {87: 80, 103: 100, 121: 120}  # architectures that are told by their sisters


def estimate(problem: Problem, config: Config) -> float:
    """Return microseconds."""
    card = CARDS[known(problem.target.arch)]
    processors = problem.target.multiprocessors or card.multiprocessors
    programs = -(-config.programs(problem.rows, problem.cols) // processors)  # of the busiest multiprocessor
    turns = -(-programs // at_once(problem, config, card))
    trips = config.trips(problem.depth)
    work = max(product_us(problem, config, card), operand_us(problem, config))
    busy = max(programs * trips * work, turns * trips * pace(problem, config)) + turns * EDGE
    stored = problem.item_bytes if config.split == 1 else 4  # of a result, or of a part in fp32
    busy += programs * config.rows * config.cols * stored / L2_PACE
    moved = traffic(problem, config, card, processors) / card.gbs / 1e3
    return LAUNCH + max(busy, moved) + gathering_us(problem, config, processors)


def known(arch: int) -> int:
    """Return the architecture whose card stands for this one: a sister, else the nearest below."""
    arch = NEAR.get(arch, arch)
    return max((at for at in CARDS if at <= arch), default=min(CARDS))


def at_once(problem: Problem, config: Config, card: Card) -> int:
    """Return how many programs a multiprocessor holds."""
    shared = config.shared_bytes(problem.item_bytes, problem.masked)
    registers = min(config.registers, config.registers_needed(problem.item_bytes, problem.masked))
    room = card.shared_kb * 1024 // shared, card.warps // config.warps, REGISTERS // (32 * config.warps * registers)
    return max(1, min(room))


def product_us(problem: Problem, config: Config, card: Card) -> float:
    """Return what the products of one trip take a multiprocessor that does nothing else."""
    tflops = {"16-bit": card.half, "tf32": card.tf32, "ieee": card.ieee}[problem.kind]
    side = 2 * config.rows * config.cols / (config.rows + config.cols)
    share = PEAK * side / (side + SIDE)
    flops = 2 * config.rows * config.cols * config.depth
    return flops * card.multiprocessors / (tflops * 1e6 * share)


def operand_us(problem: Problem, config: Config) -> float:
    """Return what the operands of one trip take a multiprocessor that does nothing else."""
    lines = config.rows * (2 if problem.masked else 1) + config.cols
    return lines * config.depth * problem.item_bytes / L2_PACE * (1 if problem.vectors else ALONE)


def pace(problem: Problem, config: Config) -> float:
    """Return the least that one trip takes a program, however many run beside it."""
    ahead = config.stages - 1 if problem.vectors else 1  # only whole vectors are copied asynchronously
    return max(TRIP, LATENCY / ahead)


def traffic(problem: Problem, config: Config, card: Card, processors: int) -> float:
    """Return the bytes that memory moves."""
    rows = problem.rows * (2 if problem.masked else 1) / problem.repeats[0]
    operands = (rows + problem.cols / problem.repeats[1]) * problem.depth * problem.item_bytes
    result = problem.rows * problem.cols * problem.item_bytes
    if operands > RESIDENT * card.l2_mb * 1e6:
        operands = max(operands, reread(problem, config, processors * at_once(problem, config, card)))
    return operands + result


def reread(problem: Problem, config: Config, wave: int) -> float:
    """Return the bytes of operands that waves of so many programs load, each its own lines once."""
    tile_rows, tile_cols = -(-problem.rows // config.rows), -(-problem.cols // config.cols)
    if not tile_rows * tile_cols:
        return 0.0
    wave = max(1, wave // config.split)
    high = min(GROUP, tile_rows)
    wide = min(-(-wave // high), tile_cols)
    high = max(high, min(wave // wide, tile_rows))
    lines = high * config.rows * (2 if problem.masked else 1) / problem.repeats[0]
    lines += wide * config.cols / problem.repeats[1]
    waves = tile_rows * tile_cols / (high * wide)
    return waves * lines * problem.depth * problem.item_bytes


def gathering_us(problem: Problem, config: Config, processors: int) -> float:
    """Return what adding up takes that comes after the products: the first tile's alone, those behind it together."""
    if config.split == 1:
        return 0.0
    queue = -(-config.tiles(problem.rows, problem.cols) // processors)  # of the busiest multiprocessor
    part = config.rows * config.cols * 4
    return GATHER + config.split * (max(PART, part / LONE_PACE) + (queue - 1) * part / L2_PACE)


def forming_us(problem: Problem, config: Config, elements: int) -> float:
    """Return what normalising that many elements in operand loads takes, in all."""
    processors = problem.target.multiprocessors or CARDS[known(problem.target.arch)].multiprocessors
    return elements / (FORMED * processors)


def pass_us(problem: Problem, elements: float) -> float:
    """Return what an elementwise kernel takes that reads and writes that many elements."""
    card = CARDS[known(problem.target.arch)]
    moved = 2 * elements * problem.item_bytes
    resident = moved < RESIDENT * card.l2_mb * 1e6
    return LAUNCH + moved / (L2_PACE * card.multiprocessors if resident else card.gbs * 1e3)


LIBRARY = tuple(  # what cuBLAS has at least; it shares reductions too
    Config(rows, cols, 0, warps, 255, split=split)
    for rows, cols, warps in ((128, 256, 8), (128, 128, 8), (64, 64, 4), (32, 32, 4))
    for split in (1, 2, 4, 8, 16)
)


def library_estimate(problem: Problem) -> float:
    """Return what cuBLAS is expected to take, with one elementwise kernel for what our launch does in passing.

    That kernel applies bias and activation to the result, or the activation's derivative to the rows' operand; backward
    without an activation needs none.
    """
    plain = replace(problem, masked=False, splits=True)
    depth = 16 if problem.kind == "ieee" else 128 // problem.item_bytes
    tiles = (replace(config, depth=depth) for config in LIBRARY)
    product = min(estimate(plain, tile) for tile in tiles if tile.split == 1 or tile.trips(problem.depth) > 1)
    backward = "bwd" in problem.op
    if backward and not problem.masked:
        return LIBRARY_GAIN * product
    elements = problem.rows * problem.depth * 3 / 2 if backward else problem.rows * problem.cols
    return LIBRARY_GAIN * product + pass_us(problem, elements)
