"""SafeCFG for ComfyUI: where ComfyUI enters the pack. The nodes are in `nodes`, the method is in `hgr`."""


async def comfy_entrypoint():
    """Called once by ComfyUI. The import waits until here, because it needs ComfyUI and this file must not."""
    from .nodes.extension import SafeCFGExtension

    return SafeCFGExtension()
