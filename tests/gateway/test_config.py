"""What an operator may write, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from gateway import config
from gateway.config import Config, ConfigError, EngineConfig, ModelConfig, Secret, load
from gateway.config_money import AlertsConfig, SmtpConfig, WebhookConfig
from gateway.config_people import PeopleConfig
from gateway.config_pool import PoolConfig

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "config.example.yaml"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_anything_the_demo_model_is_served() -> None:
    loaded = load(None, {}, {})
    assert [model.name for model in loaded.models] == ["demo"]
    assert loaded.models[0].file.endswith("adapters/llama_cpp/demo/demo.gguf")
    assert loaded.server == config.ServerConfig()
    assert loaded.auth.enabled


def test_file_then_environment_then_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, "server: {port: 1001, host: 127.0.0.2, body_bytes_max: 2048}")
    environ = {"GATEWAY_PORT": "1002", "GATEWAY_SERVER__HOST": "127.0.0.3"}
    loaded = load(path, environ, {"server.port": 1003})
    assert (loaded.server.port, loaded.server.host, loaded.server.body_bytes_max) == (1003, "127.0.0.3", 2048)


def test_file_named_by_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path, "log: {level: debug}")
    assert load(None, {"GATEWAY_CONFIG": str(path)}, {}).log.level == "debug"


def test_overriding_models_leaves_nothing_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "models: [{name: a, path: a.gguf}, {name: b, path: b.gguf}]")
    loaded = load(path, {}, {"models": [{"name": "c", "path": "c.gguf"}]})
    assert [model.name for model in loaded.models] == ["c"]


def test_paths_of_the_file_are_relative_to_it_and_others_to_here(tmp_path: Path) -> None:
    path = write(tmp_path, "data_dir: state\nmodels: [{name: a, path: m/a.gguf, engine: {lease_path: lease}}]")
    loaded = load(path, {}, {})
    assert loaded.data_dir == str(tmp_path / "state")
    assert loaded.models[0].path == str(tmp_path / "m" / "a.gguf")
    assert loaded.models[0].engine.lease_path == str(tmp_path / "lease")
    assert load(path, {"GATEWAY_DATA_DIR": "state"}, {}).data_dir == str(Path.cwd() / "state")
    assert load(path, {}, {"data_dir": "~/state"}).data_dir == str(Path.home() / "state")


def test_data_dir_follows_xdg() -> None:
    assert load(None, {"XDG_DATA_HOME": "/var/x"}, {}).data_dir == "/var/x/gateway"
    # The specification says that a relative path is to be ignored.
    assert load(None, {"XDG_DATA_HOME": "x"}, {}).data_dir == str(Path.home() / ".local/share/gateway")


def test_empty_sections_are_defaults(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, "server:\n  # port: 1\nmodels:\n"), {}, {})
    assert loaded.server.port == 8000
    assert loaded.models[0].name == "demo"
    assert load(write(tmp_path, "models: []"), {}, {}).models == ()


def test_words_that_old_yaml_takes_for_booleans_are_text(tmp_path: Path) -> None:
    path = write(tmp_path, "models: [{name: no, path: a, engine: {batch_padding: on, kv_type: q8_0}}]")
    model = load(path, {}, {}).models[0]
    assert (model.name, model.engine.batch_padding) == ("no", "on")


REFUSED = [
    (
        "models:\n  - name: a\n    path: a\n    engine:\n      kv_type: q8_0\n      flash_attention: off\n",
        ":6: at models[0].engine.flash_attention: off is not possible with kv_type q8_0",
    ),
    ("server:\n  port: x\n", ':2: at server.port: expected int between 1 and 65535, got "x"'),
    ("server:\n  port: 0\n", ":2: at server.port: expected int between 1 and 65535, got 0"),
    ("server:\n  port: true\n", ":2: at server.port: expected int between 1 and 65535, got true"),
    ("server:\n  prot: 1\n", ":2: at server.prot: no such setting; did you mean port?"),
    ("port: 80\n", ":1: at port: no such setting; did you mean server.port?"),
    ("redis: x\n", ":1: at redis: no such setting; did you mean state.redis or cache.redis?"),
    ("log:\n  port: 80\n", ":2: at log.port: no such setting; did you mean format?"),
    (
        "5: 1\n",
        ":1: at 5: no such setting; known: alerts, auth, cache, data_dir, guardrails, images, library, limits, log,",
    ),
    ("server: 5\n", ":1: at server: expected settings as `name: value` lines, got 5"),
    ("- 1\n", ":1: expected settings as `name: value` lines"),
    ("server:\n  port: 1\n  port: 2\n", ":3: at server.port: set a second time (first on line 2)"),
    ("server: {header_timeout_s: .nan}", "expected number above 0 and at most 86400, got nan"),
    ("server: {body_timeout_s: 0}", "at server.body_timeout_s: expected number above 0 and at most 86400, got 0"),
    ("models:\n  - path: a.gguf\n", ":2: at models[0]: name is missing"),
    ("models:\n  - name: a\n", ":2: at models[0]: path is missing"),
    ("models:\n  - name: a\n    path: ''\n", ':3: at models[0].path: expected text or null, got ""'),
    ("models:\n  - {name: a, path: b, script: c}\n", ":2: at models[0].script: the model has a path already"),
    ("models:\n  - {name: 'a b', path: a}\n", ":2: at models[0].name: expected a name"),
    ('models:\n  - {name: "a\\n", path: a}\n', ":2: at models[0].name: expected a name"),
    (
        "models:\n  - name: a\n    path: a\n    engine: {threads: 0}\n",
        ":4: at models[0].engine.threads: expected int between",
    ),
    ("models:\n  - name: a\n    path: a\n    engine:\n      thread: 1\n", ":5: at models[0].engine.thread: no such"),
    ("models:\n  - {name: a, path: a}\n  - {name: a, path: b}\n", ':3: at models[1].name: "a" is already taken by'),
    ("models:\n  - {name: a, path: a}\n  - name: b\n    path: b\n    aliases: [c, a]\n", ":5: at models[1].aliases[1]"),
    (
        "models:\n  - name: a\n    path: a\n    engine:\n      loras:\n        - {name: 'x y', path: x}\n",
        ":6: at models[0].engine.loras[0].name: expected a name",
    ),
    (
        "models:\n  - {name: 'a:x', path: a}\n  - name: a\n    path: b\n    engine: {loras: [{name: x, path: x}]}\n",
        ':5: at models[1].engine.loras[0].name: "a:x" is already taken by models[0].name',
    ),
    ("models: [1]", ":1: at models[0]: expected settings as `name: value` lines, got 1"),
    ("models: {a: 1}", ":1: at models: expected a list, got a mapping"),
    ("log:\n  level: loud\n", ':2: at log.level: expected one of debug, error, info, warning, got "loud"'),
    ("auth:\n  admin_key: ''\n", ":2: at auth.admin_key: a secret must not be empty"),
    ("auth:\n  admin_key: short\n", ":2: at auth.admin_key: a secret has at least 16"),
    ("auth:\n  admin_key: '${NOT_SET}'\n", ":2: at auth.admin_key: the environment has no variable NOT_SET"),
    ("auth:\n  enabled: yes\n", ':2: at auth.enabled: expected true or false, got "yes"'),
    (
        "auth: {enabled: false}\nserver: {host: 0.0.0.0}\n",
        ":1: at auth.enabled: authentication can be off only on a loop",
    ),
    (
        "state:\n  database: mysql://u:hidden@h/d\n",
        ":2: at state.database: expected a URL that starts with postgresql://",
    ),
    ("state:\n  redis: http://hidden\n", ":2: at state.redis: expected a URL that starts with redis:// or rediss://"),
    ("state:\n  redis: 5\n", ":2: at state.redis: expected text (the value is a secret"),
    ("state:\n  replicas: 2\n  redis: redis://hidden\n", ":2: at state.replicas: more than one gateway process needs"),
    ("a: b: c", ":1: mapping values are not allowed here"),
    ("x: *y", ":1: found undefined alias"),
    ("x: &y [*y]", ":1: values are nested too deeply or contain themselves"),
    ("x: " + "[" * 40 + "]" * 40, ":1: values are nested too deeply or contain themselves"),
    ("x: !!python/name:os.system ''", "could not determine a constructor"),
    ("server: {[1]: 2}", ":1: a key must be plain text"),
    ("server: {port: 1}\n---\nserver: {port: 2}\n", "but found another document"),
    ("\tserver: 1", "found character '\\t'"),
    (
        "models:\n  - {name: a, path: a, default: true}\n  - {name: b, path: b, default: true}\n",
        "at models[1].default: there is a default model already",
    ),
    (
        "models: [{name: a, pull: a b}]\n",
        'at models[0].pull: expected owner/repo, owner/repo:QUANTISATION or owner/repo/file.gguf or null, got "a b"',
    ),
    ("models: [{name: a, pull: a/b, path: c}]\n", "at models[0].pull: the model has a path already"),
    (
        "models:\n  - {name: a, path: a, price: {input: cheap}}\n",
        ':2: at models[0].price.input: expected US dollars such as 12.50, got "cheap"',
    ),
    (
        "models:\n  - {name: a, path: a, engine: {reasoning_format: thnk}}\n",
        ":2: at models[0].engine.reasoning_format: expected one of harmony, ",
    ),
    ("library: {allow: [owner]}\n", "expected owner/repo, where * stands for anything"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_refused_with_line_and_path(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    assert str(caught.value).startswith(f"{path}:")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "text"), [("5", "5"), ("0.1", "0.1"), ("12.50", "12.5"), ('"0.000000001"', "0.000000001")]
)
def test_amounts_of_money_may_do_without_quotes(tmp_path: Path, number: str, text: str) -> None:
    given = f"limits: {{rules: [{{scope: key, budgets: [{{usd: {number}, period: day}}]}}]}}"
    assert load(write(tmp_path, given), {}, {}).limits.rules[0].budgets[0].usd == text


def test_addresses_of_stores_are_secrets() -> None:
    environ = {"GATEWAY_DATABASE_URL": "postgresql://u:hidden@h/d", "GATEWAY_REDIS_URL": "rediss://:hidden@h/0"}
    state = load(None, {**environ, "GATEWAY_STATE__REPLICAS": "3"}, {}).state
    assert state.replicas == 3
    assert state.database is not None
    assert state.database.reveal() == environ["GATEWAY_DATABASE_URL"]
    assert "hidden" not in repr(state)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "none.yaml", {}, {})
    (tmp_path / "latin.yaml").write_bytes(b"# \xe9")
    with pytest.raises(ConfigError, match="not UTF-8 text: byte 2"):
        load(tmp_path / "latin.yaml", {}, {})


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"GATEWAY_PROT": "1"}, "GATEWAY_PROT: no such setting; did you mean GATEWAY_PORT?"),
        ({"GATEWAY_PORT": "x"}, 'GATEWAY_PORT: at server.port: expected int between 1 and 65535, got "x"'),
        ({"GATEWAY_PORT": ""}, "GATEWAY_PORT: at server.port: expected int between 1 and 65535, got null"),
        ({"GATEWAY_ADMIN_KEY": ""}, "GATEWAY_ADMIN_KEY: at auth.admin_key: a secret must not be empty"),
        (
            {"GATEWAY_AUTH__ENABLED": "maybe"},
            'GATEWAY_AUTH__ENABLED: at auth.enabled: expected true or false, got "maybe"',
        ),
        (
            {"GATEWAY_NO_AUTH": "1", "GATEWAY_HOST": "0.0.0.0"},
            "GATEWAY_NO_AUTH: at auth.enabled: authentication can be",
        ),
        ({"GATEWAY_MODELS": "[{name: a}]"}, "GATEWAY_MODELS: at models[0]: path is missing"),
        ({"GATEWAY_MODELS": "["}, "GATEWAY_MODELS: "),
    ],
)
def test_refused_environment(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, environ, {})
    assert str(caught.value).startswith(message)


def test_refused_on_the_command_line() -> None:
    with pytest.raises(
        ConfigError, match=r"command line: at server\.port: expected int between 1 and 65535, got 70000"
    ):
        load(None, {}, {"server.port": 70000})


@pytest.mark.parametrize(("text", "enabled"), [("1", False), ("true", False), ("YES", False), ("0", True), ("", True)])
def test_no_auth_variable(text: str, enabled: bool) -> None:
    assert load(None, {"GATEWAY_NO_AUTH": text}, {}).auth.enabled is enabled


def test_variables_that_kubernetes_adds_are_not_ours() -> None:
    environ = {
        "GATEWAY_PORT": "tcp://10.0.0.1:80",
        "GATEWAY_SERVICE_HOST": "10.0.0.1",
        "GATEWAY_SERVICE_PORT_HTTP": "80",
        "GATEWAY_PORT_80_TCP_PROTO": "tcp",
        "GATEWAY_PORT_80_TCP": "tcp://10.0.0.1:80",
    }
    assert load(None, environ, {}).server.port == 8000


def test_every_setting_outside_of_lists_has_a_variable() -> None:
    names = config.environment_names()
    assert names["GATEWAY_SERVER__KEEP_ALIVE_TIMEOUT_S"] == "server.keep_alive_timeout_s"
    assert names["GATEWAY_DATA_DIR"] == "data_dir"
    assert set(names.values()) >= {f"server.{field}" for field in config.ServerConfig.__struct_fields__}
    assert set(config.SHORT_NAMES.values()) <= {path for name, path in names.items() if name not in config.SHORT_NAMES}


def test_secrets_from_the_environment_and_never_shown(tmp_path: Path) -> None:
    path = write(tmp_path, "auth:\n  admin_key: ${THE_KEY}\n")
    loaded = load(path, {"THE_KEY": "k" * 20}, {})
    assert loaded.auth.admin_key is not None
    assert loaded.auth.admin_key.reveal() == "k" * 20
    assert loaded.auth.admin_key == Secret("k" * 20) != Secret("other")
    assert "kkk" not in f"{loaded!r} {loaded} {loaded.auth.admin_key}"
    with pytest.raises(TypeError):
        msgspec.json.encode(loaded)
    # The variable's own value is final: a key that happens to look like a reference is a key.
    own = load(None, {"GATEWAY_ADMIN_KEY": "${THE_KEY_THAT_IS_LONG}"}, {}).auth.admin_key
    assert own is not None
    assert own.reveal() == "${THE_KEY_THAT_IS_LONG}"


def test_a_refused_secret_is_not_shown(tmp_path: Path) -> None:
    for text in ("12345678901234567", "[hunter2hunter2hunter2]", "hunter2 with spaces and more"):
        with pytest.raises(ConfigError) as caught:
            load(write(tmp_path, f"auth: {{admin_key: {text}}}"), {}, {})
        assert "hunter2" not in str(caught.value)
        assert "12345" not in str(caught.value)


def test_names_of_files() -> None:
    assert config.name_of_file("/m/Qwen2.5-0.5B.Q4_0.gguf") == "Qwen2.5-0.5B.Q4_0"
    assert config.name_of_file("a b (1).gguf") == "a-b-1-"
    assert config.name_of_file("….gguf") == "model"


def struct_shape(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Every setting below a Struct, with lists of Structs as one entry."""
    inner: dict[str, type[msgspec.Struct]] = {
        "server": config.ServerConfig,
        "auth": config.AuthConfig,
        "limits": config.LimitsConfig,
        "images": config.ImagesConfig,
        "cache": config.CacheConfig,
        "state": config.StateConfig,
        "idempotency": config.IdempotencyConfig,
        "retention": config.RetentionConfig,
        "alerts": AlertsConfig,
        "webhook": WebhookConfig,
        "smtp": SmtpConfig,
        "people": PeopleConfig,
        "sessions": config.SessionsConfig,
        "library": config.LibraryConfig,
        "pool": PoolConfig,
        "log": config.LogConfig,
        "engine": EngineConfig,
    }
    shape: dict[str, Any] = {}
    derived = {"session_dir", "session_key", "public_prefixes"} if kind is EngineConfig else set()
    for name in set(kind.__struct_fields__) - derived:
        if name == "models":
            shape[name] = [struct_shape(ModelConfig)]
        else:
            shape[name] = struct_shape(inner[name]) if name in inner else None
    return shape


def value_shape(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: value_shape(inner) for key, inner in value.items()}
    return [value_shape(inner) for inner in value] or None if isinstance(value, list) else None


def test_the_example_holds_every_setting_with_its_default() -> None:
    assert value_shape(yaml.safe_load(EXAMPLE.read_text())) == struct_shape(Config)
    loaded = load(EXAMPLE, {}, {})
    assert loaded == load(None, {"XDG_DATA_HOME": ""}, {})
    assert Path(loaded.models[0].file) == Path(config.demo_model_path())


def test_every_setting_of_the_example_is_explained() -> None:
    block = ""
    for line in EXAMPLE.read_text().splitlines():
        if not line.strip():
            block = ""
        block += line + "\n"
        if ":" in line and not line.strip().startswith("#") and not line.endswith((":", "demo")):
            assert "#" in block or line.startswith("  port"), f"no comment near: {line}"
