import dataclasses

import pytest

from compressjax.cli.arguments import Compress, compress_arguments
from compressjax.cli.methods import METHODS, config_class, parse_rules, parse_tuning
from compressjax.quantization import GPTQ, RTN
from compressjax.training import BlockTuning


def test_rules_become_configs_in_order():
    rules = parse_rules(["**/mlp/*=gptq:bits=3,sym=true,damp=0.05,order=none", "blocks/attn/o=none", "**=rtn"])
    assert list(rules) == ["**/mlp/*", "blocks/attn/o", "**"]
    assert rules["**/mlp/*"] == GPTQ(bits=3, sym=True, damp=0.05, order="none")
    assert rules["blocks/attn/o"] is None
    assert rules["**"] == RTN()


@pytest.mark.parametrize(
    "rule, part",
    [
        ("rtn", "pattern=method"),
        ("=rtn", "pattern=method"),
        ("a=", "pattern=method"),
        ("a=zap", "unknown method 'zap'; known: gptq, "),
        ("a=rtn:bots=3", "'bots=3' is not field=value of rtn; fields: bits"),
        ("a=rtn:bits", "'bits' is not field=value"),
        ("a=rtn:bits=three", "bits must be of type int, got 'three'"),
        ("a=rtn:sym=yes", "sym must be true or false, got 'yes'"),
        ("a=rtn:bits=9", "RTN.bits must be in 2..8, got 9"),
    ],
)
def test_malformed_rules_are_refused(rule, part):
    with pytest.raises(ValueError) as refusal:
        parse_rules([rule])
    assert part in str(refusal.value)


def test_a_pattern_given_twice_is_refused():
    with pytest.raises(ValueError, match="given twice"):
        parse_rules(["a=rtn", "a=gptq"])


def test_fields_without_a_default_value_and_with_parts():
    rules = parse_rules(["a=nupes:exponent=0.5,act_bits=8", "b=squeezellm:refine=sweep"])
    assert (rules["a"].exponent, rules["a"].act_bits, rules["b"].refine) == (0.5, 8, "sweep")
    with pytest.raises(ValueError, match="bqpo has parts of its own"):
        parse_rules(["a=gqsa:bqpo=1"])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_flags_of_its_own(name):
    """A field named like a flag of the command itself would take its place."""
    own = {field.name for field in dataclasses.fields(config_class(name))}
    assert own and not own & {field.name for field in dataclasses.fields(Compress)}
    made = compress_arguments(["model", f"--method={name}"])
    assert isinstance(made(model="m", out="o").config, config_class(name))


def test_help_shows_the_flags_of_the_chosen_method(command):
    assert "--damp" in command("compress", "--help").out
    rounding = command("compress", "--method", "rtn", "--help").out
    assert "--damp" not in rounding and "--bits" in rounding


@pytest.mark.parametrize(
    "words, part",
    [
        (("--method", "zap"), "unknown method 'zap'; known: gptq, "),
        (("--bits", 9), "GPTQ.bits must be in 2..8, got 9"),
        (("--bits", "three"), "three"),
        (("--method", "rtn", "--damp", 0.1), "--damp"),
        (("--order", "zap"), "zap"),
        (("--rules", "a=zap"), "unknown method 'zap'"),
        (("--group", 1), "GPTQ.group"),
    ],
)
def test_bad_method_flags_are_the_users_mistake(command, tiny, tmp_path, words, part):
    ended = command("compress", tiny, "--out", tmp_path / "out", *words)
    assert ended.code == 2 and part in ended.err and "Traceback" not in ended.err
    assert not list(tmp_path.iterdir())


def test_a_negative_value_is_no_flag():
    import tyro

    made = tyro.cli(compress_arguments([]), args=["m", "--out", "o", "--group", "-1"])
    assert made.config == GPTQ(group=-1)


def test_a_way_of_tuning_is_read_like_a_method():
    assert parse_tuning("none") is None
    assert parse_tuning("block:epochs=2,target=original") == BlockTuning(epochs=2, target="original")
    with pytest.raises(ValueError, match="unknown method 'gptq'; known: block"):
        parse_tuning("gptq")
    with pytest.raises(ValueError, match="--tune block:speed=1: 'speed=1' is not field=value of block"):
        parse_tuning("block:speed=1")
