"""What is shown of samples: their tokens lit by a concept, from a result's tokens.safetensors, and text or picture from the data set.

A token is one byte: its activation in tenths of the cutoff (0 = the median test token, 15 = 1.5 and above), and flags.
"""

from __future__ import annotations

import base64
import io
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.api import Evidence, HarnessError, View, read_tokens
from harness_site.words import visible

ABOVE, INSIDE, UNKNOWN = 16, 32, 64
"""Flags: at or above the cutoff; in the concept; truth unknown."""
LONGEST = 2000
"""Characters of a text that are shown."""
SIDE = 176
"""Pixels of a picture's longer side."""


class Lit:
    """The logged test tokens of one result."""

    def __init__(self, result: Evidence) -> None:
        tensors, about = read_tokens(result.folder)
        self.tensors = {name: tensor.numpy() for name, tensor in tensors.items()}
        self.cutoffs, self.place = about["super_activator_cutoffs"], {name: i for i, name in enumerate(about["ids"])}
        self._zeros: dict[int, float] = {}

    def rows(self, name: str) -> slice:
        """Where a sample's tokens are."""
        i = self.place[name]
        return slice(int(self.tensors["offsets"][i]), int(self.tensors["offsets"][i + 1]))

    def bytes(self, name: str, concept: int) -> str | None:
        """A sample's tokens for a concept, base64; None where the concept has no cutoff or the sample is not there."""
        cutoff = self.cutoffs[concept]
        if cutoff is None or name not in self.place:
            return None
        own = self.tensors["activations"][self.rows(name), concept].astype(np.float64)
        truth = self.tensors["truth"][self.rows(name), concept]
        share = (own - self._zero(concept, cutoff)) / (cutoff - self._zero(concept, cutoff))
        steps = np.clip(np.nan_to_num(share, nan=0.0, posinf=1.5, neginf=0.0), 0.0, 1.5) * 10 + 1e-9
        flags = ABOVE * (own >= cutoff) + INSIDE * (truth == 1) + UNKNOWN * (truth < 0)
        return base64.b64encode((steps.astype(np.uint8) + flags.astype(np.uint8)).tobytes()).decode()

    def _zero(self, concept: int, cutoff: float) -> float:
        """The zero of the scale: the median test token, else the lowest, else one below the cutoff."""
        if concept not in self._zeros:
            every = self.tensors["activations"][:, concept].astype(np.float64)
            every = every[np.isfinite(every)]
            below = [x for x in (float(np.median(every)), float(every.min())) if x < cutoff] if len(every) else []
            self._zeros[concept] = below[0] if below else cutoff - 1.0
        return self._zeros[concept]

    def geometry(self, name: str) -> dict[str, Any]:
        """Where the tokens lie: rows and columns of patches with the window's size, else boxes; spans of a text; a count of places."""
        regions = self.tensors["regions"][self.rows(name)]
        if not len(self.tensors["views"]):
            spans = regions[:, :2].tolist() if len(regions) and (regions[:, 1] > 0).any() else None
            return {"n": len(regions), "spans": spans}
        view = View(*self.tensors["views"][self.place[name]].tolist())
        shape: dict[str, Any] = {"n": len(regions), "w": view.window_width, "h": view.window_height}
        rows, columns = (np.unique(regions[:, sides], axis=0) for sides in ([0, 2], [1, 3]))
        grid = [(a, c, b, d) for a, b in rows.tolist() for c, d in columns.tolist()]
        if [tuple(region) for region in regions.tolist()] == grid:
            return {**shape, "rows": rows.tolist(), "columns": columns.tolist()}
        return {**shape, "boxes": regions.tolist()}

    def view(self, name: str) -> View | None:
        """The geometry of an image."""
        return None if not len(self.tensors["views"]) else View(*self.tensors["views"][self.place[name]].tolist())


def lit(result: Evidence) -> Lit | None:
    """The result's tokens, None where they were not logged."""
    return Lit(result) if (result.folder / "tokens.safetensors").is_file() else None


class Raw:
    """The test samples of a task as its data set has them, read when first asked for; `why` says in words that stay why they are not there."""

    def __init__(self, registry: Any, result: Evidence, allowed: bool, pictures: int) -> None:
        self._registry, self._result, self.pictures = registry, result, pictures
        self.modality, self.problem = result.read["task"].get("modality"), ""
        self.why = {
            "tokens": "These samples are stored embeddings: there is nothing to show but their tokens' places.",
            "image": ""
            if pictures
            else "Pictures stay out unless asked for (--samples), as images have licences of their own.",
        }.get(str(self.modality), "")
        self.allowed = allowed and not self.why
        if not allowed and self.modality != "tokens":
            self.why = "The data set was not read for this page (--no-samples): ids and scores only."

    @cached_property
    def _split(self) -> Any:
        from harness.api import load_task  # needs torch, as do pictures; numbers do not

        read = self._result.read
        try:
            task = load_task(self._registry, read["config"]["task"], read["task"]["limit"])
        except HarnessError as error:
            self.why, self.problem = "The data set was not there when this page was made: ids and scores only.", str(error)
            return None
        if task.fingerprint != read["task"]["fingerprint"]:
            self.why = "The data set has changed since this result was made: ids and scores only."
            self.problem = f"the data of task {task.name!r} changed since its results were made; samples are left out"
            return None
        return task.splits["test"]

    @cached_property
    def _place(self) -> dict[str, int]:
        return {} if not self.allowed or self._split is None else {name: i for i, name in enumerate(self._split.ids)}

    def text(self, name: str) -> dict[str, Any] | None:
        """A text's first characters, and how many more there are."""
        if self.modality != "text" or name not in self._place:
            return None
        found = str(self._split.sample(self._place[name]).text)
        return {"text": found[:LONGEST], "more": max(len(found) - LONGEST, 0)}

    def picture(self, name: str, view: View | None) -> str | None:
        """A small JPEG of what the model saw, base64."""
        if self.modality != "image" or name not in self._place:
            return None
        import PIL.Image

        from harness.api import apply_view

        image = self._split.sample(self._place[name]).image.convert("RGB")
        seen = PIL.Image.fromarray(apply_view(np.asarray(image), view)) if view else image
        seen.thumbnail((SIDE, SIDE))
        stored = io.BytesIO()
        seen.save(stored, format="jpeg", quality=72, optimize=True)
        return base64.b64encode(stored.getvalue()).decode()


def pieces(text: str, spans: list[list[int]]) -> list[list[Any]]:
    """[[words, token, ...], ...]: a text in order, each character once, by the first token that covers it; no token = between tokens."""
    found: list[list[Any]] = []
    at = 0
    for token, (start, end) in sorted(enumerate(spans), key=lambda item: (item[1][0], item[0])):
        if start >= len(text):  # cut off
            continue
        start, end = max(min(start, len(text)), at), min(end, len(text))
        if start >= end:
            if found and len(found[-1]) > 1:
                found[-1].append(token)
            continue
        if start > at:
            found.append([visible(text[at:start])])
        found.append([visible(text[start:end]), token])
        at = end
    return [*found, [visible(text[at:])]] if at < len(text) else found


def packed(cells: NDArray[np.bool_]) -> str:
    """Booleans as bits, base64; the first is the highest bit of the first byte."""
    return base64.b64encode(np.packbits(cells.ravel()).tobytes()).decode()
