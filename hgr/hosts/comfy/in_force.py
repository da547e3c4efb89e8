"""The policy of this server: its file and its HGRs, read once, when the server starts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import folder_paths

from ...core.errors import HGRError
from ...core.excerpt import excerpt
from ...core.hgr import HGR
from ...core.policy import Policy, PolicyError, read_policy
from ...core.prompt import Prompt
from ...detection.judge import trained_size
from . import files
from .closed import policy_path
from .quality import rank

log = logging.getLogger("safecfg")


@dataclass
class InForce:
    """policy: None if its file cannot be used; `fault` then says why, and nothing is sampled.

    stamp: of the file as it was read. hgrs: the HGRs of the policy by name, the best first. judge: the HGR whose probe
    judges pictures, if they are judged.
    """

    path: Path
    stamp: tuple[int, int] | None
    policy: Policy | None = None
    fault: str = ""
    hgrs: dict[str, HGR] = field(default_factory=dict)
    judge: HGR | None = None

    @property
    def changed(self) -> bool:
        """Whether the file is not what was read: that counts from the next start."""
        return _stamp(self.path) != self.stamp

    def about(self) -> dict[str, Any]:
        """For the editor and for `policy verify`, without paths."""
        policy = self.policy and self.policy.about() | {"hgr": list(self.hgrs)}
        return {"policy": policy, "fault": self.fault, "changed": self.changed}

    def fit(self, prompts: Sequence[Prompt]) -> HGR:
        """The first HGR that reads all these prompts, at least one. Raises PolicyError if there is none."""
        why = ""
        for hgr in self.hgrs.values():
            try:
                for prompt in prompts:
                    hgr.check(*prompt)
                return hgr
            except HGRError as error:
                why = why or str(error)
        raise PolicyError(f"no HGR of this server fits the text encoder of this model, so it is not used here: {why}")


@cache
def in_force() -> InForce | None:
    """None if there is no policy file; then nothing of the host is touched. Read at the first call."""
    if (path := policy_path()) is None:
        return None
    found = InForce(path, _stamp(path))
    try:
        policy = read_policy(path)
        found.hgrs, found.judge = _hgrs(policy), _judge(policy)
        found.policy = policy
    except OSError as error:
        found.fault = f"{path.name}: it cannot be read ({error.strerror or error})."
    except HGRError as error:
        found.fault = f"{path.name}: {error}"
    except Exception as error:  # whatever it is: a policy that cannot be read must not pass for none
        log.error("SafeCFG policy", exc_info=True)
        found.fault = f"{path.name}: it cannot be used ({excerpt(error)})."
    return found


def check_saving() -> None:
    """Raise PolicyError where an HGR that a user saves would be the operator's after the next start."""
    found = in_force()
    if found and found.policy and not found.policy.hgr:
        raise PolicyError(
            'this server\'s policy takes every HGR in models/hgr (hgr is "auto"), so graphs may not save one there.'
        )


def _hgrs(policy: Policy) -> dict[str, HGR]:
    """The HGRs of a policy, by name; last the bundled one, which reads the demo model alone.

    Raises PolicyError for a file that the policy names and that cannot be used. With "auto" it is passed over.
    """
    found: dict[str, HGR] = {}
    for name in policy.hgr or folder_paths.get_filename_list("hgr"):
        try:
            hgr = files.load_hgr(name).at(policy.sensitivity)
            if missing := policy.required - {c.id for c in hgr.concepts if not c.muted}:
                raise HGRError(f"{name} does not have the concepts {', '.join(sorted(missing))}.")
            found[name] = hgr
        except (HGRError, FileNotFoundError) as error:
            if policy.hgr:
                raise PolicyError(str(error)) from None
            log.warning("SafeCFG policy passes over a file: %s", error)
    if not policy.hgr:
        found = dict(sorted(found.items(), key=lambda each: (-len(each[1].ids), -rank(each[1]))))
    return found | {files.BUNDLED: files.load_hgr(files.BUNDLED).at(policy.sensitivity)}


def _judge(policy: Policy) -> HGR | None:
    if policy.pictures == "off" or policy.judge is None:
        return None
    name = policy.judge.checkpoint
    if name != files.BUNDLED and folder_paths.get_full_path("checkpoints", name) is None:
        raise PolicyError(f'judge: "{excerpt(name)}" is not in models/checkpoints.')
    try:
        hgr = files.load_hgr(policy.judge.hgr)
        trained_size(hgr)  # it has a probe
        return hgr
    except (HGRError, FileNotFoundError) as error:
        raise PolicyError(f"judge: {error}") from None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        return files.stamp_of(path)
    except FileNotFoundError:
        return None
