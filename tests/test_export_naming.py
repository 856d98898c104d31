"""What a published model says of its base: names that others can use, and no path of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.errors import ConfigError
from trainer.results.base_name import BaseName, public_base_name, without_local_paths


@pytest.mark.parametrize(
    ("model", "given", "folder", "expected"),
    [
        ("microsoft/phi-2", "", "phi-2", BaseName(name="microsoft/phi-2", on_hub=True)),
        ("microsoft/phi-2", "microsoft/phi-2", "", BaseName(name="microsoft/phi-2", on_hub=True)),
        ("gpt2", "", "", BaseName(name="gpt2", on_hub=True)),
        ("../model", "", "phi", BaseName(name="phi", on_hub=False)),
        ("here", "", "", BaseName(name="here", on_hub=False)),
        ("~/models/phi", "", "", BaseName(name="phi", on_hub=False)),
        ("/home/alice/phi", "me/phi", "phi", BaseName(name="me/phi", on_hub=True)),
    ],
)
def test_only_a_hub_id_is_a_name_on_the_hub(
    tmp_path: Path, model: str, given: str, folder: str, expected: BaseName
) -> None:
    """A directory has its own name, or the id that was given for it; a hub id stays what it is."""
    (tmp_path / "here").mkdir()

    assert public_base_name(model, tmp_path, folder=folder, given=given) == expected


@pytest.mark.parametrize(
    ("model", "given"), [("../model", "a/b/c"), ("../model", "me/my base"), ("gpt2", "me/other")]
)
def test_a_wrong_name_for_the_base_is_refused(tmp_path: Path, model: str, given: str) -> None:
    """What no hub would take, or contradicts the config, is an error that names the option."""
    with pytest.raises(ConfigError, match="--base"):
        public_base_name(model, tmp_path, given=given)


def test_only_paths_are_replaced_in_a_config(tmp_path: Path) -> None:
    """A path that a library wrote down becomes the name; hub ids and all other text stay."""
    base = BaseName(name="phi", on_hub=False)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"name_or_path": "/home/alice/phi", "pad_token": "/x/y/é"}))
    other = tmp_path / "config.json"
    other.write_text('{"_name_or_path": "microsoft/phi-2"}')
    strange = tmp_path / "adapter_config.json"
    strange.write_text("[1")

    mended = without_local_paths(path, base)

    assert mended is not None
    assert json.loads(mended) == {"name_or_path": "phi", "pad_token": "/x/y/é"}
    assert [without_local_paths(one, base) for one in (other, strange)] == [None, None]
