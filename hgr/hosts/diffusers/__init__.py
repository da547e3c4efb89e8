"""diffusers as host: guidance, detection and training on its pipelines."""

from .demo import load_demo_pipeline
from .detection import Detector
from .pipeline import SafeCFG

__all__ = ["Detector", "SafeCFG", "load_demo_pipeline"]
