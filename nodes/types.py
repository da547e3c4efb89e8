"""What the nodes share: the pack's own type and its place in the menu."""

from comfy_api.latest import io

CATEGORY = "SafeCFG"
HGRType = io.Custom("HGR")
