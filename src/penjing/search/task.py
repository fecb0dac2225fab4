"""What a joint search is asked, what it enumerates, and what it finds."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from penjing.cost.passes import Passes, Way
from penjing.figures import Estimate
from penjing.model import Model, Tensor
from penjing.plan import Build, CacheType, Chosen, Drafting, Settings
from penjing.quality.allocate import Allocation, Item, Limits
from penjing.search.choose import Question

_KLD_FACTOR = 1.4  # by which a predicted divergence may be off


class Layout(Struct, frozen=True, order=True):
    """What is enumerated: what the times of products or the limits on the weights depend on."""

    build: Build
    prefill_repack: bool
    repack: bool
    cache_type: CacheType = "f16"
    drafting: Drafting = Drafting()

    @classmethod
    def of(cls, settings: Settings) -> Layout:
        s = settings
        return cls(s.build, s.prefill_repack, s.repack, s.cache_type, s.drafting)

    @property
    def for_prompt(self) -> Way:
        return Way(self.build, self.prefill_repack)

    @property
    def for_answer(self) -> Way:
        return Way(self.build, self.repack)


class Found(Struct, frozen=True):
    """The best types for one layout, and the best settings with them."""

    layout: Layout
    allocation: Allocation
    limits: Limits
    chosen: Chosen


class Task(Struct, frozen=True):
    """A question in which the types are open: `items` tell what each would cost in quality.

    Units:
        together: sequences that decode at once.
        cache_kld: of a q8_0 cache, in nats per token; None where it is not known, and so not proposed.
    """

    question: Question
    items: tuple[Item, ...]
    passes: Passes
    together: int = 1
    cache_kld: float | None = None

    def kld(self, allocation: Allocation, settings: Settings) -> Estimate:
        """The divergence of types and cache together, with the interval that predictions have had."""
        value = allocation.kld + self.kld_of_cache(settings)
        return Estimate(value, value / _KLD_FACTOR, value * _KLD_FACTOR, "fitted")

    def kld_of_cache(self, settings: Settings) -> float:
        return (self.cache_kld or 0.0) if settings.cache_type != "f16" else 0.0

    @property
    def model(self) -> Model:
        return self.question.model

    def multiplied(self) -> Iterator[tuple[Item, list[Tensor]]]:
        """The items, and which of their tensors a token is multiplied with, the head without a layer."""
        tensors = {t.name: t for t in self.model.tensors}
        for item in self.items:
            yield item, [t for name in item.names for t in self._as_product(tensors[name])]

    def _as_product(self, tensor: Tensor) -> list[Tensor]:
        if tensor.role != "token_embedding":
            return [tensor]
        # of one that is only an embedding rows are looked up, which costs nothing
        return [replace(tensor, layer=None)] if self.model.tied else []
