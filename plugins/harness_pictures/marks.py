"""What every picture of tokens says with: colours in tenths of the cutoff, words for marks and numbers, and names made harmless.

The scale is the panel's share (`logged.Panel.shares`): 0 at the median test token, 1 at the super-activator cutoff; colours end at 0 and 1.5.
Colour never stands alone: super-activators are outlined, tokens in the concept dotted, and every number is in words somewhere.
"""

from __future__ import annotations

import math
import re
import unicodedata

TOP = 1.5
"""The share from which on colours no longer change."""
# fmt: off
HEAT = (
    "#02020b", "#100b2d", "#251255", "#420f75", "#5d177f", "#762181", "#912b81", "#ad347c",
    "#c73d73", "#e04c67", "#f2645c", "#fb835f", "#fea16e", "#fec185", "#fde0a1", "#fcfdbf",
)
"""Patches over an image: matplotlib's magma, one colour for every tenth; the last is for 1.5 and above."""
PAPER = (
    "#ffffff", "#fffbe6", "#fff6cf", "#ffeeb5", "#fee39c", "#fed37d", "#fec05c", "#fdab43",
    "#f79430", "#ee7f20", "#e06a14", "#cf560b", "#b94706", "#9f3a04", "#852f05", "#6b2607",
)
"""Words on white: after ColorBrewer's YlOrBr."""
NIGHT = (
    "#16171b", "#221c18", "#2f2116", "#3d2713", "#4c2e11", "#5d360e", "#70400c", "#854b0a",
    "#9b5809", "#b2670c", "#c87814", "#dc8b22", "#ec9f38", "#f6b557", "#fbcb7e", "#fde1a9",
)
"""The same on black: brighter is more."""
# fmt: on
TRUTH = {1: "in the concept", 0: "not in the concept", -1: "truth unknown"}
OUTLINED = "super-activator: activation at or above the cutoff"
DOTTED = "in the concept (ground truth)"
REORDERS = re.compile("[\u202a-\u202e\u2066-\u2069]")


def step(share: float) -> int:
    """Which of the 16 colours: the share in tenths, 0 where it is not a number."""
    return 0 if math.isnan(share) else int(min(max(share, 0.0), TOP) * 10 + 1e-9)


def ink(colour: str) -> str:
    """Black or white, whichever stands out more on the colour (WCAG relative luminance)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#ffffff"


def number(value: float) -> str:
    """Four figures, and no minus sign on nothing."""
    return f"{value + 0.0:.4g}"


def visible(text: str) -> str:
    """The text without what moves a cursor or turns the reading order: such characters are shown by sign or number."""
    text = REORDERS.sub(lambda found: f"[U+{ord(found.group()):04X}]", text.replace("\r\n", "\n"))
    return "".join(map(_sign, text))


def _sign(character: str) -> str:
    kind = unicodedata.category(character)
    if kind in ("Zl", "Zp"):
        return "\n"
    if kind == "Cs":
        return "\ufffd"
    if kind != "Cc" or character in "\n\t":
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 32 else "\u2421" if code == 127 else f"[U+{code:04X}]"


def line(text: str, limit: int = 120) -> str:
    """A name as one harmless line of at most `limit` characters, the middle left out."""
    one = " ".join(visible(text).split())
    return one if len(one) <= limit else f"{one[: limit * 2 // 3]}…{one[-(limit // 3 - 1) :]}"
