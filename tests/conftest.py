"""Where tests find what they import, and models that are made once for all of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# tests import `helpers`, and what makes the demo as `make_demo`; the repository's root is never on the path
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "scripts")]


@pytest.fixture(scope="session")
def demo_pipe():
    """The bundled model as a pipeline, for tests that leave it as it is."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from hgr.hosts.diffusers.demo import load_demo_pipeline

    return load_demo_pipeline()


@pytest.fixture
def loaded_once(demo_pipe, monkeypatch):
    """Commands get the bundled model as it is already in memory. For those that leave it as it is."""
    monkeypatch.setattr("hgr.hosts.diffusers.loading.load_demo_pipeline", lambda *_: demo_pipe)


@pytest.fixture(scope="session")
def models(demo_pipe, tmp_path_factory):
    """Folders in diffusers' layout by family, each with its HGR: `sdxl` and `sdxl.safetensors`, also `sd2`
    and `sd3`. The HGR's second concept is in every prompt but the empty one, its first in none."""
    import tiny

    folder = tmp_path_factory.mktemp("models")
    for name in ("sdxl", "sd2", "sd3"):
        tiny.save(getattr(tiny, name)(demo_pipe), folder, name)
    return folder
