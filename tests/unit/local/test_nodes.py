"""Keeping Nodes: what follows when somebody changes one behind the supervisor's back."""

from pathlib import Path
from typing import Any

from controller.local.nodes import Keeper, LocalNode


class OneNode:
    """The part of the API server that a Keeper talks to, with one Node in it."""

    def __init__(self) -> None:
        self.uid = "first"
        self.tokens: list[str] = []  # the Node's UID each was bound to

    def get(self, path: str) -> dict[str, Any]:
        ready = {"type": "Ready", "status": "True"}
        return {"metadata": {"uid": self.uid}, "status": {"conditions": [ready]}}

    def apply(self, path: str, body: Any) -> dict[str, Any]:
        return self.get(path)

    def patch(self, path: str, body: Any, kind: str = "") -> dict[str, Any]:
        return {}

    def create(self, path: str, body: Any) -> dict[str, Any]:
        self.tokens.append(body["spec"]["boundObjectRef"]["uid"])
        return {"status": {"token": f"token-{len(self.tokens)}"}}


def test_node_that_was_made_again_gets_a_token_of_its_own(tmp_path: Path) -> None:
    server: Any = OneNode()
    keeper = Keeper(server, 40, print)
    file = tmp_path / "token"
    keeper.add(LocalNode("n1", 1, 1, 1, file), lambda: True)
    keeper._keep(keeper._kept[0])
    assert server.tokens == ["first"]
    server.uid = "second"  # kubectl delete node, kubectl create
    keeper._keep(keeper._kept[0])
    keeper._keep(keeper._kept[0])
    assert server.tokens == ["first", "second"]
    assert file.read_text() == "token-2"
