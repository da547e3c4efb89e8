"""An operator's policy in the host's own classes: what every sampling run passes, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = pytest.mark.oldest


@pytest.fixture
def police(pack, hgr, monkeypatch, tmp_path):
    """Puts a policy in force for one test, with the made-up HGR. Gives what is in force."""
    import comfy.model_base
    import comfy.samplers

    policy, in_force = pack.get("hgr.hosts.comfy.policy"), pack.get("hgr.hosts.comfy.in_force")
    parse = pack.get("hgr.core.policy").parse_policy

    def put(hgrs: Any = None, **settings: Any) -> Any:
        for owner, name in TOUCHED(comfy):
            monkeypatch.setattr(owner, name, getattr(owner, name))  # as it was, at the end of the test
        found = in_force.InForce(tmp_path / "safecfg_policy.json", None, parse(json.dumps(settings)))
        found.hgrs = {each.name: each for each in (hgrs or [hgr])}
        monkeypatch.setattr(policy, "in_force", lambda: found)
        monkeypatch.setattr(policy.folder_paths, "get_user_directory", lambda: str(tmp_path))
        policy.install()
        return found

    return put


def TOUCHED(comfy):
    """All of the host that a policy touches."""
    return (
        (comfy.samplers.CFGGuider, "sample"),
        (comfy.model_base.BaseModel, "__init__"),
        (comfy.model_base.BaseModel, "apply_model"),
    )


def test_a_graph_without_safecfg_is_sampled_as_with_it(kit, hgr, police):
    plain, safe = kit.sample(kit.model, kit.harmful), kit.sample(kit.patch(hgr), kit.harmful)
    assert not plain.equal(safe)
    police()
    assert kit.sample(kit.model, kit.harmful).equal(safe)


def test_a_clean_prompt_is_sampled_bit_for_bit_as_without_a_policy(kit, hgr, police):
    plain = kit.sample(kit.model, kit.clean)
    police()
    assert kit.sample(kit.model, kit.clean).equal(plain)


def test_in_a_batch_the_clean_samples_stay_the_same(kit, police):
    both, shape = kit.batch(kit.clean, kit.harmful), (2, 4, 16, 16)
    plain = kit.sample(kit.model, both, shape=shape)
    police()
    found = kit.sample(kit.model, both, shape=shape)
    assert found[0].equal(plain[0]) and not found[1].equal(plain[1])


@pytest.mark.parametrize(
    "asked",
    [
        {"strength": 0.0},
        {"strength": 0.3},
        {"concepts": '{"skull": 0}'},
        {"start_percent": 0.5},
        {"end_percent": 0.1},
        {"mode": "dynamic"},
        {},
    ],
    ids=str,
)
def test_a_graphs_own_safecfg_cannot_ask_for_less_and_does_not_act_twice(kit, hgr, police, asked):
    safe = kit.sample(kit.patch(hgr), kit.harmful)
    police()
    assert kit.sample(kit.patch(hgr, **asked), kit.harmful).equal(safe)


def test_a_graphs_own_safecfg_may_ask_for_more(kit, hgr, police):
    more = kit.sample(kit.patch(hgr, strength=1.7), kit.harmful)
    police(strength=0.5)
    assert kit.sample(kit.patch(hgr, strength=1.7), kit.harmful).equal(more)


def test_what_the_graph_asks_for_besides_acts_too(kit, pack, hgr, police):
    """The policy leaves skull to the graph; the graph's own HGR has it."""
    safe = kit.sample(kit.patch(hgr), kit.harmful)
    plain = kit.sample(kit.model, kit.harmful)
    police(concepts={"skull": 0})
    assert kit.sample(kit.model, kit.harmful).equal(plain)
    assert kit.sample(kit.patch(hgr), kit.harmful).equal(safe)


def test_a_harmful_prompt_on_the_negative_side_is_no_way_round(kit, hgr, police):
    """At cfg 0 the picture is that of the negative prompt alone."""
    plain = kit.sample(kit.model, kit.clean, kit.harmful, cfg=0.0)
    safe = kit.sample(kit.patch(hgr), kit.harmful, kit.negative, cfg=1.0)
    police()
    found = kit.sample(kit.model, kit.clean, kit.harmful, cfg=0.0)
    assert not found.equal(plain) and (found - safe).abs().max() < 1e-4
