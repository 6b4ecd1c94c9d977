from __future__ import annotations

import pytest

from adapters.errors import InvalidRequest
from adapters.types import Generation, Lora, ModelCard
from gateway.auth import Principal
from gateway.catalog import Catalog, Target
from gateway.errors import GatewayError
from tests.fakes import Scripted

ANYBODY = Principal(tenant="t", key_id="k", name="n")


def restricted(*models: tuple[str, ...]) -> Principal:
    """A principal with lists of models."""
    return Principal(tenant="t", key_id="k", name="n", models=models)


def catalog() -> Catalog:
    return Catalog([Target("org/model", Scripted(), aliases=("gpt-4o", "m")), Target("other", Scripted())])


def test_names_and_aliases_lead_to_the_target() -> None:
    found = [catalog().resolve(ANYBODY, name).name for name in ("org/model", "gpt-4o", "m", "other")]
    assert found == ["org/model", "org/model", "org/model", "other"]
    assert [target.name for target in catalog().list(ANYBODY)] == ["org/model", "other"]


def test_hidden_and_absent_models_look_the_same() -> None:
    principal = restricted(("other",))
    errors = []
    for who, name in ((principal, "org/model"), (principal, "m"), (ANYBODY, "nothing"), (ANYBODY, "ORG/MODEL")):
        with pytest.raises(GatewayError) as caught:
            catalog().resolve(who, name)
        errors.append((caught.value.status, caught.value.code, caught.value.message.replace(f"'{name}'", "x")))
    message = "The model x does not exist or you do not have access to it."
    assert set(errors) == {(404, "model_not_found", message)}
    assert [target.name for target in catalog().list(principal)] == ["other"]


def test_every_list_has_to_allow_a_model() -> None:
    def names(*models: tuple[str, ...]) -> list[str]:
        return [target.name for target in catalog().list(restricted(*models))]

    assert names(("gpt-4o",)) == names(("org/*",)) == names(("*",), ("m",)) == ["org/model"]
    assert names(("org/*", "other"), ("oth*",)) == ["other"]
    assert names(("org/*",), ("other",)) == names(()) == []


def test_only_where_there_is_one() -> None:
    assert catalog().only(restricted(("other",))).name == "other"
    with pytest.raises(InvalidRequest) as caught:
        catalog().only(ANYBODY)
    assert caught.value.param == "model"


def test_the_default_is_meant_where_no_model_is_named_and_nowhere_else() -> None:
    several = Catalog([Target("a", Scripted()), Target("b", Scripted(), default=True)])
    assert several.only(ANYBODY).name == "b"
    assert several.only(restricted(("a",))).name == "a", "it may not be used"
    with pytest.raises(GatewayError, match="does not exist"):
        several.resolve(ANYBODY, "unknown")


def test_a_name_cannot_mean_two_models() -> None:
    with pytest.raises(ValueError, match="'a' is used twice"):
        Catalog([Target("a", Scripted()), Target("b", Scripted(), aliases=("a",))])


def test_the_fingerprint_follows_the_model_behind_the_name() -> None:
    one, same = (Target("a", Scripted(card=ModelCard(parameters=5))) for _ in range(2))
    other = Target("a", Scripted(card=ModelCard(parameters=6)))
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_an_adapter_is_a_model_of_its_own_that_belongs_to_another() -> None:
    base, legal = Target("m", Scripted()), Target("m:legal", Scripted(), lora="legal", parent="m")
    both = Catalog([base, legal])
    assert legal.card.parent == "m" and base.card.parent is None
    assert legal.generation(Generation()).loras == (Lora("legal"),) and base.generation(Generation()).loras == ()
    with pytest.raises(InvalidRequest) as caught:
        legal.generation(Generation(loras=(Lora("other"),)))
    assert caught.value.param == "lora"
    assert both.only(ANYBODY) is base
    of_base, of_adapter = (restricted((name,)) for name in ("m", "m:legal"))
    assert both.list(of_base) == (base, legal)
    assert both.list(of_adapter) == (legal,)
