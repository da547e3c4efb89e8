"""What SafeCFG did in one queued prompt, told once in the log and on the nodes of the editor that queued it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from comfy_execution.graph_utils import is_link
from comfy_execution.progress import (
    NodeProgressState,
    NodeState,
    ProgressHandler,
    ProgressRegistry,
    add_progress_handler,
    get_progress_state,
)
from comfy_execution.utils import get_executing_context

import nodes as host_nodes  # ComfyUI's, not this pack's folder of that name

from . import editor

log = logging.getLogger("safecfg")
_NAME = "safecfg"
_MOST = 32  # different prompts of a run that its node shows
# outputs that a patched model does not pass through; other packs' pipes and switches may hold one
_OTHERS = {"BOOLEAN", "CLIP", "CONDITIONING", "CONTROL_NET", "FLOAT", "HGR", "IMAGE", "INT", "LATENT", "MASK", "NOISE"}
_OTHERS |= {"SAMPLER", "SIGMAS", "STRING", "UPSCALE_MODEL", "VAE", "VIDEO", "AUDIO"}

_GIVE_PICTURES = {"IMAGE", "LATENT", "MASK", "VIDEO", "*", ""}  # or may do so


def expect(node_id: str | None, *, enabled: bool = True) -> None:
    """A SafeCFG node is in the prompt that is about to run, executed or cached. If it is enabled and no sampling run
    reports to it, the log and the node say so in the end."""
    if node_id is not None and (run := _current()) is not None:
        run.enabled[node_id] = enabled


def report(
    node_id: str | None,
    *,
    prompts: Sequence[list[dict[str, Any]]] = (),
    concepts: Sequence[dict[str, Any]] = (),
    notes: Sequence[str] = (),
    text: str = "",
) -> None:
    """What one sampling run found: of each prompt, the concepts found; those of the HGR; what SafeCFG cannot see; and
    all that in words. It adds to what the same node found before in this queued prompt."""
    run = _current()
    for level, line in [(logging.INFO, text), *((logging.WARNING, note) for note in notes)]:
        if line and (run is None or (node_id, line) not in run.said):
            log.log(level, "%s", line)
    if run is None:
        return
    run.said |= {(node_id, line) for line in (text, *notes)}
    if node_id is not None:
        found = run.found.setdefault(node_id, {"prompts": [], "concepts": [], "notes": []})
        news = ((found["prompts"], prompts), (found["concepts"], concepts), (found["notes"], notes))
        for kept, new in news:
            kept += [each for i, each in enumerate(new) if each not in (*kept, *new[:i])]
        if len(found["prompts"]) > _MOST:  # those with findings stay
            found["prompts"] = sorted(found["prompts"], key=lambda each: not each)[:_MOST]
        editor.show_fired(run.graph.get_display_node_id(node_id), run.prompt_id, used=True, **found)


def note(notes: Sequence[str]) -> None:
    """Say what the node that executes now cannot see."""
    if not notes:
        return
    context = get_executing_context()
    report(context.node_id if context else None, notes=notes)
    say()


def say(line: str = "") -> None:
    """Show on the node that executes now what it is doing, above what it cannot see."""
    context, run = get_executing_context(), _current()
    if context is None or run is None:
        return
    shown = [line] if line else []
    if "concepts" not in run.graph.get_node(context.node_id)["inputs"]:  # no rows to show them
        shown += run.found.get(context.node_id, {}).get("notes", [])
    if shown:
        editor.show_text(context.node_id, "\n".join(shown))


def takes_pictures() -> bool:
    """Whether pictures from elsewhere lead into the node that executes now. True where nobody can tell."""
    context, run = get_executing_context(), _current()
    return context is None or run is None or run.takes_pictures(context.node_id)


def texts() -> list[str]:
    """The texts that lead into the node that executes now."""
    context, run = get_executing_context(), _current()
    return [] if context is None or run is None else run.texts(context.node_id)


def _current() -> _Run | None:
    """The record of the queued prompt that this code runs for; None outside one."""
    context, state = get_executing_context(), get_progress_state()
    if context is None or context.prompt_id != state.prompt_id:
        return None
    if _NAME not in state.handlers:
        add_progress_handler(_Run(state))
    run: Any = state.handlers[_NAME]
    return run


class _Run(ProgressHandler):
    """The host asks this handler for nothing but keeps it as long as the queued prompt runs, and says which nodes ran.

    enabled: of each SafeCFG node in the graph, whether it is switched on.
    found: what sampling runs reported, by node. said: what the log has said, by node.
    """

    def __init__(self, registry: ProgressRegistry):
        super().__init__(_NAME)
        self.prompt_id, self.graph = registry.prompt_id, registry.dynprompt
        self.enabled: dict[str, bool] = {}
        self.found: dict[str, dict[str, Any]] = {}
        self.said: set[tuple[str | None, str]] = set()
        self.started: set[str] = set()
        done = {node_id for node_id, each in registry.nodes.items() if each["state"] is NodeState.Finished}
        self.left = editor.outputs_of(self.prompt_id) - done

    def start_handler(self, node_id: str, state: NodeProgressState, prompt_id: str) -> None:
        self.started.add(node_id)

    def finish_handler(self, node_id: str, state: NodeProgressState, prompt_id: str) -> None:
        if node_id in self.left:
            self.left.remove(node_id)
            if not self.left:
                try:
                    self._end()
                except Exception:  # the host's queue would end with it
                    log.debug("cannot tell which SafeCFG nodes were used", exc_info=True)

    def _end(self) -> None:
        """All outputs are there: say which nodes no sampling run has used, though samplers ran."""
        for node_id, enabled in self.enabled.items():
            if enabled and node_id not in self.found and self._sampled_without(node_id):
                log.warning("SafeCFG node %s was not used in this run: %s", node_id, self._reason(node_id))
                editor.show_fired(node_id, self.prompt_id, used=False)

    def _reason(self, node_id: str) -> str:
        if "GUIDER" in self._outputs(node_id):
            return "no sampler takes this guider."
        return (
            "no sampler's model comes through it. Put it after model merges, which keep the patches of one model "
            "alone, directly before the sampler."
        )

    def _sampled_without(self, node_id: str) -> bool:
        """Whether samplers ran: those behind the node, or any if there are none behind it. Those that were cached
        did not, and a node that made others of itself did not sample itself."""
        into = {user: self._links_into(user) for user in self.graph.all_node_ids()}
        samplers = {user for user in into if "LATENT" in self._outputs(user)}
        samplers -= set(self.graph.ephemeral_parents.values())
        samplers = {user for user in samplers if any(self._passes(*link) for link in into[user])}
        users: dict[str, set[str]] = {}
        for user, links in into.items():
            for maker, slot in links:
                if self._passes(maker, slot):
                    users.setdefault(maker, set()).add(user)
        behind, reached = set(), [node_id]
        seen = {node_id}
        for maker in reached:
            for user in users.get(maker, set()) - seen:
                seen.add(user)
                (behind.add if user in samplers else reached.append)(user)
        return bool((behind or samplers) & self.started)

    def takes_pictures(self, node_id: str) -> bool:
        """Whether a node before this one makes pictures of something else than pictures, as loaders do. Empty latents,
        which the host names so, and its even mask are none."""
        return any(
            _GIVE_PICTURES & set(self._outputs(maker))
            and not any(_GIVE_PICTURES & set(self._outputs(before)[slot : slot + 1]) for before, slot in links)
            and not self.graph.get_node(maker)["class_type"].startswith(("Empty", "SolidMask"))
            for maker in self._before(node_id)
            for links in (self._links_into(maker),)
        )

    def texts(self, node_id: str) -> list[str]:
        """What is written in the nodes before this one that give text or make conditionings of it."""
        return [
            value
            for maker in self._before(node_id)
            if {"CONDITIONING", "STRING"} & set(self._outputs(maker))
            for value in self.graph.get_node(maker)["inputs"].values()
            if isinstance(value, str) and value.strip()
        ]

    def _before(self, node_id: str) -> list[str]:
        """All nodes that lead into this one."""
        found = [node_id]
        for each in found:
            found += [maker for maker in dict(self._links_into(each)) if maker not in found]
        return found[1:]

    def _links_into(self, node_id: str) -> list[tuple[str, int]]:
        """The links into a node: node and output."""
        links = [value for value in self.graph.get_node(node_id)["inputs"].values() if is_link(value)]
        return [(maker, int(slot)) for maker, slot in links if self.graph.has_node(maker)]

    def _passes(self, node_id: str, slot: int) -> bool:
        """Whether a model or guider may come out here: nobody knows what is in other packs' pipes."""
        kind = self._outputs(node_id)[slot : slot + 1]
        return bool(kind) and kind[0] not in _OTHERS

    def _outputs(self, node_id: str) -> list[str]:
        """The types of a node's outputs. Packs give lists of choices and objects that equal every type."""
        mappings: Any = host_nodes.NODE_CLASS_MAPPINGS  # type: ignore[reportAttributeAccessIssue]
        kinds = getattr(mappings[self.graph.get_node(node_id)["class_type"]], "RETURN_TYPES", ())
        return [str(kind) if isinstance(kind, str) else "" for kind in kinds]
