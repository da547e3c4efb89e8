"""diffusers as host: guidance, detection and training on its pipelines of Stable Diffusion 1.x, 2.x and XL."""

from .demo import load_demo_pipeline
from .detection import Detector
from .pipeline import SafeCFG

__all__ = ["Detector", "SafeCFG", "load_demo_pipeline"]
