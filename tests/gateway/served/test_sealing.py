from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from gateway.config import Config, ConfigError, load
from gateway.errors import GatewayError
from gateway.secret import Secret
from gateway.served import ProviderSecret, Sealed
from gateway.served.sealing import Sealing

SECRET = ProviderSecret(api_key="sk-very-secret")


def config(folder: Path, replicas: int = 1, **auth: str) -> Config:
    plain = Config(data_dir=str(folder))
    keys = {name: Secret(text) for name, text in auth.items()}
    return replace(plain, auth=replace(plain.auth, **keys), state=replace(plain.state, replicas=replicas))


def sealed(sealing: Sealing) -> Sealed:
    return sealing.seal("p", "https://a:443", SECRET, 1, "me")


def test_a_secret_comes_back_and_is_nowhere_to_be_read(tmp_path: Path) -> None:
    one = sealed(Sealing(config(tmp_path)))
    assert Sealing(config(tmp_path)).open(one) == SECRET
    assert b"secret" not in msgspec.json.encode(one) and "secret" not in repr(SECRET)
    assert one.sealed != sealed(Sealing(config(tmp_path))).sealed, "each has a nonce of its own"
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "change", [{"provider": "q"}, {"origin": "https://b:443"}, {"sealed": "AAAA"}, {"sealed": "!"}]
)
def test_it_is_bound_to_its_provider_and_host(tmp_path: Path, change: dict[str, str]) -> None:
    sealing = Sealing(config(tmp_path))
    assert sealing.open(replace(sealed(sealing), **change)) is None


def test_a_new_key_is_noticed_by_those_who_run(tmp_path: Path) -> None:
    running, command = Sealing(config(tmp_path)), Sealing(config(tmp_path))
    before = sealed(running)
    command.renew()
    after = sealed(command)
    assert before.key_id != after.key_id
    assert running.open(after) == running.open(before) == SECRET
    for _ in range(3):
        command.renew()
    assert Sealing(config(tmp_path)).open(before) is None, "only the last keys are kept"
    assert [file.name for file in tmp_path.iterdir()] == ["secrets.key"]


def test_configured_keys_follow_one_another(tmp_path: Path) -> None:
    old = sealed(Sealing(config(tmp_path, secrets_key="the-old-key-of-secrets")))
    both = Sealing(config(tmp_path, secrets_key="the-new-key-of-secrets", secrets_key_before="the-old-key-of-secrets"))
    both.renew()
    assert both.open(old) == SECRET
    new = sealed(both)
    assert Sealing(config(tmp_path, secrets_key="the-new-key-of-secrets")).open(new) == SECRET
    assert Sealing(config(tmp_path, secrets_key="the-new-key-of-secrets")).open(old) is None
    assert not list(tmp_path.iterdir())


def test_replicas_need_one_key(tmp_path: Path) -> None:
    with pytest.raises(GatewayError) as caught:
        sealed(Sealing(config(tmp_path, replicas=2)))
    assert caught.value.code == "conflict"
    assert sealed(Sealing(config(tmp_path, replicas=2, secrets_key="the-key-of-all-secrets")))
    with pytest.raises(ConfigError, match="secrets_key_before"):
        load(None, {"GATEWAY_AUTH__SECRETS_KEY_BEFORE": "the-old-key-of-secrets"}, {})


def test_a_missing_or_damaged_key_is_no_crash(tmp_path: Path) -> None:
    one = sealed(Sealing(config(tmp_path)))
    (tmp_path / "secrets.key").write_text("nonsense\n")
    assert Sealing(config(tmp_path)).open(one) is None
    (tmp_path / "secrets.key").unlink()
    assert Sealing(config(tmp_path)).open(one) is None
