"""Other methods than SafeCFG, in our own short versions from their papers' formulas. One file each, one interface."""

from __future__ import annotations

from .ablation import Ablation
from .casg import CASG, CASGMax
from .esd import ESD
from .lora import LoRA
from .method import Method
from .nag import NAG
from .negative_own import NegativeOwn
from .prototypes import PrototypeGuided
from .safe_denoiser import SafeDenoiser
from .safree import SAFREE
from .trasce import TraSCE
from .uce import UCE

RIVALS: dict[str, type[Method]] = {
    "negative_own": NegativeOwn,
    "casg": CASG,
    "casg_max": CASGMax,
    "safree": SAFREE,
    "trasce": TraSCE,
    "nag": NAG,
    "prototypes": PrototypeGuided,
    "safe_denoiser": SafeDenoiser,
    "uce": UCE,
    "esd": ESD,
    "ablation": Ablation,
    "lora": LoRA,
}
