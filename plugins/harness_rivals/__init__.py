"""Rivals stronger than the paper's baselines: other poolings of the same activations, and separators that see sample labels only.

All go through the same calibration as `superactivator` and `max`: a difference between two rows is a difference between methods.
"""

from collections.abc import Iterable

from harness.api import Entry, Method, hookimpl


@hookimpl
def harness_register_detectors() -> Iterable[Entry]:
    """`topk-mean`, `softmax`, `noisy-or`, `attention`."""
    return [
        Entry("topk-mean", "harness_rivals.pooling:TopMean", "mean of the k=3 strongest tokens"),
        Entry("softmax", "harness_rivals.pooling:Softmax", "soft maximum over tokens: t times log-sum-exp at temperature t=1"),
        Entry(
            "noisy-or", "harness_rivals.noisy_or:NoisyOr", "probability that any token is in the concept, Platt-scaled on train"
        ),
        Entry(
            "attention",
            "harness_rivals.attention:Attention",
            "a learned attention-pooling probe, from train sample labels only",
        ),
    ]


@hookimpl
def harness_register_methods() -> Iterable[Method]:
    """Each detector on linear separators; separators from sample labels and from LAT with the strongest token, and with the tail."""
    poolings = {
        "topk-mean": "mean of the three strongest tokens on linear separators",
        "softmax": "soft maximum over tokens on linear separators",
        "noisy-or": "any token in the concept, by Platt-scaled linear separators",
        "attention": "a learned attention-pooling probe, from sample labels; its map is that of linear separators",
    }
    separators = {
        "samples": ("linear:supervision=samples", "separators fitted on sample labels"),
        "lat": ("lat", "LAT directions"),
    }
    detectors = {"max": ("strongest token", "direct"), "superactivator": ("the paper's method", "superactivator")}
    tags = ("core", "rivals")
    return [
        *(Method(name, summary, "linear", name, "direct", tags=tags) for name, summary in poolings.items()),
        *(
            Method(f"{detector}-{name}", f"{what} on {on}", concepts, detector, localizer, tags=tags)
            for detector, (what, localizer) in detectors.items()
            for name, (concepts, on) in separators.items()
        ),
    ]
