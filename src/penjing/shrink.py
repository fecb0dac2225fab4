"""From a model and a limit to the best file: costs, finalists, builds, measurements, and the choice among them.

Three texts that share nothing: sensitivities come from one, the choice among the finalists from the second, and the
figures that are reported from the third.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from penjing import __version__, store
from penjing.build import Builder, Recipe, check_room, tidy
from penjing.costs import menu_of
from penjing.engines.base import Engine
from penjing.errors import DoesNotFit, UsageError
from penjing.evaluate import Divergence, divergences, settings
from penjing.formats import BY_NAME
from penjing.gguf.header import Header
from penjing.gguf.writer import Frame, frame_of
from penjing.model import Model
from penjing.progress import bar
from penjing.quality import menu, stock
from penjing.quality.allocate import Allocation, Item, bent, frontier, least_bytes, least_kld, price, repriced
from penjing.quality.menu import SLOW_BITS
from penjing.quality.sensitivity import Sensitivity
from penjing.quantize.native import Native
from penjing.sensitivities import model_hash
from penjing.units import show_bytes, show_number

Say = Callable[[str], None]
_EMBEDDING = "token_embd.weight"
_CHOICE_TOKENS, _REPORT_TOKENS = 2048, 4096
_ATTEMPTS = 3  # at a limit on the measured divergence
_SAFETY = 0.97
_FRONTIER_POINTS = 8
_OWN_KEYS_BYTES = 512  # room for the keys that a built file says of itself
_LOOKED_UP_SHARE = 0.03  # of the divergence that a token embedding which is only looked up may add


class Goal(Struct, frozen=True):
    """One limit: bytes of the whole file, bits per weight, or divergence in nats per token. Or types, as planned."""

    max_bytes: int | None = None
    bits_per_weight: float | None = None
    max_kld: float | None = None
    types: dict[str, str] | None = None


class Finalist(Struct, frozen=True):
    """A file that was built and measured on the second text."""

    name: str
    bits_per_weight: float
    n_bytes: int
    tensor_types: dict[str, int]
    predicted_kld: float
    measured: Divergence | None = None


class Point(Struct, frozen=True):
    """What the best allocation of a size is predicted to cost."""

    n_bytes: int
    predicted_kld: float


class Built(Struct, frozen=True):
    """The outcome: the file, what was predicted, what was measured, and who else was there."""

    artifact: str
    sha256: str
    bytes: int
    bpw: float
    tensor_types: dict[str, int]
    predicted_kld: float
    measured: Divergence
    finalists: tuple[Finalist, ...]
    frontier: tuple[Point, ...]
    sensitivity: str
    source: str
    source_hash: str
    types: dict[str, str]
    versions: dict[str, str]


class _Entry(Struct, frozen=True):
    """A finalist with its file."""

    finalist: Finalist
    allocation: Allocation
    file: Path
    sha256: str


class Shrinker:
    """A model with its sensitivity and the means to build and to measure; see `shrink`."""

    def __init__(
        self,
        header: Header,
        model: Model,
        sensitivity: Sensitivity,
        engine: Engine,
        native: Native,
        *,
        refined: bool = True,
        say: Say = lambda _: None,
    ) -> None:
        self.header, self.model, self.sensitivity = header, model, sensitivity
        # refining needs to know how inputs go together, and a prior does not
        self.refined = refined and sensitivity.source == "measured"
        self.engine, self.native, self.say = engine, native, say
        self.source_hash = model_hash(header)
        self.untied = not model.tied
        self._builder = Builder(header, sensitivity, native)

    def shrink(self, goal: Goal, out: Path, *, finalists: int, texts: tuple[str, str]) -> Built:
        """Build the finalists, choose by their divergence on the first text, report that on the second.

        A limit on the divergence is one on the measured value: where that comes out higher, the prediction is asked
        for less, and once more.

        Raises:
            DoesNotFit: no file can be so small, or so near.
            Unavailable: no room on the disk.
        """
        self._check_possible(goal)
        entries: list[_Entry] = []
        aim = goal
        for attempt in range(_ATTEMPTS):
            entries += self._entries(aim, out, finalists, attempt, texts[0])
            best = min(entries, key=lambda e: _rank(e, goal))
            seen = best.finalist.measured
            if goal.max_kld is None or aim.max_kld is None or seen is None or seen.kld <= goal.max_kld:
                break
            aim = replace(aim, max_kld=_SAFETY * aim.max_kld * goal.max_kld / seen.kld)
        (final,) = self.measure([best.file], texts[1], _REPORT_TOKENS)
        line = frontier(self.items(goal), _FRONTIER_POINTS)
        points = tuple(Point(a.n_bytes, a.kld) for a in line)
        built = self._built(best, final, [e.finalist for e in entries], points, out)
        _write_beside(out, built)
        best.file.replace(out)
        self._builder.forget()
        for entry in entries:
            entry.file.unlink(missing_ok=True)
            tidy(entry.file)
        return built

    def _entries(self, goal: Goal, out: Path, count: int, attempt: int, text: str) -> list[_Entry]:
        """The finalists for a goal, built; and measured, where there is something to choose."""
        chosen = self.finalists(self.items(goal), goal, count)
        files = [out.with_name(f"{out.name}.{attempt}{i}") for i in range(len(chosen))]
        self._check_room(files, chosen.values())
        hashes = [
            self.make(allocation, file) for allocation, file in zip(chosen.values(), files, strict=True)
        ]
        measured: Sequence[Divergence | None] = [None] * len(files)
        if len(files) > 1 or goal.max_kld is not None:
            measured = self.measure(files, text, _CHOICE_TOKENS)
        return [
            _Entry(self._described(name, allocation, found, file.stat().st_size), allocation, file, sha256)
            for (name, allocation), found, file, sha256 in zip(
                chosen.items(), measured, files, hashes, strict=True
            )
        ]

    def _check_room(self, files: Sequence[Path], allocations: Iterable[Allocation]) -> None:
        """For all files beside each other; those that an earlier run has begun take their room already."""
        begun = [any(f.with_name(f.name + ending).exists() for ending in ("", ".part")) for f in files]
        sizes = [frame_of(self.header, a.types, {}).n_bytes for a in allocations]
        check_room(files[0].parent, sum(n for n, there in zip(sizes, begun, strict=True) if not there))

    # ---- what to build -----------------------------------------------------------------------------

    def items(self, goal: Goal) -> list[Item]:
        """The menu, without formats so low that no allocation for this goal would use them widely."""
        bits = goal.bits_per_weight or (8 * goal.max_bytes / self.model.n_weights if goal.max_bytes else 4.0)
        least = 4.0 if bits >= 4.4 else 3.0 if bits >= 3.75 else 0.0
        if goal.types:
            lowest = min(BY_NAME[kind].bits_per_weight for kind in goal.types.values())
            least = SLOW_BITS if lowest >= SLOW_BITS else 0.0
        return menu_of(
            self._builder.tensors,
            self.native,
            self.model,
            self.sensitivity,
            refined=self.refined,
            least_bits=least,
            source_hash=self.source_hash,
        )

    def _check_possible(self, goal: Goal) -> None:
        """Raises DoesNotFit at once, before costs are measured, where even the smallest formats are too large."""
        known = self.sensitivity.moments
        matrices = [t for t in self.model.tensors if stock.is_quantized(t) and t.name in known]
        items = [menu.item(t, dict.fromkeys(menu.kinds_for(t), 0.0)) for t in matrices]
        if goal.max_bytes is not None:
            _check_least(items, goal.max_bytes, self._fixed_bytes(items))
        if goal.bits_per_weight is not None:
            _check_least_bits(*self._counted(items), goal.bits_per_weight)

    def allocate(self, items: Sequence[Item], goal: Goal) -> Allocation:
        """The least predicted divergence within the bytes, or the least bytes within the divergence.

        Raises:
            DoesNotFit: no file can be so small, or so near.
        """
        if goal.max_kld is not None:
            return least_bytes(items, goal.max_kld)
        if goal.max_bytes is not None:
            fixed = self._fixed_bytes(items)
            _check_least(items, goal.max_bytes, fixed)
            return least_kld(items, goal.max_bytes - fixed)
        assert goal.bits_per_weight is not None
        counted, weights = self._counted(items)
        _check_least_bits(counted, weights, goal.bits_per_weight)
        return self._with_embedding(items, least_kld(counted, int(goal.bits_per_weight * weights / 8)))

    def _counted(self, items: Sequence[Item]) -> tuple[list[Item], int]:
        """What bits per weight count, and how many weights that is."""
        counted = [item for item in items if not self._looked_up(item)]
        names = {item.names[0] for item in counted}
        return counted, sum(t.n_weights for t in self.model.tensors if t.name in names)

    def finalists(self, items: Sequence[Item], goal: Goal, count: int) -> dict[str, Allocation]:
        """The allocation, variants of it that fear large losses less and more, and the best ready-made mix."""
        if goal.types:
            return {"as planned": _priced(items, goal.types)}
        found = {"least divergence": self.allocate(items, goal)}
        found |= self._ready_made(items, goal, found["least divergence"])
        if goal.max_kld is None:
            for name, power in (("large losses feared less", 0.8), ("large losses feared more", 1.25)):
                found[name] = repriced(items, self.allocate(bent(items, power), goal))
        unique = {tuple(sorted(a.types.items())): name for name, a in reversed(found.items())}
        kept = sorted(unique.values(), key=list(found).index)[:count]
        return {name: found[name] for name in kept}

    def _ready_made(self, items: Sequence[Item], goal: Goal, ours: Allocation) -> dict[str, Allocation]:
        """The best stock mix or uniform type that takes no more than ours, by what the goal counts."""
        counted = [i for i in items if goal.bits_per_weight is None or not self._looked_up(i)]
        limit = price(counted, ours.types).n_bytes
        ready = menu.priced(counted, menu.ready_made(self.model))
        within = {name: a for name, a in ready.items() if a.n_bytes <= limit}
        if not within:
            return {}
        best = min(within, key=lambda name: within[name].kld)
        return {best: price(items, ours.types | within[best].types)}

    def _with_embedding(self, items: Sequence[Item], found: Allocation) -> Allocation:
        """A token embedding that is only looked up is no part of the bits per weight: its loss is kept small."""
        types, n_bytes, kld = dict(found.types), found.n_bytes, found.kld
        for item in filter(self._looked_up, items):
            small = [c for c in item.choices if c.kld <= _LOOKED_UP_SHARE * found.kld]
            choice = min(small or item.choices[-1:], key=lambda c: c.n_bytes)
            types[item.names[0]], n_bytes, kld = choice.type, n_bytes + choice.n_bytes, kld + choice.kld
        return Allocation(types, n_bytes, kld)

    def _looked_up(self, item: Item) -> bool:
        return self.untied and item.names[0] == _EMBEDDING

    def _fixed_bytes(self, items: Sequence[Item]) -> int:
        """What the file holds beside the tensors that are chosen: header, norms and the like."""
        chosen = {name for item in items for name in item.names}
        frame = frame_of(self.header, {}, {})
        rest = sum(-(-i.n_bytes // 32) * 32 for i in frame.tensors if i.name not in chosen)
        return len(frame.head) + _OWN_KEYS_BYTES + rest + 32 * len(chosen)

    # ---- build and measure -------------------------------------------------------------------------

    def make(self, allocation: Allocation, out: Path) -> str:
        """Build one file; returns its SHA-256."""
        recipe = Recipe(allocation.types, self.source_hash, self.refined, self._sensitivity_hash())
        with bar(f"building {out.name}", allocation.n_bytes, in_bytes=True) as shown:
            return self._builder.build(recipe, out, shown)

    def measure(self, files: Sequence[Path], text: str, most_tokens: int) -> list[Divergence]:
        """Each file against the source."""
        source = Path(self.header.files[0])
        with bar("measuring", None) as shown:
            return divergences(
                self.engine, source, files, text, settings(), most_tokens=most_tokens, bar=shown
            )

    def _described(
        self, name: str, allocation: Allocation, measured: Divergence | None, n_bytes: int
    ) -> Finalist:
        frame = frame_of(self.header, allocation.types, {})
        kinds = Counter(info.type for info in frame.tensors)
        if measured:
            self.say(f"{name}: predicted {show_number(allocation.kld)}, measured {show_number(measured.kld)}")
        return Finalist(
            name,
            self.bits_per_weight(frame),
            n_bytes,
            dict(kinds.most_common()),
            allocation.kld,
            measured,
        )

    def bits_per_weight(self, frame: Frame) -> float:
        """Of every matrix but a token embedding that is only looked up."""
        matrices = [
            i for i in frame.tensors if len(i.shape) > 1 and not (self.untied and i.name == _EMBEDDING)
        ]
        weights = sum(
            i.n_bytes // BY_NAME[i.type].block_bytes * BY_NAME[i.type].block_weights for i in matrices
        )
        return 8 * sum(i.n_bytes for i in matrices) / weights

    def _built(
        self,
        best: _Entry,
        final: Divergence,
        found: Sequence[Finalist],
        points: tuple[Point, ...],
        out: Path,
    ) -> Built:
        return Built(
            artifact=str(out),
            sha256=best.sha256,
            bytes=best.finalist.n_bytes,
            bpw=best.finalist.bits_per_weight,
            tensor_types=best.finalist.tensor_types,
            predicted_kld=best.allocation.kld,
            measured=final,
            finalists=tuple(found),
            frontier=points,
            sensitivity=self.sensitivity.source,
            source=self.header.files[0],
            source_hash=self.source_hash,
            types=best.allocation.types,
            versions={"penjing": __version__, "engine": self.engine.version},
        )

    def _sensitivity_hash(self) -> str:
        s = self.sensitivity
        known = f"{s.model} {s.tokens} {s.seed} {s.text_sha256} {s.source} {s.version}"
        return hashlib.sha256(known.encode()).hexdigest()


def _priced(items: Sequence[Item], types: dict[str, str]) -> Allocation:
    try:
        return price(items, types)
    except KeyError as error:
        raise UsageError(
            f"the plan has no type that can be built for every matrix: {error.args[0]} is not one",
            hint="make the plan again: `penjing plan MODEL --max-kld 0.05 --json`",
        ) from None


def _rank(entry: _Entry, goal: Goal) -> tuple[bool, float]:
    """The nearest; under a limit on the divergence, the smallest that keeps it."""
    seen = entry.finalist.measured
    if goal.max_kld is None or seen is None:
        return False, seen.kld if seen else 0.0
    return seen.kld > goal.max_kld, entry.finalist.n_bytes if seen.kld <= goal.max_kld else seen.kld


def _write_beside(out: Path, built: Built) -> None:
    """The manifest and the recipe, before the file takes its name."""
    store.write_atomically(out.with_name(out.name + ".types"), recipe_lines(built.types).encode())
    store.write_atomically(out.with_name(out.name + ".json"), msgspec.json.format(msgspec.json.encode(built)))


def recipe_lines(types: Mapping[str, str]) -> str:
    """The assignment as `llama-quantize --tensor-type-file` reads it: one anchored pattern and type on each line."""
    return "".join(f"^{re.escape(name)}$={kind}\n" for name, kind in types.items())


def _check_least(items: Sequence[Item], max_bytes: int, fixed_bytes: int) -> None:
    """Raises DoesNotFit with the size of the smallest possible file."""
    least = fixed_bytes + sum(min(c.n_bytes for c in item.choices) for item in items)
    if least > max_bytes:
        raise DoesNotFit(
            f"the smallest possible file takes {show_bytes(least)}, the limit is {show_bytes(max_bytes)}",
            hint=f"ask for a little more than that: `--size {1 + least * 51 // 50}`",
        )


def _check_least_bits(items: Sequence[Item], n_weights: int, bits_per_weight: float) -> None:
    """Raises DoesNotFit with the bits per weight of the smallest formats."""
    least = 8 * sum(min(c.n_bytes for c in item.choices) for item in items) / n_weights
    if least > bits_per_weight:
        raise DoesNotFit(
            f"the smallest formats take {show_number(least)} bits per weight, the limit is {bits_per_weight:g}",
            hint=f"ask for a little more than that: `--bpw {show_number(1.02 * least)}`",
        )
