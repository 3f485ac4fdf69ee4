"""Every route: which scope it needs, and that it refuses without."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import pytest
from access_keys import EACH, bearer, entry, key_of, write_keys

from paddle_ds_serving.access import scopes
from paddle_ds_serving.access.scopes import Scope

ROOT = Path(__file__).parents[2]


def routes(app):
    """Each rule with one of its methods."""
    for rule in app.url_map.iter_rules():
        for method in sorted(rule.methods - {"HEAD", "OPTIONS"}):
            yield rule.rule, method


def ask(server, rule, method, headers):
    path = re.sub("<[^>]+>", "tiny-r1", rule)
    body = {"json": {}} if method == "POST" else {}
    return server.client.open(path, method=method, headers=headers, buffered=True, **body)


def error_of(response, status):
    assert response.status_code == status, response.data
    assert response.json["error"].keys() == {"message", "type", "param", "code"}
    return response.json["error"]


@pytest.fixture
def keyed(make_server, tmp_path):
    return make_server(environ=write_keys(tmp_path / "keys.yaml", *EACH))


def test_every_route_is_in_the_table(server):
    assert [rule for rule, _ in routes(server.app) if scopes.find(rule) is None] == []


def test_every_row_of_the_table_is_for_a_route(server):
    found = {scopes.find(rule) for rule, _ in routes(server.app)}
    assert {row for row in scopes.ROUTES if row not in found} == set()


def test_only_health_is_open():
    assert {row for row, scope in scopes.ROUTES.items() if scope is None} == {"/health", "/health/*", "/v2/health/*"}


def test_a_forgotten_route_needs_admin():
    assert scopes.scope_of("/debug") is Scope.ADMIN
    assert scopes.scope_of("/healthy") is Scope.ADMIN
    assert scopes.scope_of("/v1") is Scope.ADMIN


def test_each_route_without_a_key(keyed):
    for rule, method in routes(keyed.app):
        response = ask(keyed, rule, method, {})
        if scopes.scope_of(rule) is None:
            assert response.status_code == 200, rule
        else:
            error = error_of(response, 401)
            assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key"), rule
            assert response.headers["www-authenticate"] == 'Bearer realm="paddle-ds"'


def test_each_route_with_a_wrong_key(keyed):
    for rule, method in routes(keyed.app):
        if scopes.scope_of(rule) is not None:
            response = ask(keyed, rule, method, bearer("nobody"))
            assert error_of(response, 401)["code"] == "invalid_api_key", rule
            assert 'error="invalid_token"' in response.headers["www-authenticate"]


def test_each_route_with_a_key_for_something_else(make_server, tmp_path):
    everything = {"infer", "metrics", "admin"}
    entries = [entry(f"not-{scope}", *(everything - {scope})) for scope in everything]
    server = make_server(environ=write_keys(tmp_path / "keys.yaml", *entries))
    for rule, method in routes(server.app):
        scope = scopes.scope_of(rule)
        if scope is not None:
            response = ask(server, rule, method, bearer(f"not-{scope.value}"))
            error = error_of(response, 403)
            assert (error["type"], error["code"]) == ("permission_error", "permission_denied"), rule
            assert f'scope="{scope.value}"' in response.headers["www-authenticate"]


def test_each_route_with_the_right_key(keyed):
    holder = {Scope.INFER: "inferer", Scope.METRICS: "scraper", Scope.ADMIN: "admin"}
    for rule, method in routes(keyed.app):
        scope = scopes.scope_of(rule)
        if scope is not None:
            response = ask(keyed, rule, method, bearer(holder[scope]))
            assert response.status_code not in (401, 403), rule


def test_without_keys_all_is_open_but_admin(server):
    server.app.add_url_rule("/admin/test", view_func=lambda: "done")
    for rule, method in routes(server.app):
        response = ask(server, rule, method, {})
        if scopes.scope_of(rule) is Scope.ADMIN:
            error = error_of(response, 403)
            assert (error["type"], error["code"]) == ("permission_error", "permission_denied"), rule
            assert "PADDLE_DS_API_KEY" in error["message"]
            assert "paddle-ds keys create" in error["message"]
        else:
            assert response.status_code not in (401, 403), rule
    assert server.client.get("/admin/test", headers=bearer("admin")).status_code == 403


def test_an_admin_route_with_keys(keyed):
    keyed.app.add_url_rule("/admin/test", view_func=lambda: "done")
    assert keyed.client.get("/admin/test").status_code == 401
    assert keyed.client.get("/admin/test", headers=bearer("inferer")).status_code == 403
    assert keyed.client.get("/admin/test", headers=bearer("admin")).data == b"done"


def test_unknown_paths_and_methods_say_nothing_without_a_key(keyed):
    assert keyed.get("/v1/nothing").status_code == 401
    assert keyed.get("/v1/nothing", headers=bearer("scraper")).status_code == 404
    assert keyed.get("/v1/chat/completions").status_code == 401
    assert keyed.get("/v1/chat/completions", headers=bearer("inferer")).status_code == 405
    assert keyed.client.head("/v1/models").status_code == 401
    assert keyed.client.options("/v1/models").status_code == 401


def test_ways_to_present_a_key(keyed):
    key = key_of("inferer")
    good = [
        {"authorization": f"Bearer {key}"},
        {"authorization": f"bearer   {key} "},
        {"x-api-key": key},
        {"x-api-key": key, "authorization": "Basic dXNlcjpwYXNz"},
    ]
    bad = [
        {"authorization": key},
        {"authorization": f"Basic {key}"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {key}x"},
        {"authorization": f"Bearer {key.upper()}"},
        {"authorization": "Bearer nonsense", "x-api-key": key},
        {"x-api-key": "sch\xfcssel"},
        {"x-api-key": EACH[0].hash},
    ]
    assert [keyed.get("/v1/models", headers=headers).status_code for headers in good] == [200] * len(good)
    assert [keyed.get("/v1/models", headers=headers).status_code for headers in bad] == [401] * len(bad)


def test_the_body_is_not_looked_at_before_the_key(keyed):
    assert error_of(keyed.client.post("/v1/chat/completions", data=b"{"), 401)["code"] == "invalid_api_key"


def test_the_environments_key_may_do_everything(make_server):
    server = make_server(environ={"PADDLE_DS_API_KEY": key_of("owner")})
    server.app.add_url_rule("/admin/test", view_func=lambda: "done")
    for path in ("/v1/models", "/metrics", "/admin/test"):
        assert server.client.get(path).status_code == 401
        assert server.client.get(path, headers=bearer("owner")).status_code == 200


def test_the_log_and_the_metrics_know_the_id_and_never_the_key(keyed, caplog):
    with caplog.at_level(logging.DEBUG):
        assert keyed.get("/v1/models", headers=bearer("inferer")).status_code == 200
        assert keyed.get("/v1/models", headers=bearer("nobody")).status_code == 401
    lines = [record.paddle_ds_fields for record in caplog.records if record.getMessage() == "http.request"]
    assert [line.get("key_id") for line in lines] == ["inferer", None]
    assert lines[1]["error_code"] == "invalid_api_key"
    text = keyed.get("/metrics", headers=bearer("scraper")).text
    assert 'paddle_ds:key_requests_total{key="inferer"} 1.0' in text
    written = "".join(str(vars(record)) for record in caplog.records) + text
    assert "0123456789abcdef" not in written


def test_the_page_has_the_table(server):
    shown = {scope: f"`{scope.value}`" for scope in Scope}
    wanted = {
        f"| `{method} {rule}` | {shown.get(scopes.scope_of(rule), 'open')} |".replace("path:", "")
        for rule, method in routes(server.app)
    }
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    written = set(re.findall(r"^\| `(?:GET|POST|PUT|DELETE|PATCH) /.*$", page, re.M))
    assert json.dumps(sorted(written), indent=0) == json.dumps(sorted(wanted), indent=0)
