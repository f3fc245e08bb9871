"""`watch.toml`: several machines, every mistake named, and the check of scorers and sources."""

import json
import re
from pathlib import Path

import pytest
import soundfile
from watched_machine import RATE, machine_sound

from na_ssl_hf.cli import build_parser, main
from na_ssl_hf.watch.configuration import read_configuration
from na_ssl_hf.watch.store import WatchStore


def write(folder, text):
    path = folder / "watch.toml"
    path.write_text(text, encoding="utf-8")
    return path


def two_machines(folder, scorer_folder):
    for index in range(2):
        soundfile.write(folder / f"{index}.wav", machine_sound(90 + index, 2.0).T, RATE)
    return write(
        folder,
        f"""
[watch]
window = 1
hop = 0.5
state = "state.json"
device = "cpu"

[outputs]
store = "kept"

[[machine]]
name = "pump"
scorer = "{scorer_folder}"
source = "0.wav"
false_alarms_per = "12h"
independent_after = "15m"

[[machine]]
name = "fan"
scorer = "{scorer_folder}"
source = "1.wav"
hop = 1.0
""",
    )


def test_settings_of_the_watch_hold_for_every_machine_that_has_none_of_its_own(tmp_path, scorer_folder):
    configuration = read_configuration(two_machines(tmp_path, scorer_folder))
    pump, fan = configuration.machines
    assert (pump.settings.window, pump.settings.hop, pump.settings.false_alarms_per) == (1, 0.5, 12 * 3600.0)
    assert pump.settings.independent_after == 900.0
    assert (fan.settings.hop, fan.settings.false_alarms_per) == (1.0, None)
    assert pump.source == str(tmp_path / "0.wav")
    assert configuration.state == tmp_path / "state.json"
    assert configuration.outputs == {"store": tmp_path / "kept"}


def test_several_machines_are_watched_and_told_apart(tmp_path, scorer_folder, capsys):
    path = two_machines(tmp_path, scorer_folder)
    assert main(["watch", "--config", str(path), "--check"]) == 0
    assert "2 machines, nothing is wrong" in capsys.readouterr().out
    assert main(["watch", "--config", str(path)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    times = {name: [line["time"] for line in lines if line["machine"] == name] for name in ("pump", "fan")}
    assert times == {"pump": [1.0, 1.5, 2.0], "fan": [1.0, 2.0]}
    assert len(list(WatchStore(tmp_path / "kept").windows("pump", 0.0))) == 3
    assert sorted(json.loads((tmp_path / "state.json").read_text())) == ["fan", "pump"]


MACHINE = '[[machine]]\nname = "pump"\nscorer = "x"\nsource = "-"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has no \[\[machine\]\]"),
        ("[[machine]", "must be a TOML file"),
        ("machine = 3", r"must have a table \[watch\] and tables \[\[machine\]\]"),
        (MACHINE + "hops = 3", r"the unknown key 'hops' in \[\[machine\]\] 1"),
        (MACHINE + "window = true", r"window = True in \[\[machine\]\] 1, which must be a number of seconds"),
        (MACHINE + 'false_alarms_per = "often"', "which must be a time such as 30d"),
        (MACHINE + MACHINE, "the name 'pump' 2 times"),
        ("[[machine]]\nname = 'a'", r"no 'scorer' in \[\[machine\]\] 1; no 'source' in"),
        (MACHINE + "[outputs]\nstore = 3", r"store = 3 in \[outputs\], which must be a folder"),
        (MACHINE + "[elsewhere]\n", "the unknown table or key 'elsewhere'"),
    ],
)
def test_every_mistake_in_the_file_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_configuration(write(tmp_path, text))


def test_a_check_tells_what_is_wrong_with_every_machine(tmp_path, scorer_folder, capsys):
    path = two_machines(tmp_path, scorer_folder)
    text = path.read_text().replace("12h", "9000000d")
    path.write_text(text)
    (tmp_path / "1.wav").unlink()
    assert main(["watch", "--config", str(path), "--check"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "pump: `false_alarms_per` of 9e+06d needs at least" in last
    assert "fan: `source` must be -, a file" in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scorer", "-", "--check"], "--check must go with --config"),
        (["scorer", "--config", "watch.toml"], "--config must go without SCORER_DIR"),
        (["--config", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_wrong_uses_are_one_line_errors(arguments, message, capsys):
    assert main(["watch", *arguments]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_without_a_file_scorer_and_source_are_needed_wherever_they_stand(capsys):
    with pytest.raises(SystemExit):
        main(["watch", "--rate", "16000"])
    assert "required: SCORER_DIR, SOURCE" in capsys.readouterr().err
    options = build_parser().parse_args(["watch", "scorer", "--rate", "16000", "-"])
    assert (options.scorer, options.source) == ("scorer", "-")
    options = build_parser().parse_args(["watch", "--config=watch.toml", "--check"])
    assert (options.scorer, options.source) == (None, None)


def test_the_example_is_a_configuration():
    path = Path(__file__).parents[2] / "examples" / "deploy" / "watch.toml"
    (machine,) = read_configuration(path).machines
    assert machine.source == "device:USB Audio"
    unit = path.with_name("na-ssl-watch.service").read_text()
    for line in re.findall(r"^ExecStart(?:Pre)?=\S+/na-ssl (.*)$", unit, re.MULTILINE):
        assert build_parser().parse_args(line.split()).config == Path("watch.toml")
