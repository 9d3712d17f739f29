"""Attribution methods as localizers: which tokens does a concept's score f_c hang on, asked of the model itself (method section 7.4).

Every explainer comes with two kinds of vector: `global` explains the concept's score as the detector sees it, `superactivator` the
pooled cosine to the vector of its super-activators. All recipes carry the tag `attribution`, and none is `core`: they cost hundreds of
forward passes a sample. Their twins without the model (`explained-...`) are localized on the same samples.
"""

from collections.abc import Iterable

from harness.api import Entry, Method, hookimpl

EXPLAINERS = {
    "lime": ("perturbation:Lime", "weighted ridge on random masks of tokens (Ribeiro et al. 2016)", None),
    "kernel-shap": ("perturbation:KernelShap", "Shapley values by weighted least squares (Lundberg and Lee 2017)", None),
    "occlusion": (
        "perturbation:Occlusion",
        "the score lost with a token, or a window of tokens (Zeiler and Fergus 2014)",
        None,
    ),
    "rise": ("perturbation:Rise", "mean score of the random masks that keep a token (Petsiuk et al. 2018)", None),
    "shap-iq": ("shapley:ShapIq", "Shapley interactions of order 1 by KernelSHAP-IQ (Fumagalli et al. 2024)", "attribution"),
    "integrated-gradients": (
        "gradients:IntegratedGradients",
        "gradients along the line from the baseline (Sundararajan et al. 2017)",
        "attribution",
    ),
    "saliency": ("gradients:Saliency", "absolute gradient of the input (Simonyan et al. 2014)", "attribution"),
    "input-x-gradient": ("gradients:InputXGradient", "input times gradient (Shrikumar et al. 2016)", "attribution"),
    "grad-cam": ("blocks:GradCam", "channels of a block weighted by their mean gradient (Selvaraju et al. 2017)", None),
    "fullgrad": ("blocks:FullGrad", "input and bias gradients (Srinivas and Fleuret 2019)", None),
    "mfaba": ("mfaba:Mfaba", "gradients along an adversarial path (Zhu et al. 2024)", None),
}
"""Name -> (where it is, what it is, the pip extra it needs)."""


@hookimpl
def harness_register_localizers() -> Iterable[Entry]:
    """Eleven explainers, and `noise`."""
    made = [
        Entry(name, f"harness_attribution.{target}", summary, extra) for name, (target, summary, extra) in EXPLAINERS.items()
    ]
    return [*made, Entry("noise", "harness_attribution.noise:Noise", "a random number per token: the floor of every map")]


@hookimpl
def harness_register_methods() -> Iterable[Method]:
    """Two recipes per explainer, and the maps that need no model on the same samples."""
    made = []
    for name, (_, summary, _) in EXPLAINERS.items():
        made += [
            Method(name, f"{summary}, of the concept's score", "linear", "superactivator", name, tags=("attribution",)),
            Method(
                f"{name}-superactivator",
                f"{summary}, of the cosine to its super-activators",
                "linear",
                "superactivator",
                f"{name}:vector=superactivator",
                tags=("attribution",),
            ),
        ]
    twins = {
        "direct": "the concept's own activations",
        "superactivator": "cosine to its super-activators",
        "noise": "random maps",
    }
    return made + [
        Method(
            f"explained-{name}",
            f"{summary}, on the samples that attribution explains",
            "linear",
            "superactivator",
            name,
            localize_on="explained",
            tags=("attribution",),
        )
        for name, summary in twins.items()
    ]
