"""What the hub answers, put into one sentence each. No test here needs a network."""

import huggingface_hub
import pytest
from huggingface_hub import errors

from toolkit import hub


def answer(kind):
    """An error of the hub's client; the web answer that it is made from is left out."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (answer(errors.GatedRepoError), "'some/name' is gated: accept its terms"),
        (answer(errors.RepositoryNotFoundError), "knows no 'some/name'; a private one"),
        (errors.LocalEntryNotFoundError("offline"), "did not answer, and the local cache"),
        (errors.OfflineModeIsEnabled("offline"), "did not answer, and the local cache"),
        (OSError("disk full\nmore"), "could not be fetched from the Hugging Face hub: disk full$"),
    ],
)
def test_every_refusal_is_one_sentence(error, message, monkeypatch):
    def download(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ValueError, match=message) as found:
        hub.hub_folder("some/name", ["*.json"])
    assert "\n" not in str(found.value)


def test_a_folder_holds_only_the_files_asked_for(monkeypatch, tmp_path):
    asked = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **options: asked.update(options, name=name) or str(tmp_path),
    )
    assert hub.hub_folder("some/name", ("config.json",)) == tmp_path
    assert asked["allow_patterns"] == ["config.json"] and asked["ignore_patterns"] == ["*/*"]


@pytest.mark.parametrize(
    ("error", "found"), [(None, True), (TimeoutError(), False), (OSError(), False)]
)
def test_a_dataset_is_in_reach_when_the_hub_answers(error, found, monkeypatch):
    def info(self, name, **options):
        if error:
            raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    assert hub.in_reach("some/name") is found


def test_a_dataset_that_is_not_there_is_refused(monkeypatch):
    def info(self, name, **options):
        raise answer(errors.RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    with pytest.raises(ValueError, match="knows no 'some/name'"):
        hub.in_reach("some/name")
