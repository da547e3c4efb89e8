"""A policy file, and the commands that check and show it."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from hgr.cli import main
from hgr.cli.policy_graphs import CLEAN, graphs, outcome
from hgr.core.policy import Judge, Policy, PolicyError, parse_policy


def test_an_empty_policy_is_the_safe_one():
    policy = parse_policy("{}")
    assert policy == Policy()
    assert (policy.no_hgr, policy.unread_text, policy.unjudged, policy.strength) == ("refuse", "refuse", (), 1.0)


def test_every_setting_is_read_and_shown_again():
    given = {
        "version": 1,
        "hgr": ["a.safetensors", "b.safetensors"],
        "strength": 1.5,
        "concepts": {"violence": 1.2, "shocking": 0},
        "sensitivity": "high",
        "mode": "dynamic",
        "no_hgr": "allow",
        "unread_text": "allow",
        "unjudged": ["lora"],
        "pictures": "blur",
        "judge": {"checkpoint": "x.safetensors", "hgr": "a.safetensors"},
        "audit": "with text",
    }
    policy = parse_policy(json.dumps(given))
    assert policy.about() == given and policy.judge == Judge("x.safetensors", "a.safetensors")
    assert policy.required == {"violence"}
    assert policy.strengths(["violence", "shocking", "hate"]) == [1.5 * 1.2, 0.0, 1.5]


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("{", ["not valid JSON"]),
        ('{"mode": "redirect", "mode": "dynamic"}', ['"mode" is there twice']),
        ("[]", ["must be a JSON object"]),
        ('{"strenght": 1}', ['"strenght" is unknown: the settings are version, hgr, strength']),
        ('{"strength": 0}', ["strength is 0, but must be a number from 0.05 to 2"]),
        ('{"strength": NaN}', ["strength is null"]),
        ('{"strength": true, "version": 2}', ["strength is true", "version is 2"]),
        ('{"concepts": {"a": 3}}', ['concepts is {"a": 3}, but must be an object of numbers from 0']),
        ('{"hgr": []}', ['hgr is [], but must be "auto" or a list']),
        ('{"hgr": ["a", "a"]}', ["each once"]),
        ('{"unjudged": ["controlnet"]}', ["some of lora, ip_adapter, image_to_image"]),
        ('{"pictures": "blur"}', ["needs judge"]),
        ('{"judge": {"hgr": "a"}}', ["an object with two names"]),
        ('{"audit": true, "no_hgr": "maybe"}', ["audit is true", 'no_hgr is "maybe", but must be one of "ref']),
    ],
)
def test_every_mistake_has_its_sentence(text, faults):
    with pytest.raises(PolicyError) as error:
        parse_policy(text)
    assert all(fault in str(error.value) for fault in faults)


def test_check_and_show(tmp_path, capsys, monkeypatch):
    path = tmp_path / "mine.json"
    path.write_text('{"concepts": {"violence": 1}}')
    assert main(["policy", "check", str(path)]) == 0 and "sound" in capsys.readouterr().out
    monkeypatch.setenv("SAFECFG_POLICY", str(path))
    assert main(["policy", "show"]) == 0
    out = capsys.readouterr().out
    assert '{"violence": 1}' in out and "unread_text" in out
    path.write_text('{"strength": 5}')
    assert main(["policy", "check", str(path)]) == 2
    assert capsys.readouterr().err.startswith("hgr: mine.json: strength is 5")
    monkeypatch.delenv("SAFECFG_POLICY")
    assert main(["policy", "show"]) == 2


@pytest.fixture
def answering():
    """A server that answers /safecfg/policy with what it is given; None: it does not know it."""
    servers = []

    def start(answer):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(404 if answer is None else 200)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *_):
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "SafeCFG is not loaded"),
        ({"policy": None, "fault": "", "changed": False}, "none is in force"),
        ({"policy": None, "fault": "p.json: it is not valid JSON.", "changed": False}, "p.json: it is not valid JSON."),
    ],
)
def test_verify_does_not_pass_without_a_policy(answering, capsys, answer, said):
    assert main(["policy", "verify", "--server", answering(answer)]) == 1
    out = capsys.readouterr().out
    assert said in out and "DOES NOT HOLD" in out


def test_verify_names_a_server_that_is_not_there(answering, capsys):
    assert main(["policy", "verify", "--server", "http://127.0.0.1:1"]) == 2
    assert "no ComfyUI answers at http://127.0.0.1:1" in capsys.readouterr().err


def test_the_graphs_of_verify_are_whole():
    for _, graph, _ in graphs():
        links = [value for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)]
        assert all(maker in graph for maker, _ in links)
        assert sum(node["class_type"] == "PreviewImage" for node in graph.values()) == 1


def test_verify_tries_the_prompt_on_the_negative_side():
    tried = [graph for name, graph, _ in graphs() if "negative" in name]
    for graph in tried:
        sampler = graph["7"]["inputs"]
        assert graph[sampler["positive"][0]]["inputs"]["text"] == CLEAN and "skull" in graph["4"]["inputs"]["text"]
        assert sampler["negative"] in (["4", 0], ["18", 0])
    assert [graph["7"]["inputs"]["cfg"] for graph in tried] == [0.0, 7.5, 7.5, 7.5]


def test_verify_leaves_out_what_this_comfyui_does_not_have():
    (graph,) = (graph for name, graph, _ in graphs() if "CFG Override" in name)
    there = {node["class_type"] for node in graph.values()} - {"CFGOverride"}
    assert outcome("http://127.0.0.1:1", graph, harmful=True, there=there) == (
        "left out, as this ComfyUI has no CFGOverride",
        True,
    )
