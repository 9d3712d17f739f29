"""The concept method `sae`: units of a published sparse autoencoder, matched to concepts on cal. Method section 8.

Nothing is fitted. The encoder reads the model's own values x = e * scale + centre, so the run's normalisation makes no difference; that
costs d multiplications a token next to d * K of the encoder, so nothing is folded into its weights. At sites other than its own
activations are NaN, and such a site is never chosen. Where the authors cut JumpReLU off after 64 units a token, all are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from harness.api import Backbone, Blocks, HarnessError, Site, TokenEmbeddings

from .finding import locate
from .pruning import Rules, peaks
from .reading import Dictionary, Wishes, read

ROOM = 128_000_000
"""Bytes of activations that are made at once: one part of a block's tokens."""

PAIRS = 20_000_000
"""Activations above 0 that are kept at once to find each unit's p99."""


def sae(
    argument: str | None = None,
    *,
    layer: int | None = None,
    stream: str | None = None,
    k: int | None = None,
    input_scale: float | None = None,
    centre: bool | None = None,
    min_share: float | None = None,
    min_tokens: int | None = None,
    max_share: float = 1.25,
    strength: float | None = None,
    revision: str = "main",
) -> Sae:
    """The concept method of a folder, a file, or org/repo/path on the Hub.

    layer, stream, k, input_scale, centre: what the files do not say (`reading.Wishes`). min_share, min_tokens, max_share, strength:
    which units are matched (`pruning.Rules`). revision: branch, tag or commit on the Hub.
    """
    if not argument:
        raise HarnessError("sae needs a sparse autoencoder: sae:<folder>, or sae:<org>/<repo>/<path> on the Hub")
    rules = Rules(min_share, min_tokens, max_share, strength)
    return Sae(read(argument, locate(argument, str(revision)), Wishes(layer, stream, k, input_scale, centre)), rules)


@dataclass(frozen=True)
class Sae:
    """A dictionary and the rules by which its units are pruned."""

    dictionary: Dictionary
    rules: Rules

    def check(self, backbone: Backbone, sites: Sequence[Site]) -> None:
        """Raises where the run does not have the site, or the model not the width, that the dictionary was trained on."""
        self._check_width(backbone.width, f"backbone {backbone.name}")
        site = self.dictionary.site
        if site in sites:
            return
        streams = "" if site.stream == "residual" else f" --streams {site.stream}"
        raise HarnessError(
            f"{self.dictionary.name} reads site {site.label}, which is not in this run; it has {', '.join(s.label for s in sites)} "
            f"(backbone {backbone.name}, blocks 0..{backbone.n_layers - 1}); use --layers {site.layer}{streams}"
        )

    def _check_width(self, width: int, whose: str) -> None:
        own = self.dictionary.encoder.weight.shape[0]
        if own != width:
            raise HarnessError(
                f"{self.dictionary.name} reads vectors of width {own}; {whose} has width {width}; use the model it was trained on"
            )

    def fit(self, train: Blocks) -> SaeUnits:
        """All units; nothing is fitted, train gives the normalisation to be undone. Its samples may be summaries: one token each."""
        self._check_width(train.width, "the run")
        site, encoder = self.dictionary.site, self.dictionary.encoder.to(train.centre.device)
        place = train.sites.index(site) if site in train.sites else None
        raw = Raw(place, train.centre[place or 0, 0], train.scale[place or 0, 0])
        summaries = len(train.offsets) > 1 and int(train.offsets.diff().max()) <= 1
        return SaeUnits(replace(self.dictionary, encoder=encoder), raw, None if summaries else self.rules)


@dataclass(frozen=True)
class Raw:
    """The model's own values at the dictionary's site: its place among the run's sites (None = not there), centre and scale [d]."""

    place: int | None
    centre: Tensor
    scale: Tensor

    def parts(self, block: TokenEmbeddings, width: int) -> Iterator[tuple[slice, Tensor]]:
        """(tokens, x [t, d]) of a block, so many that activations [t, width] fit `ROOM`; nothing where the site is not there."""
        step = max(1, ROOM // (4 * max(width, 1)))
        for start in range(0, block.values.shape[1] if self.place is not None else 0, step):
            tokens = slice(start, start + step)
            yield tokens, block.values[self.place, tokens] * self.scale + self.centre


@dataclass(frozen=True)
class SaeUnits:
    """The units of a dictionary that are left, named by their index in it. rules: None on summaries; kept: None = all."""

    dictionary: Dictionary
    raw: Raw
    rules: Rules | None
    kept: Tensor | None = None
    note: str = ""

    sparse: ClassVar[bool] = True

    @cached_property
    def units(self) -> Sequence[str]:
        """The indices in the dictionary, as on Neuronpedia."""
        return tuple(str(i) for i in (range(self.dictionary.encoder.size) if self.kept is None else self.kept.tolist()))

    def activate(self, block: TokenEmbeddings, units: slice) -> Tensor:
        """[L, T, k] >= 0; NaN at every site but the dictionary's."""
        columns = units if self.kept is None else self.kept[units]
        return self._activations(block, columns, len(range(len(self.units))[units]))

    def _activations(self, block: TokenEmbeddings, columns: slice | Tensor, n: int) -> Tensor:
        encoder = self.dictionary.encoder
        found = block.values.new_full((*block.values.shape[:2], n), torch.nan)
        for tokens, x in self.raw.parts(block, encoder.size if encoder.kind == "topk" else n):
            found[self.raw.place, tokens] = encoder(x, columns)
        return found

    def pick(self, index: Tensor) -> SaeConcepts:
        """The units index [L, C] at the dictionary's site; two concepts may have the same one."""
        index = index[self.raw.place or 0].to(self.raw.centre.device)
        unit, place = index.clamp(min=0).unique(return_inverse=True)
        return SaeConcepts(self, unit if self.kept is None or not len(self.kept) else self.kept[unit], place, index < 0)

    def select(self, cal: Iterable[TokenEmbeddings], positives: Tensor) -> SaeUnits:
        """The units that `Rules` leave; on summaries those active at least once; none where the site is not in this part of the run."""
        if self.raw.place is None:
            return replace(self, kept=torch.zeros(0, dtype=torch.int64, device=self.raw.centre.device))
        encoder, rules = (
            self.dictionary.encoder,
            self.rules or Rules(min_share=0, min_tokens=1, max_share=torch.inf, strength=0),
        )
        counts = sum(encoder.fired(x) for block in cal for _, x in self.raw.parts(block, encoder.size))
        counts = counts if isinstance(counts, Tensor) else torch.zeros(encoder.size, dtype=torch.int64)
        limits = rules.limits(positives, encoder.kind == "topk")
        kept = limits.frequent(counts, self.dictionary.name)
        frequent = len(kept)
        if limits.strength > 0:
            kept = kept[limits.strong(self._peaks(cal, kept, counts[kept]))]
        said = f"{int((counts > 0).sum())} active on cal, {frequent} of them neither too rare nor too common, {len(kept)} of these strong"
        return replace(self, kept=kept, note=said)

    def _peaks(self, cal: Iterable[TokenEmbeddings], columns: Tensor, counts: Tensor) -> Tensor:
        """[n]: the p99 of the given units, in slices with at most `PAIRS` activations, a pass over cal each."""
        group = (counts.cumsum(0) - 1) // PAIRS
        return torch.cat([peaks(self._active(cal, columns[group == g]), int((group == g).sum())) for g in group.unique()])

    def _active(self, cal: Iterable[TokenEmbeddings], columns: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        encoder = self.dictionary.encoder
        for block in cal:
            for _, x in self.raw.parts(block, encoder.size if encoder.kind == "topk" else len(columns)):
                found = encoder(x, columns)
                token, unit = (found > 0).nonzero(as_tuple=True)
                yield unit, found[token, unit]


@dataclass(frozen=True)
class SaeConcepts:
    """Units as concepts: `columns` of the dictionary, the place [C] of each concept among them, and which concepts have none [C]."""

    own: SaeUnits
    columns: Tensor
    place: Tensor
    missing: Tensor

    vectors: ClassVar[None] = None
    sparse: ClassVar[bool] = True

    def activate(self, block: TokenEmbeddings) -> Tensor:
        """[L, T, C]; NaN at other sites, and for a concept without a unit."""
        found = self.own._activations(block, self.columns, len(self.columns))
        return found[..., self.place].masked_fill(self.missing, torch.nan)
