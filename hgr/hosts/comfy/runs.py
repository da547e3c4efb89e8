"""What SafeCFG did in one queued prompt, told once in the log and on the nodes of the editor that queued it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from comfy_execution.progress import NodeProgressState, ProgressHandler, add_progress_handler, get_progress_state
from comfy_execution.utils import get_executing_context

import nodes as host_nodes  # ComfyUI's, not this pack's folder of that name

from . import editor

log = logging.getLogger("safecfg")
_NAME = "safecfg"
_MOST = 32  # different prompts of a run that its node shows
_GUIDES = {"MODEL", "GUIDER", "*"}  # outputs that a patched model passes through
_CATEGORY = "SafeCFG"


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
        found = run.found.setdefault(node_id, {"prompts": [], "concepts": list(concepts), "notes": []})
        for kept, new in ((found["prompts"], prompts), (found["notes"], notes)):
            kept += [each for i, each in enumerate(new) if each not in (*kept, *new[:i])]
            del kept[_MOST:]
        editor.show_fired(node_id, run.prompt_id, used=True, **found)


def note(notes: Sequence[str]) -> None:
    """Say what the node that executes now cannot see."""
    if not notes:
        return
    context, run = get_executing_context(), _current()
    report(context.node_id if context else None, notes=notes)
    if context and run and "concepts" not in run.graph.get_node(context.node_id)["inputs"]:  # no rows to show them
        editor.show_text(context.node_id, "\n".join(notes))


def _current() -> _Run | None:
    """The record of the queued prompt that this code runs for; None outside one."""
    context, state = get_executing_context(), get_progress_state()
    if context is None or context.prompt_id != state.prompt_id:
        return None
    if _NAME not in state.handlers:
        add_progress_handler(_Run(state.prompt_id, state.dynprompt))
    run: Any = state.handlers[_NAME]
    return run


class _Run(ProgressHandler):
    """The host asks this handler for nothing but keeps it as long as the queued prompt runs, and says which nodes ran.

    enabled: of each SafeCFG node in the graph, whether it is switched on.
    found: what sampling runs reported, by node. said: what the log has said, by node.
    """

    def __init__(self, prompt_id: str, graph: Any):
        super().__init__(_NAME)
        self.prompt_id, self.graph = prompt_id, graph
        self.enabled: dict[str, bool] = {}
        self.found: dict[str, dict[str, Any]] = {}
        self.said: set[tuple[str | None, str]] = set()
        self.started: set[str] = set()
        self.left = editor.outputs_of(prompt_id)

    def start_handler(self, node_id: str, state: NodeProgressState, prompt_id: str) -> None:
        self.started.add(node_id)

    def finish_handler(self, node_id: str, state: NodeProgressState, prompt_id: str) -> None:
        if node_id in self.left:
            self.left.remove(node_id)
            if not self.left:
                self._end()

    def _end(self) -> None:
        """All outputs are there: say which nodes no sampling run has used, though samplers ran."""
        for node_id, enabled in self.enabled.items():
            if enabled and node_id not in self.found and self._sampled_without(node_id):
                log.warning(
                    "SafeCFG node %s was not used in this run: no sampler's model comes through it. Put it after model "
                    "merges, directly before the sampler.",
                    node_id,
                )
                editor.show_fired(node_id, self.prompt_id, used=False)

    def _sampled_without(self, node_id: str) -> bool:
        """Whether samplers ran: those behind the node, or any if there are none behind it. Those that were cached
        did not."""
        behind, models = set(), [node_id]
        for maker in models:
            for user in self.graph.all_node_ids():
                if any(maker == origin for origin, _ in self._models_into(user)) and user not in models:
                    (models.append if self._guides(user) else behind.add)(user)
        return any(self._samples(user) for user in (behind or self.started) & self.started)

    def _models_into(self, node_id: str) -> list[tuple[str, int]]:
        """The links by which a node gets models and guiders: node and output."""
        links = [v for v in self.graph.get_node(node_id)["inputs"].values() if isinstance(v, list) and len(v) == 2]
        return [
            (maker, slot) for maker, slot in links if set(self._class(maker).RETURN_TYPES[slot : slot + 1]) & _GUIDES
        ]

    def _guides(self, node_id: str) -> bool:
        """Whether a model or guider comes out of the node."""
        return not _GUIDES.isdisjoint(self._class(node_id).RETURN_TYPES)

    def _samples(self, node_id: str) -> bool:
        """Whether the node uses up a model or guider, and is not one of ours."""
        ours = str(self._class(node_id).CATEGORY).startswith(_CATEGORY)
        return not ours and not self._guides(node_id) and bool(self._models_into(node_id))

    def _class(self, node_id: str) -> Any:
        mappings: Any = host_nodes.NODE_CLASS_MAPPINGS  # type: ignore[reportAttributeAccessIssue]
        return mappings[self.graph.get_node(node_id)["class_type"]]
