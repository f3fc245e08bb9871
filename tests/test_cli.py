"""`na-ssl` as a user types it: real files, exit statuses, errors of one line."""

import argparse
import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import soundfile

from na_ssl_hf import MemoryBank
from na_ssl_hf.checkpoints import default_checkpoint, resolve_checkpoint, shipped_checkpoint
from na_ssl_hf.cli import build_parser, main
from na_ssl_hf.training.model_card import launch_command

RATE = 16000
FOLDERS = ("docs", "examples", "model_cards")  # where command lines are documented, besides the root
COMMANDS = [
    *("demo", "fit", "score", "export", "convert", "evaluate-submission", "completion"),
    *("simulate", "simulate recordings", "simulate synthetic", "simulate dcase", "simulate rooms"),
    *("dcase", "dcase download", "dcase check", "dcase run", "corpora", "corpora prepare", "corpora download"),
    *("train", "train distil", "train finetune", "train pretrain", "fleet", "fleet fit", "fleet score"),
    *("watch", "bank", "bank add", "bank forget", "bank rollback", "bank history", "app"),
]


def write_clips(folder: Path, count: int, seed: int = 0, tone: float = 0.0, rate: int = RATE) -> list[Path]:
    """Half a second of white noise, with a whistle at the close microphone where `tone` is its amplitude."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = [folder / f"clip_{index:02}.wav" for index in range(count)]
    whistle = tone * np.sin(2 * np.pi * 1000 * np.arange(rate // 2) / rate)
    for path in paths:
        samples = 0.05 * rng.standard_normal((rate // 2, 2))
        samples[:, 0] += whistle
        soundfile.write(path, samples, rate)
    return paths


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`normal/` with 20 recordings in two sub-folders, `today/` with WAV, FLAC and OGG."""
    folder = tmp_path_factory.mktemp("recordings")
    write_clips(folder / "normal" / "monday", 10, seed=1)
    write_clips(folder / "normal" / "tuesday", 10, seed=2)
    _, flac, ogg = write_clips(folder / "today", 3, seed=3, tone=0.3)
    for path, suffix in ((flac, ".flac"), (ogg, ".ogg")):
        samples, rate = soundfile.read(path)
        soundfile.write(path.with_suffix(suffix), samples, rate)
        path.unlink()
    (folder / "today" / "notes.txt").write_text("not a recording")
    return folder


@pytest.fixture(scope="module")
def scorer(folder):
    assert main(["fit", str(folder / "normal"), "--out", str(folder / "scorer"), "--device", "cpu"]) == 0
    return folder / "scorer"


def one_line_error(capsys, *arguments, status=1) -> str:
    """The single line on stderr of a command that must fail, which names the whole command."""
    command = " ".join(arguments[:2]) if f"{arguments[0]} {arguments[1]}" in COMMANDS else arguments[0]
    assert main([str(argument) for argument in arguments]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith(f"na-ssl {command}: error: ")
    assert len(lines[0]) < 600
    return lines[0]


# The command line itself


def test_installed_command_fits_and_scores(folder, tmp_path):
    command = Path(sys.executable).with_name("na-ssl")
    fit = [command, "fit", folder / "normal", "--model", default_checkpoint(), "--out", tmp_path / "scorer"]
    done = subprocess.run(fit, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "20 normal recordings, threshold" in done.stdout
    done = subprocess.run([command, "score", tmp_path / "scorer", folder / "none"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == f"na-ssl score: error: no file or folder {folder / 'none'}"


@pytest.mark.parametrize("command", [command for command in COMMANDS if "train " not in command])
def test_help_shows_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as exit_status:
        main([*command.split(), "--help"])
    assert exit_status.value.code == 0
    examples = capsys.readouterr().out.split("example:\n")[1].strip().splitlines()
    assert examples
    for example in examples:
        words = re.sub(r'^eval "\$\((.*)\)"$', r"\1", example.strip()).split()
        if words[0] == "accelerate":
            assert words[:4] == ["accelerate", "launch", "-m", "na_ssl_hf.cli"]
            words = ["na-ssl", *words[4:]]
        assert words[0] == "na-ssl"
        assert " ".join(words[1:]).startswith(command)
        build_parser().parse_args(words[1:])


def parsers(parser):
    """All parsers of commands, by name."""
    yield parser.prog.removeprefix("na-ssl").strip(), parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers(command)


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as exit_status:
        main(["--help"])
    assert exit_status.value.code == 0
    listed = capsys.readouterr().out
    assert all(f"\n    {command}" in listed for command in COMMANDS if " " not in command)
    assert sorted(dict(parsers(build_parser()))) == sorted(["", *COMMANDS])


def documented_command_lines():
    """Every line of the documentation that begins with the command, without its comment."""
    root = Path(__file__).parents[1]
    for page in sorted([*root.glob("*.md"), *(path for name in FOLDERS for path in (root / name).rglob("*.md"))]):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^ *(?:na-ssl|accelerate launch -m na_ssl_hf\.cli) .*", text, re.MULTILINE):
            yield f"{page.relative_to(root)}: {line.strip()}", shlex.split(line, comments=True)


def test_documented_command_lines_parse(capsys):
    lines = list(documented_command_lines())
    assert len(lines) > 20
    for name, words in lines:
        try:
            build_parser().parse_args(words[1:] if words[0] == "na-ssl" else words[4:])
        except SystemExit:
            pytest.fail(f"{name}\n{capsys.readouterr().err}")


def test_every_option_says_what_it_is():
    for name, parser in parsers(build_parser()):
        for action in parser._actions:
            assert action.help or isinstance(action, argparse._SubParsersAction), f"{name} {action.dest}"
            # "of the autoencoders" and "which ones" leave the reader to guess the object.
            assert not re.match(r"(of|which|over|on|where|as|default)\b", action.help or ""), f"{name} {action.dest}"


def test_choices_are_those_of_the_modules_that_use_them():
    from na_ssl_hf.hub.far_microphone import FAR_MICROPHONE_METHODS
    from na_ssl_hf.hub.noise_cancellation import METHODS
    from na_ssl_hf.hub.pooling import POOLING_METHODS
    from na_ssl_hf.hub.threshold import THRESHOLD_METHODS

    fit = dict(parsers(build_parser()))["fit"]
    choices = {action.dest: list(action.choices) for action in fit._actions if action.choices}
    assert choices["pooling"] == list(POOLING_METHODS)
    assert choices["threshold_method"] == list(THRESHOLD_METHODS)
    calibrated = [name for name in FAR_MICROPHONE_METHODS if name not in ("none", *METHODS)]
    assert choices["far_cancellation"] == ["none", *METHODS, *calibrated]
    rescalings = [each for part in get_args(get_type_hints(MemoryBank)["rescaling"]) for each in get_args(part)]
    assert choices["rescaling"] == ["none", *rescalings]


@pytest.mark.parametrize("command", ["fit x --out y", "dcase run --system logmel --data x --out y"])
def test_far_cancellation_has_one_grammar(command):
    def method(*words):
        return build_parser().parse_args([*command.split(), *words]).far_cancellation

    assert method() is None
    assert method("--far-cancellation") == method("--far-cancellation", "least_squares") == "least_squares"
    assert method("--far-cancellation", "none") == "none"
    assert method("--far-cancellation", "spectral_subtraction") == "spectral_subtraction"
    with pytest.raises(SystemExit, match="2"):
        method("--far-cancellation", "magic")


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("--targets a --noises b --out c --snr -5 0 5", "recordings"),
        ("--out c --noises=b", "recordings"),
        ("--out c --targ a", "recordings"),
        ("--out c", "synthetic"),
        ("--noise-coherence 1 --out c", "synthetic"),
        ("dcase --out c --preset small", "dcase"),
        ("rooms --num 10 --out c", "rooms"),
        ("recordings --out c", "recordings"),
    ],
)
def test_simulate_chooses_the_command_that_is_left_out(arguments, command):
    options = build_parser().parse_args(["simulate", *arguments.split()])
    assert (options.simulate_command, options.program) == (command, f"na-ssl simulate {command}")


def test_command_line_answers_without_heavy_packages():
    """Time is measured by benchmarks/startup.py; here it is said what must not be imported."""
    code = """
import sys
from na_ssl_hf.cli import main
for words in (["--help"], ["score", "--help"], ["dcase", "run", "--help"], ["train", "--help"], ["completion", "bash"]):
    try:
        main(words)
    except SystemExit as stop:
        assert stop.code == 0
print(*sorted(sys.modules), sep="\\n", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "numpy", "scipy", "huggingface_hub"} & set(done.stderr.split())


def completions(*words: str) -> list[str]:
    """What bash offers for the last of `words`."""
    script = 'eval "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _na_ssl; echo "${COMPREPLY[@]}"'
    command = [sys.executable, "-m", "na_ssl_hf.cli", "completion", "bash"]
    completion = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    done = subprocess.run(["bash", "-c", script, "bash", completion, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_shell_completes_commands_and_options():
    assert completions("na-ssl", "f") == ["fit", "fleet"]
    assert completions("na-ssl", "dcase", "") == ["--help", "download", "check", "run"]
    assert completions("na-ssl", "dcase", "run", "--f") == ["--frontend", "--far-cancellation"]
    assert completions("na-ssl", "fit", "recordings", "--re") == ["--rescaling", "--resample"]


@pytest.mark.parametrize(
    "arguments",
    [
        *("", "fly", "fit", "fit x", "score x", "convert hubert a b", "fit x --nope", "dcase", "simulate fly --out x"),
        *("fit x --out y --rescaling magic", "fit x --out y --pooling magic", "fit x --out y --threshold-method magic"),
        *("simulate dcase --out x --targets y", "simulate --out x --preset smoke", "simulate --out x --num 3"),
        *("simulate rooms --out x --noise-coherence 1", "train", "train walk", "completion fish"),
    ],
)
def test_wrong_command_lines_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_status:
        main(arguments.split())
    assert exit_status.value.code == 2
    error = capsys.readouterr().err
    assert "usage: na-ssl" in error
    # The error line names the command in which the mistake is, and argparse reports foreign options at the top.
    assert re.fullmatch(r"na-ssl[a-z -]*: error: .*", error.splitlines()[-1])


# fit and score


def test_score_writes_a_row_per_recording(folder, scorer, tmp_path, capsys):
    out = tmp_path / "new" / "scores.csv"
    assert main(["score", str(scorer), str(folder / "today"), "--csv", str(out)]) == 0
    assert "3 recordings, 3 anomalous" in capsys.readouterr().out
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["clip_00.wav", "clip_01.flac", "clip_02.ogg"]
    assert list(rows[0]) == ["file", "score", "is_anomaly", "threshold", "p_value"]
    for row in rows:
        assert float(row["score"]) > float(row["threshold"])
        assert row["is_anomaly"] == "True"
        assert float(row["p_value"]) == pytest.approx(1 / 21)
    assert [path.name for path in out.parent.iterdir()] == ["scores.csv"]
    assert out.stat().st_mode & 0o777 == (folder / "today" / "notes.txt").stat().st_mode & 0o777


def test_score_prints_the_table_without_csv_and_keeps_the_order_of_files(folder, scorer, capsys):
    files = sorted((folder / "normal" / "monday").iterdir(), reverse=True)[:3]
    assert main(["score", str(scorer), *map(str, files), "--batch-size", "2"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["file"] for row in rows] == [str(file) for file in files]


def test_existing_csv_survives_a_failed_run(folder, scorer, tmp_path, capsys):
    out = tmp_path / "scores.csv"
    out.write_text("old")
    (tmp_path / "bad.wav").write_bytes(b"no sound")
    assert "bad.wav" in one_line_error(capsys, "score", scorer, tmp_path / "bad.wav", "--csv", out)
    assert out.read_text() == "old"


def test_fit_settings_reach_the_scorer(folder, tmp_path, capsys):
    options = (
        "--pooling rdp_gem --gamma 8 --p 2 --rescaling lof --far-cancellation least_squares --threshold-method quantile"
    )
    arguments = ["fit", str(folder / "normal" / "monday"), str(folder / "normal" / "tuesday" / "clip_00.wav")]
    assert main([*arguments, *options.split(), "--false-alarm-rate", "0.2", "--out", str(tmp_path / "s")]) == 0
    assert "11 normal recordings" in capsys.readouterr().out
    from transformers import pipeline

    scorer = pipeline("anomaly-scoring", model=str(tmp_path / "s"))
    calibration = scorer.memory_bank.calibration
    assert scorer.memory_bank.rescaling == "lof"
    assert calibration.pooling == {"method": "rdp_gem", "gamma": 8.0, "p": 2.0, "r": 0.9}
    assert calibration.extractor["far_cancellation"] == "least_squares"
    assert (calibration.threshold_method, calibration.false_alarm_rate) == ("quantile", 0.2)


def test_resample_accepts_another_rate(folder, scorer, tmp_path, capsys):
    write_clips(tmp_path, 2, rate=22050)
    assert "sampling_rate" in one_line_error(capsys, "score", scorer, tmp_path)
    assert main(["score", str(scorer), str(tmp_path), "--resample"]) == 0


def bad_scorers(folder: Path, scorer: Path, kind: str) -> Path:
    copy = folder / kind.replace(" ", "_")
    shutil.copytree(scorer, copy)
    for name, change in {
        "broken config": ("config.json", lambda old: b"{"),
        "wrong config": (
            "config.json",
            lambda old: re.sub(rb'"num_attention_heads": \d+', b'"num_attention_heads": 5', old),
        ),
        "truncated weights": ("model.safetensors", lambda old: old[:1000]),
        "truncated memory": ("memory_bank.safetensors", lambda old: old[:1000]),
        "other weights": ("model.safetensors", lambda old: old[:-4] + b"\x00\x00\x80\x3f"),
    }.items():
        if name == kind:
            (copy / change[0]).write_bytes(change[1]((copy / change[0]).read_bytes()))
    if kind == "no extractor":
        (copy / "preprocessor_config.json").unlink()
    return copy


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("broken config", "config.json"),
        ("wrong config", "`num_attention_heads` must divide"),
        ("truncated weights", "cannot be loaded"),
        ("truncated memory", "memory_bank.safetensors"),
        ("other weights", "another model"),
        ("no extractor", "preprocessor_config.json"),
    ],
)
def test_damaged_scorers_are_errors_of_one_line(folder, scorer, tmp_path, capsys, kind, message):
    damaged = bad_scorers(tmp_path, scorer, kind)
    assert message in one_line_error(capsys, "score", damaged, folder / "today")


def test_wrong_input_is_an_error_of_one_line(folder, scorer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    soundfile.write(tmp_path / "mono.wav", np.zeros(RATE), RATE)
    (tmp_path / "text.wav").write_bytes(b"no sound")
    normal, today = folder / "normal", folder / "today"
    new = tmp_path / "new"
    cases = [
        (("score", scorer, tmp_path / "empty"), "empty must hold sound files (.wav, .flac, .ogg,"),
        (("score", scorer, tmp_path / "mono.wav"), "mono.wav"),
        (("score", scorer, tmp_path / "text.wav"), "text.wav"),
        (("score", scorer, today / "notes.txt"), "notes.txt"),
        (("score", scorer, today, "--batch-size", "0"), "`batch_size`"),
        (("score", scorer, today, "--csv", tmp_path), "--csv must be a file"),
        (("score", default_checkpoint(), today), "not fitted"),
        (("score", tmp_path / "no_scorer", today), "no_scorer"),
        (("score", scorer / "config.json", today), "no checkpoint directory"),
        (("score", "nobody/no-such-model", today), "there is no folder nobody/no-such-model"),
        (("score", scorer, today, "--device", "cuda:99"), "--device cuda:99"),
        (("score", scorer, today, "--device", "abacus"), "--device abacus"),
        (("fit", normal, "--out", new, "--model", tmp_path / "no_model"), "no_model"),
        (("fit", tmp_path / "empty", "--out", new), "empty must hold sound files"),
        (("fit", normal / "monday", "--out", new, "--false-alarm-rate", "0.01"), "at least 99"),
        (("fit", normal / "monday", "--out", new, "--gamma", "8"), "gamma"),
        (("fit", normal / "monday", "--out", tmp_path / "mono.wav"), "--out must be a directory"),
    ]
    for arguments, message in cases:
        assert message in one_line_error(capsys, *arguments), arguments
    assert not new.exists()


def test_interrupt_is_told_in_one_line(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("na_ssl_hf.cli.scoring._fit", interrupted)
    assert main(["fit", "x", "--out", "y"]) == 130
    assert capsys.readouterr().err == "na-ssl fit: interrupted\n"


def test_checkpoints_are_found_by_directory_then_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint("na-eat-tiny") == str(shipped_checkpoint("na-eat-tiny"))
    for name in ("user/na-beats", "user/na beats"):
        with pytest.raises(FileNotFoundError, match=f"there is no folder {name}, and it"):
            resolve_checkpoint(name)
    cached = {("user/na-beats", "config.json"), ("user/adapter", "adapter_config.json")}
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *of: "file" if of in cached else None)
    for name in ("user/na-beats", "user/adapter"):
        assert resolve_checkpoint(name) == name
    (tmp_path / "na-eat-tiny").mkdir()
    assert resolve_checkpoint("na-eat-tiny") == "na-eat-tiny"
    assert resolve_checkpoint(tmp_path) == str(tmp_path)
    (tmp_path / "file").touch()
    for path in ("./none", "file", "a/b/c", tmp_path / "none", ""):
        with pytest.raises(FileNotFoundError, match="no checkpoint directory"):
            resolve_checkpoint(path)


# The other commands


@pytest.mark.parametrize("case", ["tiny", "ties"])
def test_evaluate_submission_prints_the_golden_score(goldens, case, capsys):
    root = goldens / "backends" / "4_metrics"
    expected = json.loads((root / "summary.json").read_text())[case]
    arguments = ["evaluate-submission", str(root / case / "teams" / "team" / case), str(root / case)]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["official_score"] == pytest.approx(expected, abs=1e-9)
    assert main(arguments) == 0
    table = capsys.readouterr().out
    assert f"official score {100 * expected:.2f} %" in table
    assert all(machine in table for machine in result["machines"])


def test_evaluate_submission_names_what_is_missing(tmp_path, capsys):
    assert "nowhere" in one_line_error(capsys, "evaluate-submission", tmp_path / "nowhere", tmp_path)


def test_convert_writes_a_directory_that_fit_takes(goldens, folder, tmp_path, capsys):
    source = goldens / "models" / "beats_tiny" / "beats_tiny.pt"
    assert main(["convert", "beats", str(source), str(tmp_path / "beats")]) == 0
    assert str(tmp_path / "beats") in capsys.readouterr().out
    arguments = ["fit", str(folder / "normal" / "monday"), "--model", str(tmp_path / "beats")]
    assert main([*arguments, "--out", str(tmp_path / "scorer")]) == 0


def test_convert_errors_are_of_one_line_and_write_nothing(goldens, tmp_path, capsys):
    source = goldens / "models" / "beats_tiny" / "beats_tiny.pt"
    (tmp_path / "half.pt").write_bytes(source.read_bytes()[:5000])
    for bad in (tmp_path / "missing.pt", tmp_path / "half.pt"):
        assert bad.name in one_line_error(capsys, "convert", "beats", bad, tmp_path / "out")
    assert "base" in one_line_error(capsys, "convert", "beats", source, tmp_path / "out", "--base", source)
    assert not (tmp_path / "out").exists()


def test_simulate_puts_sounds_into_rooms_that_score_reads(scorer, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, count, seconds in (("targets/fan", 1, 1), ("noises", 4, 2)):
        (tmp_path / name).mkdir(parents=True)
        for index in range(count):
            soundfile.write(tmp_path / name / f"{index}.wav", 0.1 * rng.standard_normal(seconds * RATE), RATE)
    arguments = ["simulate", "--targets", str(tmp_path / "targets"), "--noises", str(tmp_path / "noises")]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--rooms", "1", "--snr", "-5", "5"]) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.wav"))
    assert written == ["-5dB/fan/0.wav", "5dB/fan/0.wav", "clean/fan/0.wav"]
    assert main(["score", str(scorer), str(tmp_path / "out")]) == 0


def test_simulate_wants_targets_and_noises_together(tmp_path, capsys):
    arguments = ["simulate", "recordings", "--out", tmp_path / "out"]
    assert "got none of them" in one_line_error(capsys, *arguments)
    for given in ("--targets", "--noises"):
        assert f"got {given} alone" in one_line_error(capsys, *arguments, given, tmp_path)
    folders = ["--targets", tmp_path / "nowhere", "--noises", tmp_path / "nowhere either"]
    assert "nowhere" in one_line_error(capsys, *arguments, *folders)


def test_simulate_dcase_writes_a_benchmark_that_dcase_check_reads(tmp_path, capsys, monkeypatch):
    from na_ssl_hf.simulation import dcase_benchmark

    tiny = dcase_benchmark.BenchmarkPreset(1, 1, 1, duration_s=0.5, num_rooms=1, num_places=1)
    monkeypatch.setitem(dcase_benchmark.PRESETS["moving"], "smoke", tiny)
    options = ["--preset", "smoke", "--seed", "3", "--noise-coherence", "0.5", "--snr", "5", "--installation", "moving"]
    assert main(["simulate", "dcase", "--out", str(tmp_path / "set"), *options]) == 0
    assert f"benchmark written to {tmp_path / 'set'}" in capsys.readouterr().out
    settings = {"installation": "moving", "show_progress": False}
    dcase_benchmark.write_dcase_benchmark(tmp_path / "same", "smoke", 3, 0.5, (5.0, 5.0), **settings)
    clip = "bearing/test/section_00_target_test_anomaly_0000_noAttribute.wav"
    assert (tmp_path / "set" / clip).read_bytes() == (tmp_path / "same" / clip).read_bytes()
    assert main(["dcase", "check", str(tmp_path / "set")]) == 0


def test_simulate_dcase_passes_its_options_to_fixed_installations(tmp_path, capsys, monkeypatch):
    from na_ssl_hf.simulation import dcase_benchmark

    tiny = dcase_benchmark.BenchmarkPreset(1, 1, 2, duration_s=0.5, num_rooms=1, num_places=1, num_supplemental=1)
    monkeypatch.setitem(dcase_benchmark.PRESETS["fixed"], "smoke", tiny)
    options = ["--preset", "smoke", "--machines", "pump", "--coherence", "0.5", "--machine-level", "-3", "--snr", "5"]
    options += ["--drift", "gain", "--drift-from", "0.4"]
    assert main(["simulate", "dcase", "--out", str(tmp_path / "set"), *options]) == 0
    pump = json.loads((tmp_path / "set" / "installations.json").read_text())["installations"]["pump"]
    assert (pump["coherence"], pump["machine_level_db"], pump["test_snr_db"]) == (0.5, -3, [5, 5])
    assert set(pump["drifts"]) == {"from_share", "gain"}
    assert pump["drifts"]["from_share"] == 0.4
    capsys.readouterr()
    assert main(["dcase", "check", str(tmp_path / "set")]) == 0
    assert "supplemental" in capsys.readouterr().out
    assert "drift_from must be" in one_line_error(
        capsys, "simulate", "dcase", "--out", tmp_path / "no", *options[:-1], "1"
    )
    assert "toaster" in one_line_error(capsys, "simulate", "dcase", "--out", tmp_path / "no", "--machines", "toaster")
    assert not (tmp_path / "no").exists()


def test_simulate_rooms_writes_a_pool(tmp_path, capsys):
    from na_ssl_hf.simulation import RoomPool

    assert main(["simulate", "rooms", "--num", "2", "--seed", "5", "--out", str(tmp_path / "rooms.safetensors")]) == 0
    assert f"2 rooms written to {tmp_path / 'rooms.safetensors'}" in capsys.readouterr().out
    pool = RoomPool.load(tmp_path / "rooms.safetensors")
    assert (len(pool), pool.seed) == (2, 5)


def test_corpora_prepare_writes_a_manifest_and_lists_what_it_left_out(tmp_path, capsys):
    from na_ssl_hf.data.corpora.manifest import read_manifest

    write_clips(tmp_path / "sounds", 3)
    (tmp_path / "sounds" / "broken.wav").write_bytes(b"RIFF")
    out = tmp_path / "prepared"
    assert main(["corpora", "prepare", str(tmp_path / "sounds"), "--out", str(out)]) == 0
    assert "3" in capsys.readouterr().out
    assert len(read_manifest(out / "manifest.jsonl")) == 3
    assert "broken" in (out / "rejected.csv").read_text()
    assert "nowhere" in one_line_error(capsys, "corpora", "prepare", tmp_path / "nowhere", "--out", out)
    assert "fetch high_res_wham.zip" in one_line_error(capsys, "corpora", "download", "wham", "--out", out)


def test_simulate_refuses_wrong_values(tmp_path, capsys):
    out = ["--out", tmp_path / "out"]
    error = one_line_error(capsys, "simulate", "dcase", *out, "--snr", "0", "5", "10")
    assert "one value, the two ends of a range, or challenge, got [0.0, 5.0, 10.0]" in error
    assert "got ['challenge', 5.0]" in one_line_error(capsys, "simulate", "dcase", *out, "--snr", "challenge", "5")
    moving = ["--snr", "challenge", "--installation", "moving"]
    assert "'moving', got None" in one_line_error(capsys, "simulate", "dcase", *out, *moving)
    assert "must be a file" in one_line_error(capsys, "simulate", "rooms", "--out", tmp_path)
    assert not (tmp_path / "out").exists()


def test_dcase_check_prints_counts_and_fails_on_damage(tmp_path, capsys):
    for split, label in (("train", "normal"), ("test", "anomaly")):
        for index in range(2):
            file = tmp_path / "fan" / split / f"section_00_source_{split}_{label}_{index:04d}_spd_1.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(file, np.random.default_rng(index).normal(0, 0.1, (16000, 2)), 16000)
    assert main(["dcase", "check", str(tmp_path)]) == 0
    assert "fan" in capsys.readouterr().out
    assert main(["dcase", "check", str(tmp_path), "--strict"]) == 1
    file.write_bytes(file.read_bytes()[:100])
    capsys.readouterr()
    assert main(["dcase", "check", str(tmp_path), "--json"]) == 1
    assert file.name in json.dumps(json.loads(capsys.readouterr().out)["damage"])


# Training


def test_train_helps_with_the_options_of_the_script(capsys, monkeypatch):
    for command, options in (("distil", "--layer_type"), ("finetune", "--lora_rank"), ("pretrain", "--objective")):
        with pytest.raises(SystemExit) as stop:
            main(["train", command, "--help"])
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert f"usage: na-ssl train {command} " in shown
        assert f"example:\n  na-ssl train {command} --" in shown
        assert options in shown


def test_train_passes_its_arguments_to_the_script(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "pretrain", "--output-dir", str(tmp_path)])
    assert stop.value.code == 2
    assert "na-ssl train pretrain: error: the following arguments are required: --targets" in capsys.readouterr().err
    arguments = ["--targets", str(tmp_path / "none.jsonl"), "--output-dir", str(tmp_path / "out"), "--cpu"]
    assert main(["train", "pretrain", *arguments]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("na-ssl train pretrain: error: ")
    assert "none.jsonl" in error


def test_train_without_accelerate_names_the_extra(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'na-ssl-hf[train]'" in one_line_error(capsys, "train", "distil", "--help")


def test_card_repeats_the_command_that_trained():
    assert launch_command(["examples/train.py", "--base", "a b"]) == "accelerate launch examples/train.py --base 'a b'"
    command = launch_command(["na-ssl train distil", "--base", "a b"])
    assert command == "accelerate launch -m na_ssl_hf.cli train distil --base 'a b'"
