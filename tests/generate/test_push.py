import pytest
from huggingface_hub import constants

from dftune.generate.push import check_can_push, push_set


@pytest.fixture
def no_token(monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "nor-here"))


@pytest.mark.parametrize("name", ["negatives", "a/b/c", "-owner/set"])
def test_a_name_that_no_dataset_can_have_is_refused(name):
    with pytest.raises(ValueError, match="--push-to-hub wants OWNER/NAME"):
        check_can_push(name)


def test_without_a_token_it_says_how_to_get_one(no_token):
    with pytest.raises(ValueError, match=r"there is none. Log in with `hf auth login`, or set HF_TOKEN"):
        check_can_push("owner/negatives")


def test_without_a_network_it_says_that_nothing_is_lost(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_notatoken")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"hub does not answer.*uploads later, without sampling again"):
        check_can_push("owner/negatives")


def test_an_upload_that_fails_is_an_error_that_names_the_file(monkeypatch, tmp_path):
    path = tmp_path / "rft.jsonl"
    path.write_text("{}\n")
    path.with_name("rft.manifest.json").write_text("{}\n")
    monkeypatch.setenv("HF_TOKEN", "hf_notatoken")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"rft.jsonl could not be uploaded to owner/set: .*The file itself is there"):
        push_set(path, "owner/set")
