"""The core of `harness`, the evaluation harness for concepts inside transformers.

The core imports no plugin. Plugins import `harness.api` (and, in their tests, `harness.testing`), nothing else of it.
"""

__version__ = "0.1.0"
