"""``torpor verify``: what the agent says becomes lines and an exit code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner, Result

from controller.cli.agent import Away, NotHere
from controller.cli.verify import verify
from controller.errors import TorporError

UID = "1f42d52e-fb78-4127-bb35-2726c25414e6"
WHOLE = {
    "problems": [],
    "files": [
        {"role": "base", "bytes": 512 << 20, "digest": "sha256:" + "a" * 64},
        {"role": "delta", "bytes": 4089446, "digest": "sha256:" + "b" * 64},
        {"role": "device", "bytes": 90, "digest": "sha256:" + "c" * 64},
    ],
}
Run = Callable[..., Result]


@pytest.fixture
def run(beside: Any, cluster_of: Any, tmp_path: Path) -> Any:
    """``torpor verify web`` where the agent of its node answers with a status and a body."""
    runners: list[web.AppRunner] = []
    socket = tmp_path / "agent.sock"
    placed = {
        "metadata": {"name": "web", "namespace": "team", "uid": UID},
        "status": {"nodeName": "n1"},
    }
    config = cluster_of(placed)

    async def serve(status: int, body: Any) -> None:
        async def answer(request: web.Request) -> web.Response:
            assert dict(request.query) == {"uid": UID}
            return web.json_response(body, status=status)

        app = web.Application()
        app.add_routes([web.get("/verify", answer)])
        runners.append(web.AppRunner(app, shutdown_timeout=0.05))
        await runners[0].setup()
        await web.UnixSite(runners[0], str(socket)).start()

    def invoke(body: Any = None, status: int = 200) -> Result:
        if body is not None:
            beside(serve(status, body))
        argv = ["web", "-n", "team", "--kubeconfig", str(config), "--socket", str(socket)]
        return CliRunner().invoke(verify, argv, standalone_mode=False)

    yield invoke
    for runner in runners:
        beside(runner.cleanup())


def test_whole_snapshot_is_a_line_for_each_file(run: Run) -> None:
    done = run(WHOLE)
    assert (done.exception, done.return_value) == (None, 0)
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["OK", "base", "512Mi", "sha256:" + "a" * 64],
        ["OK", "delta", "3.9Mi", "sha256:" + "b" * 64],
        ["OK", "device", "90", "sha256:" + "c" * 64],
    ]


def test_problem_is_a_line_and_a_failure(run: Run) -> None:
    said = ["delta: byte 4096 to 8192 differ from their digest", "base: it is not there"]
    done = run({"problems": said, "files": WHOLE["files"]})
    assert done.return_value == 1
    assert done.stdout.splitlines() == [f"BAD  {problem}" for problem in said]


def test_instance_that_does_not_sleep_has_nothing_to_verify(run: Run) -> None:
    done = run({"problems": [], "files": []})
    assert done.return_value == 0
    assert done.stdout == "team/web has no snapshot: there is nothing to verify\n"


def test_agents_refusal_is_passed_on(run: Run) -> None:
    done = run({"reason": "NotHere", "message": "nothing of it here"}, status=404)
    assert isinstance(done.exception, NotHere)
    assert "nothing of it here" in str(done.exception)


@pytest.mark.parametrize(
    "body",
    [[], {}, {"problems": []}, {"problems": 1, "files": []},
     {"problems": [], "files": [{"role": "base"}]},
     {"problems": [], "files": [{"role": "base", "bytes": "many", "digest": "x"}]}],
)  # fmt: skip
def test_answer_of_another_release_is_no_success(run: Run, body: Any) -> None:
    done = run(body)
    assert isinstance(done.exception, TorporError)
    assert "another release" in str(done.exception)


def test_agent_that_is_away_is_named(run: Run) -> None:
    done = run()
    assert isinstance(done.exception, Away)
    assert "agent.sock" in str(done.exception)
