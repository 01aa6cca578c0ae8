"""The client's verbs, errors, deadlines and repeats, over real HTTP on loopback."""

from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes.aio.config.kube_config import _temp_files

from controller import errors as tree
from controller.kube import errors
from controller.kube.client import INSTANCES, JSON_PATCH, NODES, PODS, Client
from tests.fake_apiserver import FakeApiServer, fake_apiserver
from tests.unit.kube.conftest import IMPATIENT


def pod(name: str, **metadata: object) -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": "ns", **metadata}, "spec": {}}


async def test_an_object_can_be_created_read_patched_and_deleted(
    server: FakeApiServer, client: Client
) -> None:
    made = await client.create(PODS, pod("a"), "ns")
    assert made["kind"] == "Pod"
    assert made["apiVersion"] == "v1"
    assert await client.get(PODS, "a", "ns") == made
    patched = await client.patch(
        PODS, "a", {"status": {"phase": "Running"}}, namespace="ns", subresource="status"
    )
    assert patched["status"] == {"phase": "Running"}
    assert server.requests[-1].path == "/api/v1/namespaces/ns/pods/a/status"
    assert server.requests[-1].headers["Content-Type"] == "application/merge-patch+json"
    uid = made["metadata"]["uid"]
    assert await client.delete(PODS, "a", "ns", grace=0, uid=uid, propagation="Background")
    assert server.requests[-1].body["preconditions"] == {"uid": uid}
    assert server.requests[-1].body["gracePeriodSeconds"] == 0


async def test_what_is_gone_is_none_and_deleting_it_is_fine(client: Client) -> None:
    assert await client.get(NODES, "n1") is None
    assert await client.delete(PODS, "a", "ns") is False


async def test_a_missing_kind_is_not_a_missing_object(
    server: FakeApiServer, client: Client
) -> None:
    server.fail(404, times=9, body={"message": "404 page not found"})
    with pytest.raises(errors.NotFound):
        await client.get(INSTANCES, "a", "ns")
    with pytest.raises(errors.NotFound):
        await client.delete(INSTANCES, "a", "ns")
    with pytest.raises(errors.NotFound):
        await client.list(INSTANCES)


async def test_a_list_is_paged_into_one_snapshot(server: FakeApiServer, client: Client) -> None:
    for number in range(1203):
        server.put("pods", pod(f"p{number:04}"))
    items, version = await client.list(PODS)
    assert [item["metadata"]["name"] for item in items] == [f"p{n:04}" for n in range(1203)]
    assert items[0]["kind"] == "Pod"
    assert version == str(server.version)
    assert server.count("GET") == 3


async def test_a_list_whose_snapshot_expires_between_pages_is_taken_in_one(
    server: FakeApiServer, client: Client
) -> None:
    for number in range(600):
        server.put("pods", pod(f"p{number:04}"))
    original = server._list

    def compacting(plural: str, namespace: str, query: dict[str, str]) -> object:
        answer = original(plural, namespace, query)
        server.version += 1
        server.compact()
        return answer

    server._list = compacting  # type: ignore[method-assign,assignment]
    items, _ = await client.list(PODS)
    assert len(items) == 600
    assert "limit" not in server.requests[-1].query


@pytest.mark.parametrize("body", [{}, {"kind": "PodList", "metadata": {}}, {"kind": "Status"}, []])
async def test_a_success_that_is_no_list_is_an_error_and_not_empty(
    server: FakeApiServer, client: Client, body: object
) -> None:
    server.fail(200, times=9, body=body or {"oops": 1})
    with pytest.raises(errors.Unavailable):
        await client.list(PODS)


async def test_selectors_reach_the_server(server: FakeApiServer, client: Client) -> None:
    server.put("pods", {**pod("a", labels={"x": "1"}), "spec": {"nodeName": "n1"}})
    server.put("pods", {**pod("b", labels={"x": "2"}), "spec": {"nodeName": "n1"}})
    items, _ = await client.list(PODS, "ns", "spec.nodeName=n1", "x=2")
    assert [item["metadata"]["name"] for item in items] == ["b"]


@pytest.mark.parametrize(
    ("code", "kind", "parent"),
    [
        (400, errors.BadRequest, tree.Rejected),
        (403, errors.Forbidden, tree.Blocked),
        (409, errors.Conflict, tree.Retry),
        (410, errors.Expired, tree.Retry),
        (422, errors.Invalid, tree.Blocked),
        (500, errors.Unavailable, tree.Retry),
        (503, errors.Unavailable, tree.Retry),
    ],
)
async def test_every_code_becomes_an_error_by_what_to_do_next(
    server: FakeApiServer, client: Client, code: int, kind: type, parent: type
) -> None:
    server.put("pods", pod("a"))
    server.fail(code, times=99)
    with pytest.raises(kind, match="patch /api/v1/namespaces/ns/pods/a: injected") as raised:
        await client.patch(PODS, "a", {}, namespace="ns")
    assert isinstance(raised.value, parent)


async def test_a_stale_write_is_a_conflict_and_is_sent_once(
    server: FakeApiServer, client: Client
) -> None:
    server.put("pods", pod("a"))
    body = {"metadata": {"resourceVersion": "1"}, "spec": {"x": 1}}
    with pytest.raises(errors.Conflict):
        await client.patch(PODS, "a", body, namespace="ns")
    assert server.count("PATCH") == 1


async def test_creating_what_exists_says_so(server: FakeApiServer, client: Client) -> None:
    server.put("pods", pod("a"))
    with pytest.raises(errors.AlreadyExists):
        await client.create(PODS, pod("a"), "ns")


async def test_forbidden_names_a_terminating_namespace_and_a_quota(
    server: FakeApiServer, client: Client
) -> None:
    cause = {"reason": "NamespaceTerminating", "field": "metadata.namespace"}
    server.fail(403, body={"code": 403, "message": "no", "details": {"causes": [cause]}})
    with pytest.raises(errors.Forbidden) as raised:
        await client.create(PODS, pod("a"), "ns")
    assert raised.value.reason == "NamespaceTerminating"
    server.fail(403, body={"code": 403, "message": "exceeded quota: q, requested: pods=1"})
    with pytest.raises(errors.Forbidden) as raised:
        await client.create(PODS, pod("a"), "ns")
    assert raised.value.reason == "QuotaExceeded"


async def test_a_burst_of_5xx_is_outlived_by_idempotent_calls(
    server: FakeApiServer, client: Client
) -> None:
    server.put("pods", pod("a"))
    server.fail(503, times=3)
    assert await client.get(PODS, "a", "ns") is not None
    server.fail(500, times=3)
    await client.patch(PODS, "a", {"spec": {"x": 1}}, namespace="ns")


async def test_the_number_of_attempts_is_bounded(server: FakeApiServer, client: Client) -> None:
    server.fail(500, times=99)
    with pytest.raises(errors.Unavailable):
        await client.get(PODS, "a", "ns")
    assert server.count("GET") == IMPATIENT.attempts


async def test_what_may_have_happened_is_not_repeated_unless_harmless(
    server: FakeApiServer, client: Client
) -> None:
    server.fail(500, act=True)
    with pytest.raises(errors.Unavailable):
        await client.create(PODS, pod("a"), "ns")
    assert server.count("POST") == 1
    server.fail(0, method="PATCH", act=False)
    with pytest.raises(errors.Disconnected):
        await client.patch(PODS, "a", [], namespace="ns", content_type=JSON_PATCH)
    assert server.count("PATCH") == 1
    server.fail(500, method="DELETE")
    with pytest.raises(errors.Unavailable):
        await client.delete(PODS, "a", "ns")
    assert server.count("DELETE") == 1


async def test_too_many_requests_is_repeated_for_every_verb_after_the_time_asked_for(
    server: FakeApiServer, client: Client
) -> None:
    server.fail(429, headers={"Retry-After": "0.2"})
    await client.create(PODS, pod("a"), "ns")
    first, second = server.requests
    assert second.at - first.at >= 0.2


async def test_retry_after_is_bounded() -> None:
    error = errors.from_response("get", 429, {"Retry-After": "86400"}, b"{}")
    assert isinstance(error, errors.Unavailable)
    assert error.after == 30.0


async def test_a_silent_server_ends_in_a_timeout(server: FakeApiServer, tmp_path: Path) -> None:
    server.fail(0, hold=True, times=9)
    hasty = replace(IMPATIENT, attempt=0.2, attempts=1)
    client = await Client.connect(server.kubeconfig(tmp_path / "k"), user_agent="t", patience=hasty)
    with pytest.raises(errors.Timeout):
        await client.get(PODS, "a", "ns")
    await client.close()


async def test_no_connection_is_unreachable_and_back_again_is_fine(
    server: FakeApiServer, client: Client
) -> None:
    await server.stop()
    with pytest.raises(tree.Unreachable):
        await client.create(PODS, pod("a"), "ns")
    await server.start()
    await client.create(PODS, pod("a"), "ns")


async def test_a_closed_client_is_unreachable(client: Client) -> None:
    await client.close()
    with pytest.raises(tree.Unreachable):
        await client.get(PODS, "a", "ns")


async def test_a_rotated_token_file_is_read_again_after_a_401(
    server: FakeApiServer, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("old\n")
    server.token = "old"
    path = server.kubeconfig(tmp_path / "k", {"tokenFile": "token"})
    client = await Client.connect(path, user_agent="t", patience=IMPATIENT)
    assert await client.get(PODS, "a", "ns") is None
    (tmp_path / "token").write_text("new\n")
    server.token = "new"
    assert await client.get(PODS, "a", "ns") is None
    server.token = "something else"
    with pytest.raises(errors.Unauthorized):
        await client.get(PODS, "a", "ns")
    await client.close()


async def test_a_server_that_moved_is_found_by_the_rewritten_kubeconfig(
    server: FakeApiServer, client: Client, tmp_path: Path
) -> None:
    assert await client.get(PODS, "a", "ns") is None
    await server.stop()
    async with fake_apiserver() as moved:
        moved.put("pods", pod("a"))
        moved.kubeconfig(tmp_path / "kubeconfig")
        assert await client.get(PODS, "a", "ns") is not None
        await client.create(PODS, pod("b"), "ns")


@pytest.mark.parametrize(
    "text", [None, "", "[]", "a: [", "current-context: x\ncontexts: []", "clusters: 7"]
)
async def test_a_kubeconfig_that_is_not_usable_is_unreachable_and_named(
    tmp_path: Path, text: str | None
) -> None:
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    with pytest.raises(tree.Unreachable, match=str(path)):
        await Client.connect(path, user_agent="t")


async def test_outside_a_cluster_none_says_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(tree.Unreachable, match="--kubeconfig"):
        await Client.connect(None, user_agent="t")


async def test_inline_keys_leave_no_file_behind(tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_text(
        "current-context: c\n"
        "contexts: [{name: c, context: {cluster: c, user: u}}]\n"
        "clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1',"
        " certificate-authority-data: bm90IGEgY2VydA==}}]\n"
        "users: [{name: u, user: {}}]\n"
    )
    with pytest.raises(tree.Unreachable, match="certificates"):
        await Client.connect(path, user_agent="t")
    assert not _temp_files
