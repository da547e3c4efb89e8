"""What the nodes share: the pack's own types and their place in the menu."""

from comfy_api.latest import io

CATEGORY = "SafeCFG"
HGRType = io.Custom("HGR")
PairsType = io.Custom("PAIRS")
