"""What the editor is told besides the graph: an HGR file's content, and what fired in a run. Graphs run without it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from aiohttp import web

from ...core import file
from ...core.hgr import HGRError
from ...data import library
from . import files
from .in_force import in_force

log = logging.getLogger("safecfg")
FIRED = "safecfg.fired"


_ROUTE, _POLICY = "/safecfg/hgr/{name:.+}", "/safecfg/policy"


def add_route() -> bool:
    """GET /safecfg/hgr/NAME: `about` the HGR that a user can choose by this name. GET /safecfg/policy: the policy
    that is in force.

    Returns False, with a warning that names both folders, where another copy of the pack is loaded: a route that is
    registered twice keeps the server from starting.
    """
    from server import PromptServer  # imported here, as the nodes work without a server

    routes = PromptServer.instance.routes
    for route in routes:
        if getattr(route, "path", None) == _ROUTE:
            handlers = (getattr(route, "handler", _answer), _answer)
            copies = [Path(inspect.getfile(handler)).parents[3] for handler in handlers]
            log.warning("there are two copies of SafeCFG, and only the first is used: %s and %s. Remove one.", *copies)
            return False
    routes.get(_ROUTE)(_answer)
    routes.get(_POLICY)(_policy)
    return True


async def _answer(request: web.Request) -> web.Response:
    name = request.match_info["name"]
    try:
        return web.json_response(about(name))
    except FileNotFoundError as error:
        return web.json_response({"error": str(error)}, status=404)
    except HGRError as error:
        return web.json_response({"error": str(error)}, status=422)


async def _policy(_: web.Request) -> web.Response:
    found = in_force()
    return web.json_response(found.about() if found else {"policy": None, "fault": "", "changed": False})


def about(name: str) -> dict[str, Any]:
    """What a user wants to know about an HGR before using it, from the file's header only; and the version of the
    library that new ones are made from.

    Raises FileNotFoundError if no file has this name, and HGRError for a damaged file.
    """
    path = files.find_hgr(name)
    header = file.describe(path)
    return {
        "name": name,
        "concepts": [
            {key: concept[key] for key in ("id", "label", "description", "threshold")} for concept in header["concepts"]
        ],
        "encoder": header["encoder"]["family"],
        "training": header["training"],
        "library": library.version(),
        "probe": header["probe"] is not None,
        "date": datetime.fromtimestamp(files.stamp_of(path)[0] / 1e9, timezone.utc).isoformat(timespec="seconds"),
    }


def show_fired(
    node_id: str,
    prompt_id: str,
    *,
    used: bool,
    prompts: Sequence[list[dict[str, Any]]] = (),
    concepts: Sequence[dict[str, Any]] = (),
    notes: Sequence[str] = (),
) -> None:
    """Make a node show what it did in a queued prompt, to the user who queued it.

    used: False if the prompt is done and no sampling run came through the node.
    prompts: the concepts found in each. concepts: those of the HGR. notes: what SafeCFG cannot see.
    """
    try:
        from server import PromptServer

        server = PromptServer.instance
        if server.client_id is not None:
            told = {"used": used, "prompts": list(prompts), "concepts": list(concepts), "notes": list(notes)}
            server.send_sync(FIRED, {"node": node_id, "prompt_id": prompt_id, **told}, server.client_id)
    except Exception:  # a drawing must never cost the picture
        log.debug("cannot tell the editor what fired", exc_info=True)


def show_text(node_id: str, text: str) -> None:
    """Show a text on a node, as the host's own nodes do."""
    try:
        from server import PromptServer

        server = PromptServer.instance
        if server.client_id is not None:
            server.send_progress_text(text, node_id, server.client_id)
    except Exception:  # a note must never cost the training
        log.debug("cannot show a note", exc_info=True)


def outputs_of(prompt_id: str) -> set[str]:
    """The output nodes for whose sake this queued prompt runs; empty where no server runs it."""
    try:
        from server import PromptServer

        running = PromptServer.instance.prompt_queue.get_current_queue_volatile()[0]
        return {output for item in running if item[1] == prompt_id for output in item[4]}
    except Exception:  # no server, or another one than the host's
        log.debug("cannot see what is queued", exc_info=True)
        return set()
