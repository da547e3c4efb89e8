"""SafeCFG for ComfyUI: where ComfyUI enters the pack. The nodes are in `nodes`, the method is in `hgr`."""

WEB_DIRECTORY = "./web"  # the editor's scripts in js/, the nodes' help pages in docs/


async def comfy_entrypoint():
    """Called once by ComfyUI. The import waits until here, because it needs ComfyUI and this file must not."""
    from .hgr.hosts.comfy.closed import closed_on_error

    with closed_on_error():
        from .hgr.hosts.comfy import editor, policy

        active = editor.add_route()
        in_force = policy.install() if active else None
    from .nodes.extension import SafeCFGExtension  # what fails from here on fails with the policy in force

    return SafeCFGExtension(active=active and not (in_force and in_force.fault))
