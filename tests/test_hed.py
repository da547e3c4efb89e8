"""HED: zero for clean prompts, scale-free, per concept."""

import torch
from helpers import prompt, safe_features, small_hgr

from hgr.core.prompt import Prompt
from hgr.detection.hed import hed_prompt


def test_hed_is_zero_where_nothing_fires_and_names_the_concept_that_does():
    empty = prompt(seed=9)
    hgr = small_hgr()
    harm = hed_prompt(hgr, Prompt(prompt(2)), empty)
    assert harm.fired.tolist() == [[True, False]] * 2
    assert (harm.hed > 0).all() and torch.equal(harm.gates, hgr.read(prompt(2)).prompt_gates)
    first = safe_features(hgr, prompt(2), strengths=torch.tensor([1.0, 0.0])) - prompt(2)
    reach = (prompt(2) - empty).flatten(1).norm(dim=1)
    torch.testing.assert_close(harm.hed, first.flatten(1).norm(dim=1) / reach)  # the other concept adds nothing
    assert (hed_prompt(small_hgr((-20.0, -20.0)), Prompt(prompt()), empty).hed == 0).all()


def test_hed_is_the_displacement_as_a_share_of_the_cfg_direction():
    hgr, c, empty = small_hgr(), prompt(), prompt(seed=9)
    moved = safe_features(hgr, c)
    assert torch.allclose(hed_prompt(hgr, Prompt(c), empty).hed, (moved - c).norm() / (c - empty).norm(), rtol=1e-4)


def test_a_longer_prompt_is_compared_with_the_repeated_empty_one():
    hgr, c, empty = small_hgr(), prompt(chunks=2), prompt(seed=9)
    expected = (safe_features(hgr, c) - c).norm() / (c - torch.cat([empty, empty], 1)).norm()
    assert torch.allclose(hed_prompt(hgr, Prompt(c), empty).hed, expected, rtol=1e-4)


def test_padding_behind_a_prompt_does_not_count():
    hgr, c, empty = small_hgr(), prompt(), prompt(seed=9)
    padded, mask = torch.cat([c, torch.full_like(c[:, :2], 3.0)], 1), torch.tensor([[True] * 6 + [False] * 2])
    assert torch.allclose(
        hed_prompt(hgr, Prompt(padded, None, mask), empty).hed, hed_prompt(hgr, Prompt(c), empty).hed, rtol=1e-4
    )
