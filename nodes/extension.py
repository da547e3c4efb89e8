"""All nodes of the pack, as ComfyUI asks for them."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from . import demo, detect, finetune, guide, loader, model_hgr, pairs, report_card, train


class SafeCFGExtension(ComfyExtension):
    """The pack's nodes. active: whether this is the copy of the pack that is used."""

    def __init__(self, active: bool = True):
        super().__init__()
        self.active = active

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        if not self.active:
            return []
        modules = (loader, model_hgr, guide, detect, report_card, pairs, train, finetune, demo)
        return [node for module in modules for node in module.NODES]
