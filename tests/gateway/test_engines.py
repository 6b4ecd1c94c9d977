"""What the configuration as a whole makes of each engine's settings."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from adapters.llama_cpp.messages import ChatPrompt, EngineSettings, Load
from adapters.types import Message
from gateway.config import Config, ConfigError, EngineConfig, ModelConfig, Secret, SessionsConfig, load
from gateway.engines import encryption_key, engine_settings

SECRET = "a secret of this test"


def config(tmp_path: Path, *models: ModelConfig, sessions: SessionsConfig | None = None) -> Config:
    return Config(data_dir=str(tmp_path), models=models, sessions=sessions or SessionsConfig())


def test_each_model_keeps_its_sessions_in_a_directory_of_its_own(tmp_path: Path) -> None:
    models = ModelConfig(name="team/a", path="a"), ModelConfig(name="b", path="b")
    first, second = engine_settings(config(tmp_path, *models))
    assert (first.session_dir, second.session_dir) == (f"{tmp_path}/sessions/team%2Fa", f"{tmp_path}/sessions/b")
    assert first.session_key is None and first.public_prefixes == ()
    (elsewhere,) = engine_settings(config(tmp_path, models[1], sessions=SessionsConfig(dir="/fast")))
    assert elsewhere.session_dir == "/fast/b"


def test_no_room_on_disk_is_no_directory(tmp_path: Path) -> None:
    model = ModelConfig(name="m", path="m", engine=EngineConfig(session_disk_bytes=0))
    assert engine_settings(config(tmp_path, model))[0].session_dir is None


def test_models_take_turns_where_there_are_several(tmp_path: Path) -> None:
    one, two = ModelConfig(name="one", path="p"), ModelConfig(name="two", path="p")
    own = ModelConfig(name="own", path="p", engine=EngineConfig(lease_path="/run/own"))
    assert engine_settings(config(tmp_path, one))[0].lease_path is None
    leases = [settings.lease_path for settings in engine_settings(config(tmp_path / "new", one, two, own))]
    assert leases == [f"{tmp_path}/new/step.lease"] * 2 + ["/run/own"]
    assert (tmp_path / "new").is_dir()


def test_what_the_operator_chose_reaches_the_worker(tmp_path: Path) -> None:
    model = ModelConfig(name="m", path="m", public_prefixes=("Be kind.",), engine=EngineConfig(parallel=3))
    (settings,) = engine_settings(config(tmp_path, model, sessions=SessionsConfig(encryption_key=Secret(SECRET))))
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(Load("m", settings)), type=Load).settings
    assert type(settings) is EngineSettings and sent == settings
    assert sent.parallel == 3 and sent.public_prefixes == (ChatPrompt((Message("system", "Be kind."),)),)
    assert sent.session_key is not None and len(sent.session_key) == 32


def test_the_key_is_the_same_from_a_file_or_not(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n")
    keys = {
        encryption_key(SessionsConfig(encryption_key=Secret(SECRET))),
        encryption_key(SessionsConfig(encryption_key_file=str(file))),
    }
    assert len(keys) == 1 and encryption_key(SessionsConfig()) is None
    assert encryption_key(SessionsConfig(encryption_key=Secret("another secret"))) not in keys


@pytest.mark.parametrize("content", [None, b"short", b"\xff" * 20])
def test_a_file_without_a_secret(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^sessions\.encryption_key_file: ") as caught:
        encryption_key(SessionsConfig(encryption_key_file=str(file)))
    assert "short" not in str(caught.value)


def test_what_is_derived_cannot_be_set(tmp_path: Path) -> None:
    for name in ("session_dir: /x", "session_key: null", "public_prefixes: []"):
        path = tmp_path / "config.yaml"
        path.write_text(f"models: [{{name: m, path: m, engine: {{{name}}}}}]")
        with pytest.raises(ConfigError, match="no such setting"):
            load(path, {}, {})
    path.write_text(f"sessions: {{encryption_key: '{SECRET.replace(' ', '-')}', encryption_key_file: x}}")
    with pytest.raises(ConfigError, match="encryption_key is set already") as caught:
        load(path, {}, {})
    assert "secret-of" not in str(caught.value)
