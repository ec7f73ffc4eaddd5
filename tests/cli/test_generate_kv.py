"""``generate --kv``: the cache by name, from the command line."""

import dataclasses

import pytest

from compressjax.cli.methods import KV, parse_kv
from compressjax.kvcache import EMS, GEAR, Codec, TransMLA


def test_every_name_is_a_config_with_defaults():
    for name in KV:
        (cfg,) = parse_kv(name)
        assert isinstance(cfg, Codec | TransMLA) and dataclasses.is_dataclass(cfg)


def test_fields_and_combinations_are_read():
    assert parse_kv("gear:bits=2,rank=2,base=kcvt") == (GEAR(bits=2, rank=2, base="kcvt"),)
    assert parse_kv("ems:budget=128,mass_bias=false") == (EMS(budget=128, mass_bias=False),)
    both = parse_kv("transmla:kv_lora_rank=192+round:bits=4")
    assert [type(cfg).__name__ for cfg in both] == ["TransMLA", "RoundKV"]
    assert parse_kv("none") == ()


@pytest.mark.parametrize(
    "text, message",
    [
        ("gears", "unknown method 'gears'"),
        ("gear:bit=2", "'bit=2' is not field=value of gear"),
        ("gear:bits=two", "bits must be of type int"),
        ("gear:bits=5", "GEAR.bits must be 2, 3, 4 or 8, got 5"),
    ],
)
def test_what_means_nothing_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_kv(text)


def test_a_rounded_cache_writes_and_says_its_size(command, compressed):
    words = ("generate", compressed, "Hello", "--max-new-tokens", 6, "--kv")
    plain = command("generate", compressed, "Hello", "--max-new-tokens", 6, "--json").result
    result = command(*words, "dense:residual=8", "--json").result
    assert result["text"] == plain["text"] and plain["cache_bytes"] is None
    assert 0 < result["cache_bytes"]["live"] <= result["cache_bytes"]["allocated"]
    said = command(*words, "round:bits=8,residual=32")
    assert "6 tokens" in said.err and "MB where 16-bit floats take" in said.err


def test_two_caches_are_one_too_many(command, compressed):
    said = command("generate", compressed, "Hello", "--kv", "kivi+round")
    assert said.code != 0
    assert "--kv takes one cache" in said.err
