"""A wrong configuration is refused with the key's name, what was found and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from helix_es.core.catalogue import BUILTIN, Model, derived_slots, find
from helix_es.core.errors import Misconfigured, Rejected
from helix_es.settings import Settings, read

GIB = 2**30


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "helix.toml"
    path.write_text(text)
    return path


def test_without_a_file_the_defaults_serve() -> None:
    assert read(None) == Settings()
    assert {"smollm2", "mistral"} <= set(Settings().models)


def test_every_section_of_the_contract_is_read(tmp_path: Path) -> None:
    settings = read(
        written(
            tmp_path,
            """
[models.tiny]
name = "me/Tiny"
source = "/models/tiny"
context_tokens = 1000
[models.mistral]
quantisation = "nf4"
[coefficients]
"a100-80/mistral" = 12
[pool.cloud]
min = 0
max = 4
provider = "command"
idle = 60
[batch]
reserved = 1
[sessions]
idle_after_s = 5
heartbeat_s = 0.5
[limits]
max_tokens = 100
[auth.keys]
abc = "ann"
""",
        )
    )
    assert settings.models["tiny"].name == "me/Tiny"
    assert settings.models["mistral"].quantisation == "nf4"
    assert settings.models["mistral"].name == BUILTIN["mistral"].name, "what is not given stays"
    assert settings.policy.idle_after_ms == 5000
    assert settings.policy.coefficients == {"a100-80/mistral": 12}


@pytest.mark.parametrize(
    ("text", "named", "more"),
    [
        ("[sesions]\nidle_after_s = 1", "sesions", "sessions"),
        ("[sessions]\nidle = 1", "idle", "idle_after_s"),
        ('[sessions]\nidle_after_s = "long"', "sessions.idle_after_s", "'long'"),
        ("[sessions]\nidle_after_s = -1", "sessions.idle_after_s", "0 to 86400"),
        ("[sessions]\nheartbeat_s = 0", "sessions.heartbeat_s", "found 0"),
        ("[batch]\nreserved = 1.5", "batch.reserved", "1.5"),
        ("[coefficients]\nmistral = 3", "coefficients.mistral", "<gpu kind>/<model>"),
        ('[coefficients]\n"cpu/nothing" = 3', "coefficients.cpu/nothing", "smollm2"),
        ('[coefficients]\n"cpu/smollm2" = -3', "coefficients.cpu/smollm2", "0 to 10000"),
        ('[models.x]\nname = "x"', "models", "source"),
        ('[models.x]\nname = "x"\nsource = "y"\nspeed = 3', "speed", "context_tokens"),
        ('[models."A.B"]\nname = "x"\nsource = "y"', "models.A.B", "a-z"),
        ("models = 3", "models", ""),
        ("not toml at all", "not TOML", ""),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, named: str, more: str) -> None:
    with pytest.raises(Misconfigured) as error:
        read(written(tmp_path, text))
    assert named in str(error.value)
    assert more in str(error.value)


def test_a_missing_file_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="No such file"):
        read(tmp_path / "nothing.toml")


def test_models_are_found_by_slug_and_by_full_name_in_any_case() -> None:
    assert find(BUILTIN, "MISTRAL") == "mistral"
    assert find(BUILTIN, "MistralAI/mistral-7b-instruct-v0.1") == "mistral"
    with pytest.raises(Rejected, match="smollm2"):
        find(BUILTIN, "gpt")


@pytest.mark.parametrize(
    ("memory_gib", "weights_gib", "context", "slots"),
    [
        # the table that was measured and derived for Mistral-7B, before the cap of 16
        (79, 13.5, 32_768, 14),
        (39.4, 13.5, 32_768, 5),
        (22, 13.5, 8_192, 4),
        (23.5, 13.5, 4_096, 12),
        (14.6, 13.5, 4_096, 0),
        (14.6, 3.84, 8_192, 7),
        (79, 13.5, 4_096, 16),
    ],
)
def test_the_coefficient_follows_from_memory(
    memory_gib: float, weights_gib: float, context: int, slots: int
) -> None:
    model = Model(
        name="m",
        source="m",
        context_tokens=context,
        weights_bytes=int(weights_gib * GIB),
        kv_bytes_per_token=131_072,
    )
    assert derived_slots(model, int(memory_gib * GIB)) == slots
