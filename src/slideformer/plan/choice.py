"""The choice by seconds: of all sizes that fit, those of the shortest step.

Three things compete for the GPU's memory: states that live there (no copies, no update by the CPU), forwards that are
kept (no recomputation), and large micro-batches. For each micro-batch size, window and number of resident blocks the
rest of the memory goes to kept forwards; what remains are a few hundred candidates. They are sorted by what the busiest
lane takes at least, and their schedules are played from the front until none that is left can be shorter.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeVar

from slideformer.plan.edges import Made, first, last
from slideformer.plan.offloading import BUFFERS_BESIDE_WEIGHTS, DISK_BUFFERS, Reach, ways
from slideformer.plan.sizes import Sizes

T = TypeVar("T")

GRID = 6  # numbers of resident blocks that are tried first
REFINED = 4  # of the best of these, the neighbours are tried as well
MICRO_BATCH_SIZES = 3
FEWER_SLOTS = (8, 2, 1)  # for gradients that wait, if one for each block is too much for the host
SHARES_ON_HOST = 24  # of all recomputed forwards, one keeps its outputs in host memory, or two, ...
PLAYED = 32  # schedules at most, each time
SAME = 1.002  # among such equals, the least to do beside computation is preferred


@dataclass(frozen=True)
class Fits:
    """Whether sizes fit each tier. More sizes of a kind never need less of a tier that they are tried against."""

    device: Callable[[Sizes], bool]
    host: Callable[[Sizes], bool]
    disk: Callable[[Sizes], bool]

    def all(self, sizes: Sizes) -> bool:
        return self.device(sizes) and self.host(sizes) and self.disk(sizes)


@dataclass(frozen=True)
class Costs:
    """What candidates are compared by.

    Attributes:
        seconds: of a step.
        least_seconds: no more than `seconds`, and quickly known.
        beside_seconds: of what goes on beside computation, which decides between equals.
    """

    seconds: Callable[[Sizes], float]
    least_seconds: Callable[[Sizes], float]
    beside_seconds: Callable[[Sizes], float]


@dataclass(frozen=True)
class Limits:
    """What may be chosen.

    Attributes:
        blocks: of the model.
        resident: at least and at most so many blocks.
        ends: values of `resident_ends`.
        kept: a number that is given, or None.
        keeps, keeps_outputs: whether anything may be kept at all, and expensive outputs alone.
        keeps_on_host: whether these may be kept in host memory.
        reach: the most that may be on disk.
    """

    blocks: int
    resident: tuple[int, int]
    ends: Sequence[bool]
    kept: int | None
    keeps: bool
    keeps_outputs: bool
    reach: Reach
    keeps_on_host: bool = False


def choose(starts: Sequence[Sizes], limits: Limits, fits: Fits, costs: Costs) -> Sizes | None:
    """The sizes of the shortest step; None if no candidate fits.

    Args:
        starts: micro-batch sizes, windows and gradient slots to choose from, the preferred first.
    """
    groups = [Group(start, ends, limits, fits) for start in starts for ends in limits.ends]
    search = Search(costs)
    for group in groups:
        search.add(group, group.candidates_of(group.grid()))
    search.play()
    for group, resident in search.best_groups():
        _refine(search, group, resident)
    if limits.keeps_on_host:
        for group, resident in search.best_of_each_micro_batch():
            search.add(group, group.with_outputs_on_host(resident))
        search.play()
    return search.best()


def _refine(search: "Search", group: "Group", resident: int) -> None:
    """Halve the distance between the numbers of resident blocks that are tried, around the best."""
    step = group.step
    while step > 1:
        step = -(-step // 2)
        search.add(group, group.candidates_of([resident - step, resident + step]))
        search.play()
        resident = search.best_of(group)


@dataclass(eq=False)
class Group:
    """Candidates that differ in what is resident, and in what is kept in the memory that is left."""

    start: Sizes
    ends: bool
    limits: Limits
    fits: Fits
    step: int = 1
    _seen: dict[int, list[Sizes]] = field(default_factory=dict)

    def grid(self) -> list[int]:
        """Numbers of resident blocks to try first, from few to many; empty if none fits."""
        counts = self._counts()
        self.step = max(1, -(-(len(counts) - 1) // (GRID - 1)))
        found = [count for count in sorted({*counts[:: self.step], *counts[-1:]}) if self.candidates(count)]
        return found or self.fewest()

    def fewest(self) -> list[int]:
        """The smallest number of resident blocks that fits, if there is one.

        More of them take states from the host, and drive boundaries to it: either can be what it has no room for.
        """
        return list(islice((count for count in self._counts() if self.candidates(count)), 1))

    def _counts(self) -> range:
        """What the device has room for."""
        low, high = self.limits.resident
        most = last(range(low, high + 1), lambda count: self.fits.device(self._smallest(count)))
        return range(low, low if most is None else most + 1)

    def candidates_of(self, residents: Iterable[int]) -> Iterator[Sizes]:
        return (sizes for resident in residents for sizes in self.candidates(resident))

    def candidates(self, resident: int) -> list[Sizes]:
        """The ways to spend what is left on keeping; none, if so many resident blocks do not fit."""
        if resident not in self._seen:
            self._seen[resident] = list(self._candidates(resident))
        return self._seen[resident]

    def _smallest(self, resident: int, on_host: int = 0) -> Sizes:
        sizes = replace(self.start, resident=resident, resident_ends=self.ends, host_boundaries=self.limits.blocks)
        return replace(sizes, host_outputs=on_host) if on_host else sizes

    def _candidates(self, resident: int) -> Iterator[Sizes]:
        low, high = self.limits.resident
        if not low <= resident <= high:
            return
        for base in self._least_on_disk(self._fewest_boundaries(self._smallest(resident))):
            yield base
            if self.limits.keeps:
                yield from dict.fromkeys([self._whole_first(base), self._outputs_first(base)])

    def with_outputs_on_host(self, resident: int) -> Iterator[Sizes]:
        """More and more of what the link may have room for, as long as host memory has; with so many resident blocks,
        or fewer where the device has no room for what comes back."""
        forwards = self.start.recomputed_forwards(self.limits.blocks)
        residents = range(self.limits.resident[0], resident + 1)
        for count in dict.fromkeys(-(-forwards * share // SHARES_ON_HOST) for share in range(1, SHARES_ON_HOST + 1)):
            most = last(residents, lambda fewer, count=count: self.fits.device(self._smallest(fewer, count)))
            sizes = None if most is None else self._fewest_boundaries(self._smallest(most, count))
            if sizes is None or not self.fits.host(sizes):
                return
            yield self._outputs_first(sizes)

    def _fewest_boundaries(self, sizes: Sizes) -> Sizes | None:
        """On the host; the others stay on the device."""
        ways = Made(lambda count: replace(sizes, host_boundaries=count), range(self.limits.blocks + 1))
        return first(ways, self.fits.device)

    def _least_on_disk(self, sizes: Sizes | None) -> Iterator[Sizes]:
        """Fewer gradients that wait are better than states on disk, and fewer of these than fewer buffers for them.

        Of weights each that stays in memory counts, so what else takes memory may be better spent on them: several
        answers then, for seconds to decide.
        """
        if sizes is None:
            return
        slots = [] if sizes.resident_gradients else [count for count in FEWER_SLOTS if count < sizes.gradient_slots]
        waiting = [sizes, *(replace(sizes, gradient_slots=count) for count in slots)]
        if found := next(filter(self.fits.host, waiting), None):
            yield found
            return
        buffered = [replace(way, disk_buffers=count) for count in DISK_BUFFERS for way in waiting]
        for kind in map(Reach, range(Reach.STATES, self.limits.reach + 1)):
            if found := next(filter(None, (self._on_disk(way, kind) for way in buffered)), None):
                fewer = [replace(waiting[-1], disk_buffers=count) for count in (BUFFERS_BESIDE_WEIGHTS, 1)]
                others = (self._on_disk(way, kind) for way in fewer if kind == Reach.WEIGHTS)
                yield from dict.fromkeys(filter(None, (found, *others)))
                return

    def _on_disk(self, sizes: Sizes, kind: Reach) -> Sizes | None:
        found = first(ways(sizes, self.limits.blocks - sizes.resident, kind), self.fits.host)
        return found if found and self.fits.disk(found) else None

    def _whole_first(self, base: Sizes) -> Sizes:
        blocks, pinned = self.limits.blocks, self.limits.kept
        counts = range(blocks + 1) if pinned is None else [pinned]
        whole = last(Made(lambda count: replace(base, kept=count), counts), self.fits.device) or base
        return self._outputs_of(whole, blocks - whole.kept)

    def _outputs_first(self, base: Sizes) -> Sizes:
        blocks = self.limits.blocks
        if not self.limits.keeps_outputs:
            return base
        outputs = self._outputs_of(base, blocks)
        if outputs.kept_outputs < blocks or self.limits.kept is not None:
            return outputs
        ways = Made(lambda count: replace(base, kept=count, kept_outputs=blocks - count), range(blocks + 1))
        return last(ways, self.fits.device) or outputs

    def _outputs_of(self, sizes: Sizes, most: int) -> Sizes:
        counts = range(most + 1) if self.limits.keeps_outputs else [0]
        return last(Made(lambda count: replace(sizes, kept_outputs=count), counts), self.fits.device) or sizes


@dataclass(eq=False)
class Search:
    """Candidates and what is known of them."""

    costs: Costs
    _group_of: dict[Sizes, Group] = field(default_factory=dict)
    _least: dict[Sizes, float] = field(default_factory=dict)
    _seconds: dict[Sizes, float] = field(default_factory=dict)

    def add(self, group: Group, candidates: Iterable[Sizes]) -> None:
        """Consider these of the group."""
        for sizes in candidates:
            if sizes not in self._group_of:
                self._group_of[sizes] = group
                self._least[sizes] = self.costs.least_seconds(sizes)

    def play(self) -> None:
        """Know the seconds of what may be the shortest step."""
        best = min(self._seconds.values(), default=float("inf"))
        waiting = sorted((sizes for sizes in self._least if sizes not in self._seconds), key=self._least.__getitem__)
        for sizes in waiting[:PLAYED]:
            if self._least[sizes] > best * SAME:
                return
            self._seconds[sizes] = self.costs.seconds(sizes)
            best = min(best, self._seconds[sizes])

    def best_groups(self) -> list[tuple[Group, int]]:
        """The groups of the shortest steps, each with its number of resident blocks."""
        found: dict[Group, int] = {}
        for sizes in sorted(self._seconds, key=self._seconds.__getitem__):
            found.setdefault(self._group_of[sizes], sizes.resident)
        return list(found.items())[:REFINED]

    def best_of_each_micro_batch(self) -> list[tuple[Group, int]]:
        """Of the steps with micro-batches of one size the shortest: its group, and its number of resident blocks."""
        found: dict[int, tuple[Group, int]] = {}
        for sizes in sorted(self._seconds, key=self._seconds.__getitem__):
            found.setdefault(sizes.micro_batch_size, (self._group_of[sizes], sizes.resident))
        return list(found.values())

    def best_of(self, group: Group) -> int:
        among = [sizes for sizes in self._seconds if self._group_of[sizes] is group]
        return min(among, key=self._seconds.__getitem__).resident

    def best(self) -> Sizes | None:
        """Of the shortest steps, that with the largest micro-batches, then that which takes the least memory."""
        if not self._seconds:
            return None
        limit = min(self._seconds.values()) * SAME
        equals = [sizes for sizes, seconds in self._seconds.items() if seconds <= limit]
        found = min(equals, key=lambda s: (-s.micro_batch_size, on_disk(s), self.costs.beside_seconds(s)))
        if found.resident_gradients:
            return found
        slots = found.gradient_slots
        fewer = [replace(found, gradient_slots=count) for count in range(min(FEWER_SLOTS[0], slots), slots + 1)]
        return first(fewer, lambda sizes: self.costs.seconds(sizes) <= limit) or found


def on_disk(sizes: Sizes) -> tuple[int, int, int]:
    """How much is, the kinds that cost a step the most first."""
    return sizes.disk_weight_blocks, sizes.disk_boundaries, sizes.disk_blocks


def halvings(descending: Sequence[int]) -> list[int]:
    """The first and what is at most half of the one before, `MICRO_BATCH_SIZES` at most."""
    found: list[int] = []
    for value in descending:
        if not found or 2 * value <= found[-1]:
            found.append(value)
    return found[:MICRO_BATCH_SIZES]
