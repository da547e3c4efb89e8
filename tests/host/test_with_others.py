"""SafeCFG beside other changes to the model, whichever comes first."""

import pytest


def _lora(kit, model):
    import comfy.sd

    return comfy.sd.load_lora_for_models(model, None, kit.random_lora(), 1.0, 0.0)[0]


def _pag(kit, model):
    from comfy_extras.nodes_pag import PerturbedAttentionGuidance

    return PerturbedAttentionGuidance.execute(model, 3.0)[0]


def _nag(kit, model):
    from comfy_extras.nodes_nag import NAGuidance

    return NAGuidance.execute(model, 5.0, 0.5, 2.5)[0]


@pytest.mark.parametrize("mode", ["redirect", "dynamic"])
@pytest.mark.parametrize("other", [_lora, _pag, _nag], ids=["LoRA", "PAG", "NAG"])
def test_both_act_and_a_clean_prompt_is_left_to_the_other_alone(kit, hgr, other, mode):
    import torch

    alone, safe = other(kit, kit.model), kit.patch(hgr, mode=mode)
    for both in (kit.patch(hgr, alone, mode=mode), other(kit, safe)):
        assert torch.equal(kit.sample(both, kit.clean), kit.sample(alone, kit.clean))
        picture = kit.sample(both, kit.harmful)
        assert not torch.allclose(picture, kit.sample(alone, kit.harmful), atol=0.01)
        assert not torch.allclose(picture, kit.sample(safe, kit.harmful), atol=0.01)
