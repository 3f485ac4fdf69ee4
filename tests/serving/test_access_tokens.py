"""JSON Web Tokens: what is let in, and what is not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

import jwt
import pytest
from access_keys import EACH, bearer, write_keys
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from paddle_ds import settings
from paddle_ds.errors import ConfigError
from paddle_ds_serving.access import tokens
from paddle_ds_serving.access.guard import Guard

SECRET = b"a secret of thirty-two bytes, or more"
AUDIENCE = "paddle-ds"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PUBLIC = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def claims(**changes):
    known = {"sub": "ann", "aud": AUDIENCE, "exp": time.time() + 600, "scope": "openid infer", **changes}
    return {name: value for name, value in known.items() if value is not None}


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def forged(header, payload, sign):
    """A token put together by hand, as no library would."""
    body = b64(json.dumps(header).encode()) + b"." + b64(json.dumps(payload).encode())
    return (body + b"." + b64(sign(body))).decode()


def mac(key):
    return lambda body: hmac.new(key, body, hashlib.sha256).digest()


@pytest.fixture(params=["HS256", "RS256"])
def kind(request, make_server, tmp_path):
    """A server, the algorithm that its key is for, and the key to sign with."""
    path = tmp_path / "key"
    path.write_bytes(SECRET + b"\n" if request.param == "HS256" else PUBLIC)
    server = make_server(environ={"PADDLE_DS_JWT_KEY_FILE": str(path), "PADDLE_DS_JWT_AUDIENCE": AUDIENCE})
    return server, request.param, SECRET if request.param == "HS256" else RSA


def get(server, token, path="/v1/models"):
    return server.get(path, headers={"authorization": f"Bearer {token}"})


def test_a_good_token(kind, caplog):
    server, algorithm, key = kind
    with caplog.at_level("INFO"):
        assert get(server, jwt.encode(claims(), key, algorithm)).status_code == 200
    assert [line.paddle_ds_fields["key_id"] for line in caplog.records if line.getMessage() == "http.request"] == ["jwt:ann"]
    assert get(server, jwt.encode(claims(aud=["x", AUDIENCE], scope=None, scopes=["infer"]), key, algorithm)).status_code == 200


def test_scopes_of_a_token(kind):
    server, algorithm, key = kind
    for named in ({"scope": "metrics"}, {"scope": None}, {"scope": "inference"}, {"scope": None, "scopes": []}):
        assert get(server, jwt.encode(claims(**named), key, algorithm)).status_code == 403
    assert get(server, jwt.encode(claims(scope="metrics"), key, algorithm), "/metrics").status_code == 200


BAD = [
    ({"exp": time.time() - 60}, "has expired"),
    ({"exp": None}, "claim exp is missing"),
    ({"exp": "soon"}, "is damaged"),
    ({"nbf": time.time() + 600}, "not valid yet"),
    ({"aud": "another"}, "another audience"),
    ({"aud": None}, "claim aud is missing"),
    ({"sub": None}, "claim sub is missing"),
    ({"sub": ""}, "subject is empty"),
    ({"scope": {"infer": True}}, "neither a text nor a list"),
    ({"tokens_per_minute": -1}, "tokens_per_minute is no whole number"),
]


@pytest.mark.parametrize(("changes", "says"), BAD, ids=[says for _, says in BAD])
def test_claims_that_are_not_right(kind, changes, says):
    server, algorithm, key = kind
    response = get(server, jwt.encode(claims(**changes), key, algorithm))
    assert response.status_code == 401
    error = response.json["error"]
    assert (error["type"], error["code"]) == ("authentication_error", "invalid_api_key")
    assert says in error["message"]


def test_none_is_refused(kind):
    server, *_ = kind
    for name in ("none", "None", "NONE", ""):
        assert get(server, forged({"alg": name, "typ": "JWT"}, claims(), lambda body: b"")).status_code == 401


def test_another_algorithm_is_refused(kind):
    """Above all a MAC made with the public key, which everybody has."""
    server, *_ = kind
    assert get(server, forged({"alg": "HS256"}, claims(), mac(PUBLIC))).status_code == 401
    assert get(server, forged({"alg": "HS256"}, claims(), mac(PUBLIC.strip()))).status_code == 401
    assert get(server, forged({"alg": "RS256"}, claims(), mac(SECRET))).status_code == 401
    assert get(server, jwt.encode(claims(), SECRET * 2, "HS512")).status_code == 401
    assert get(server, jwt.encode(claims(), RSA, "RS384")).status_code == 401


def test_another_key_is_refused(kind):
    server, algorithm, _ = kind
    key = SECRET[::-1] if algorithm == "HS256" else OTHER_RSA
    assert "signature does not match" in get(server, jwt.encode(claims(), key, algorithm)).json["error"]["message"]


def test_a_token_with_a_key_of_its_own_is_refused(kind):
    server, algorithm, _ = kind
    jwk = {"kty": "oct", "k": b64(SECRET[::-1]).decode()}
    assert get(server, forged({"alg": algorithm, "jwk": jwk}, claims(), mac(SECRET[::-1]))).status_code == 401


@pytest.mark.parametrize("token", ["..", "a.b.c", "e30.e30.", "e30.e30.e30", "." * 1000])
def test_garbage_is_refused(kind, token):
    assert get(kind[0], token).status_code == 401


def test_the_issuer_where_one_is_set(make_server, tmp_path):
    (tmp_path / "key").write_bytes(SECRET)
    environ = {"PADDLE_DS_JWT_KEY_FILE": str(tmp_path / "key"), "PADDLE_DS_JWT_AUDIENCE": AUDIENCE, "PADDLE_DS_JWT_ISSUER": "id"}
    server = make_server(environ=environ)
    assert get(server, jwt.encode(claims(iss="id"), SECRET, "HS256")).status_code == 200
    assert "another issuer" in get(server, jwt.encode(claims(iss="x"), SECRET, "HS256")).json["error"]["message"]
    assert "claim iss is missing" in get(server, jwt.encode(claims(), SECRET, "HS256")).json["error"]["message"]


def test_keys_and_tokens_side_by_side(make_server, tmp_path):
    (tmp_path / "key").write_bytes(SECRET)
    environ = {"PADDLE_DS_JWT_KEY_FILE": str(tmp_path / "key"), "PADDLE_DS_JWT_AUDIENCE": AUDIENCE}
    server = make_server(environ={**environ, **write_keys(tmp_path / "keys.yaml", *EACH)})
    assert server.get("/v1/models", headers=bearer("inferer")).status_code == 200
    assert get(server, jwt.encode(claims(), SECRET, "HS256")).status_code == 200


def test_subjects_in_the_log():
    key = tokens.VerifyingKey("HS256", SECRET)

    def named(subject):
        return tokens.verify(jwt.encode(claims(sub=subject), SECRET, "HS256"), key, AUDIENCE, None).id

    assert named("auth0|5f7c") == "jwt:auth0|5f7c"
    assert named("a\nb").startswith("jwt:sha256:")
    assert named("x" * 200) != named("x" * 201)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"short", "at least 32 bytes; this one has 5"),
        (RSA.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "this is a private key"),
        (
            ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "expected an RSA public key",
        ),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----", "no PEM public key"),
    ],
    ids=["short", "private", "elliptic", "damaged"],
)
def test_a_key_that_is_no_good(tmp_path, content, says):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        tokens.read_key(path)


def test_settings_that_do_not_go_together(tmp_path):
    with pytest.raises(ConfigError, match="PADDLE_DS_JWT_AUDIENCE is not"):
        Guard(settings.load({"PADDLE_DS_JWT_KEY_FILE": str(tmp_path)}))
    with pytest.raises(ConfigError, match="without PADDLE_DS_JWT_KEY_FILE"):
        Guard(settings.load({"PADDLE_DS_JWT_AUDIENCE": "x"}))


def test_the_secret_is_not_shown():
    assert "secret" not in repr(tokens.VerifyingKey("HS256", SECRET))
