"""Planted faults: a part as it is, but for one thing that is wrong with what it gives. A check that passes both has no force.

The faulty part is a copy whose class overrides one method, so that fitting, options and everything else stay the part's own. A fault is
caught where a check that the part itself passes no longer passes.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Call = Callable[..., Any]
Fault = Callable[..., Any]
"""(what the part's own method is, the arguments of this call) -> what the faulty one gives."""


def _block(given: tuple[Any, ...]) -> Any:
    return next(one for one in given if hasattr(one, "offsets"))


def shifted(own: Call, *given: Any) -> Any:
    """Every token takes its left neighbour's place, within its sample; the first that of the last."""
    block = _block(given)
    bounds = block.offsets.unfold(0, 2, 1).tolist()
    index = torch.cat([torch.arange(a, b).roll(1) for a, b in bounds]) if bounds else torch.arange(0)
    if given[0] is block:
        found = own(*given)
        return found[..., index, :]
    return own(given[0].roll(1, -2), *given[1:])  # a pooled score: over the edges of samples


def truth_leak(own: Call, *given: Any) -> Any:
    """Adds the labels, wherever they are shown."""
    found, block = own(*given), _block(given)
    if block.labels is None or block.truth is None:
        return found
    added = block.labels if found.shape[-2] == len(block.labels) else block.truth.clamp(min=0)
    return found + 0.1 * added.float().sum()


def never_the_same(own: Call, *given: Any) -> Any:
    """Adds noise of a generator that nobody seeded."""
    return _plus(own(*given), lambda shape: torch.rand(shape, generator=_unseeded()))


def _unseeded() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator


def global_random(own: Call, *given: Any) -> Any:
    """Adds noise of the global generator, which a run does not seed."""
    return _plus(own(*given), torch.rand)


def _plus(found: Any, noise: Callable[[Any], Any]) -> Any:
    if isinstance(found, np.ndarray):
        return found + noise(found.shape).numpy()
    return found + noise(found.shape).to(found.dtype)


def in_place(own: Call, *given: Any) -> Any:
    """Doubles the block's values on the way."""
    found = own(*given)
    _block(given).values.mul_(2)
    return found


def by_its_block(own: Call, *given: Any) -> Any:
    """Adds the number of samples that happen to be in the same block."""
    return own(*given) + len(_block(given).ids)


def offsets_ignored(own: Call, *given: Any) -> Any:
    """Takes the tokens for as many equal samples."""
    block = _block(given)
    even = torch.linspace(0, block.values.shape[1], len(block.ids) + 1).round().to(torch.int64)
    return own(*(replace(one, offsets=even) if one is block else one for one in given))


def swapped(own: Call, *given: Any) -> Any:
    """Says of every concept what holds for the one before it."""
    found = own(*given)
    return np.roll(found, 1, -1) if isinstance(found, np.ndarray) else found.roll(1, -1)


def earlier_calls(own: Call, *given: Any, calls: Any = None) -> Any:
    """Adds the number of earlier calls."""
    return own(*given) + next(calls)


def one_sample_late(own: Call, *given: Any) -> Any:
    """Gives every sample the score of the one before it."""
    found = own(*given)
    return np.roll(found, 1, 0) if isinstance(found, np.ndarray) else found.roll(1, -2)


def no_number(own: Call, *given: Any) -> Any:
    """Gives NaN in one place: the first sample's or token's."""
    found = own(*given)
    found = found.copy() if isinstance(found, np.ndarray) else found.clone()
    found[..., :1, :] = np.nan
    return found


def half_precision(own: Call, *given: Any) -> Any:
    """Gives 16 bit numbers."""
    found = own(*given)
    return found.astype(np.float16) if isinstance(found, np.ndarray) else found.half()


def by_the_call(own: Call, samples: Any, *given: Any) -> Any:
    """Adds the number of samples asked about in the same call."""
    return own(samples, *given) + len(samples)


def weights_ignored(own: Call, evaluation: Any, weights: Tensor) -> Any:
    """Takes every weighting for all ones."""
    return own(evaluation, torch.ones_like(weights))


def unknown_counted(own: Call, evaluation: Any, weights: Tensor) -> Any:
    """Takes unknown items for negative ones."""
    return own(replace(evaluation, truth=evaluation.truth.clamp(min=0)), weights)


def zero_for_none(own: Call, *given: Any) -> Any:
    """Gives 0 where there is no number."""
    return own(*given).nan_to_num()


def sites_reversed(own: Call, inputs: Any, sites: Any) -> Any:
    """Gives the layers in the order of the model's depth, last first, whatever is asked for."""
    done = own(inputs, sites)
    return replace(done, values=done.values.flip(0), summary=done.summary.flip(0)) if len(sites) > 1 else done


def tokens_late(own: Call, inputs: Any, sites: Any) -> Any:
    """Gives every token the values of the one before it, over the edges of samples."""
    done = own(inputs, sites)
    return replace(done, values=done.values.roll(1, 1))


def by_the_batch(own: Call, inputs: Any, sites: Any) -> Any:
    """Adds a number that grows with the batch."""
    done = own(inputs, sites)
    return replace(done, values=done.values * (1 + 0.1 * len(done.offsets)))


def dropout_on(own: Call, inputs: Any, sites: Any) -> Any:
    """Sets values to zero at random, as a model in training mode does."""
    done = own(inputs, sites)
    kept = torch.rand(done.values.shape, generator=_unseeded()) > 0.1
    return replace(done, values=done.values * kept.to(done.values.device))


def wrong_offsets(own: Call, inputs: Any, sites: Any) -> Any:
    """Moves the first edge between two samples by one token."""
    done = own(inputs, sites)
    offsets = done.offsets.clone()
    offsets[1] -= 1
    return replace(done, offsets=offsets)


def split_missing(own: Call, **options: Any) -> Any:
    """Leaves out cal."""
    loaded = own(**options)
    return type(loaded)({name: split for name, split in loaded.items() if name != "cal"})


def id_repeated(own: Call, **options: Any) -> Any:
    """Gives every sample of test the ids of train."""
    loaded = own(**options)
    n = min(len(loaded["test"]), len(loaded["train"]), 4)
    test = loaded["test"].select(range(n)).remove_columns("id").add_column("id", loaded["train"]["id"][:n])
    return type(loaded)({**loaded, "test": test})


def rows_shuffled(own: Call, calls: Any = None, **options: Any) -> Any:
    """Gives another order at every reading."""
    loaded = own(**options)
    n, turn = min(len(loaded["train"]), 50), next(calls) + 1
    return type(loaded)({**loaded, "train": loaded["train"].select([(i + turn) % n for i in range(n)])})


ON_BLOCKS = (never_the_same, global_random, earlier_calls, truth_leak, in_place, by_its_block, swapped)
FAULTS: Mapping[str, tuple[Fault, ...]] = {
    "detectors": (*ON_BLOCKS, shifted, offsets_ignored, one_sample_late, no_number),
    "concept_methods": (*ON_BLOCKS, shifted, no_number, half_precision),
    "localizers": (*ON_BLOCKS, shifted, no_number),
    "explainers": (never_the_same, global_random, earlier_calls, swapped, no_number, half_precision),
    "scorers": (never_the_same, global_random, earlier_calls, by_the_call, one_sample_late, half_precision),
    "metrics": (never_the_same, earlier_calls, weights_ignored, unknown_counted, zero_for_none, swapped, half_precision),
    "backbones": (sites_reversed, tokens_late, by_the_batch, dropout_on, wrong_offsets),
    "datasets": (split_missing, id_repeated, rows_shuffled),
}
"""Kind -> the faults that are planted in a part of it. An explainer is a localizer that asks the model."""
METHOD = {
    "detectors": "pool",
    "concept_methods": "activate",
    "localizers": "score",
    "explainers": "explain",
    "scorers": "score",
    "metrics": "compute",
    "backbones": "forward",
}


def faulty(kind: str, part: Any, fault: Fault) -> Any:
    """The part with one fault planted; of a data set, the function that loads it."""
    more = {"calls": itertools.count()} if fault in (earlier_calls, rows_shuffled) else {}
    if kind == "datasets":
        return lambda **options: fault(part, **more, **options)

    def changed(own: Call) -> Call:
        return lambda *given: fault(own, *given, **more)

    return _overridden(part, METHOD[kind], changed)


def _overridden(part: Any, method: str, changed: Callable[[Call], Call]) -> Any:
    """A copy of the part whose method is changed; so is that of what its fit or pick returns. TypeError where that cannot be."""
    base = type(part)

    def again(name: str) -> Call:
        def call(self: Any, *given: Any, **named: Any) -> Any:
            made = getattr(base, name)(self, *given, **named)
            return made if type(made) is type(self) else _overridden(made, method, changed)

        return call

    members: dict[str, Any] = {name: again(name) for name in ("fit", "pick", "select") if hasattr(base, name)}
    if hasattr(base, method):
        members[method] = lambda self, *given: changed(getattr(base, method).__get__(self))(*given)
    made = copy.copy(part)
    object.__setattr__(made, "__class__", type(base.__name__, (base,), members))
    return made
