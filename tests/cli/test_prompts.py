import pytest

from compressjax.checkpoint import load_model
from compressjax.cli.prompts import pieces, prompt_ids


def test_unfinished_characters_wait_for_their_bytes(tiny):
    model = load_model(tiny)
    text = "naïve 漢字 🙂!"
    ids = model.tokenizer.encode(text).ids
    drawn = list(pieces(model, iter(ids)))
    assert "".join(drawn) == text and "\ufffd" not in "".join(drawn)
    assert "漢" in drawn and len(ids) == len(text.encode())


def test_text_that_ends_inside_a_character_is_still_shown(tiny):
    model = load_model(tiny)
    ids = model.tokenizer.encode("a漢").ids[:-1]
    assert "".join(pieces(model, ids)).startswith("a") and len(list(pieces(model, ids))) >= 2


def test_a_model_without_a_chat_template_says_so(tiny_copy):
    (tiny_copy / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        prompt_ids(load_model(tiny_copy), "Hi", chat=True)
