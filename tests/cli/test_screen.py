import json
import math

from compressjax.cli.screen import Screen, finite


def test_numbers_that_json_lacks_become_null():
    assert finite({"a": [math.inf, 1.5], "b": (math.nan, {"c": -math.inf})}) == {
        "a": [None, 1.5],
        "b": [None, {"c": None}],
    }


def test_json_is_alone_on_stdout(capsys):
    screen = Screen(json=True)
    screen.show("a table")
    screen.write("a token")
    screen.notice("a notice")
    with screen.bar("Working", "block") as progress:
        progress(1, 2)
        progress(2, 2)
    screen.finish({"perplexity": math.inf})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"perplexity": None}
    assert "a notice" in err and "Working" in err and "2/2" in err and "block" in err


def test_people_get_text_and_no_json(capsys):
    screen = Screen()
    screen.show("[bold]not markup[/]")
    screen.write("token")
    screen.finish({"a": 1})
    assert capsys.readouterr().out == "[bold]not markup[/]\ntoken"
