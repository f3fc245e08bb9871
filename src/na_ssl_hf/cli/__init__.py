"""The `na-ssl` command: parses, calls, prints."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import default_checkpoint
from ..hub.whole_files import whole_file

if TYPE_CHECKING:
    from ..evaluation.systems.processes import Processes

SOUND_SUFFIXES = (".wav", ".flac", ".ogg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `na-ssl`; returns the exit status: 0, 1 for an error told in one line, 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        print(f"na-ssl {options.command}: error: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"na-ssl {options.command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="na-ssl", description="Noise-aware audio SSL for two-channel machine recordings (channel 0 close, 1 far)."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, summary: str, example: str, group=commands) -> argparse.ArgumentParser:
        sub = group.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n{example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(run=run)
        return sub

    sub = command(
        "demo",
        _demo,
        "make a small two-channel data set, fit and score it, print the table and save a picture",
        "  na-ssl demo --out demo_output",
    )
    sub.add_argument("--out", type=Path, default=Path("demo_output"), help="directory to write (default: demo_output)")
    sub.add_argument("--model", help="checkpoint (default: the tiny NA-BEATs that ships with the package)")
    sub.add_argument("--seed", type=int, default=0, help="seed of sounds and rooms (default: 0)")

    sub = command(
        "fit",
        _fit,
        "remember normal two-channel recordings and set the alarm threshold",
        "  na-ssl fit recordings/normal --model checkpoint --out scorer",
    )
    sub.add_argument("recordings", nargs="+", type=Path, metavar="NORMAL_DIR", help="sound files, or folders of them")
    sub.add_argument("--model", help="checkpoint directory or hub id (default: the tiny NA-BEATs of the package)")
    sub.add_argument("--out", type=Path, required=True, metavar="SCORER_DIR", help="directory to write the scorer to")
    sub.add_argument("--pooling", default="mean", help="pooling over time: mean, rdp, gem, ... (default: mean)")
    sub.add_argument("--gamma", type=float, help="strength of rdp pooling (default: 4)")
    sub.add_argument(
        "--rescaling",
        default="none",
        help="score rescaling: none, variance_min (as published), ratio, difference or lof (default: none)",
    )
    sub.add_argument(
        "--far-cancellation",
        choices=("none", "least_squares", "spectral_subtraction"),
        help="remove the far microphone from the close one first (default: as the checkpoint says)",
    )
    sub.add_argument(
        "--threshold-method", default="conformal", help="conformal, gamma or quantile (default: conformal)"
    )
    sub.add_argument("--false-alarm-rate", type=float, help="asked false-alarm rate (default: 0.05)")
    sub.add_argument("--resample", action="store_true", help="accept other sampling rates than the checkpoint's")
    _add_inference_arguments(sub)

    sub = command(
        "score",
        _score,
        "score two-channel recordings with a fitted scorer; higher is more anomalous",
        "  na-ssl score scorer recordings/today --csv scores.csv",
    )
    sub.add_argument("scorer", metavar="SCORER_DIR", help="what `na-ssl fit` wrote")
    sub.add_argument("recordings", nargs="+", type=Path, metavar="FILES_OR_DIR", help="sound files, or folders of them")
    sub.add_argument("--csv", type=Path, help="write the table here instead of to the screen")
    sub.add_argument("--resample", action="store_true", help="accept other sampling rates than the checkpoint's")
    _add_inference_arguments(sub)

    sub = command(
        "simulate",
        _simulate,
        "put sounds through simulated rooms with two microphones; without --targets, synthetic machines as a data set",
        "  na-ssl simulate --targets machine_sounds --noises backgrounds --out rooms --snr -5 0 5\n"
        "  na-ssl simulate dcase --out benchmark --preset small --seed 0 --noise-coherence 0.5\n"
        "  na-ssl simulate rooms --num 10000 --workers 8 --out rooms.safetensors\n"
        "  na-ssl simulate --out dataset",
    )
    sub.add_argument(
        "layout",
        nargs="?",
        choices=("dcase", "rooms"),
        help="dcase: synthetic machines as a benchmark like DCASE 2026 Task 2; rooms: a pool of rooms for training",
    )
    sub.add_argument("--out", type=Path, required=True, help="directory (of rooms: file) to write")
    sub.add_argument("--targets", type=Path, help="folder of sound files of the machine; sub-folders are kept")
    sub.add_argument("--noises", type=Path, help="folder of sound files of backgrounds")
    sub.add_argument(
        "--snr",
        type=float,
        nargs="+",
        help="signal-to-noise ratios in dB (default: -5 0 5); of dcase: one, or both ends of a range (default: -10 10)",
    )
    sub.add_argument("--rooms", type=int, help="number of simulated rooms (default: 20)")
    sub.add_argument(
        "--preset",
        choices=("smoke", "small", "full"),
        help="size of the benchmark: a few clips, 109 + 100 of 6 s a machine, or 1000 + 200 of 10 s (default: small)",
    )
    sub.add_argument(
        "--noise-coherence",
        type=float,
        default=0.0,
        help="share of noise power common to all corners, 0 (independent) to 1 (the same noise); default 0",
    )
    sub.add_argument("--level-match", action="store_true", help="bring every target to one level (RMS) first")
    sub.add_argument("--num", type=int, help="number of rooms of `simulate rooms` (default: 10000)")
    sub.add_argument("--workers", type=int, help="processes of `simulate rooms` (default: 1)")
    sub.add_argument("--seed", type=int, default=0, help="seed of rooms, crops and sounds (default: 0)")

    sub = command(
        "convert",
        _convert,
        "turn a public checkpoint into a directory for from_pretrained; foreign code is never executed",
        "  na-ssl convert beats BEATs_iter3.pt beats\n"
        "  na-ssl convert na-beats na_beats.ckpt na-beats --base BEATs_iter3.pt",
    )
    sub.add_argument("kind", choices=("beats", "eat", "na-beats", "na-eat"), help="what the source is")
    sub.add_argument("source", type=Path, metavar="SRC", help="original file, or directory for EAT's hub layout")
    sub.add_argument("destination", type=Path, metavar="DST", help="directory to write")
    sub.add_argument("--base", type=Path, help="base checkpoint, where SRC holds noise-aware layers only")

    sub = command(
        "evaluate-submission",
        _evaluate_submission,
        "official DCASE 2026 Task 2 numbers of a folder of score files",
        "  na-ssl evaluate-submission submission ground_truth --json",
    )
    sub.add_argument("submission", type=Path, metavar="SUBMISSION_DIR", help="folder of anomaly_score_*.csv files")
    sub.add_argument("ground_truth", type=Path, metavar="GROUND_TRUTH_DIR", help="folder of ground_truth_* folders")
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")

    dcase = commands.add_parser("dcase", help="the data of DCASE 2026 Task 2").add_subparsers(
        dest="dcase_command", required=True, metavar="COMMAND"
    )
    sub = command(
        "download",
        _dcase_download,
        "fetch DCASE 2026 Task 2 from Zenodo (checksums; run again to resume) and unpack it",
        "  na-ssl dcase download --out dcase2026 --sets development --machines fan ToyCar",
        dcase,
    )
    sub.add_argument("--out", type=Path, required=True, help="gets archives/, development/ and evaluation/")
    sub.add_argument("--sets", nargs="+", help="development, evaluation-train, evaluation-test (default: all)")
    sub.add_argument("--machines", nargs="+", help="machine types, such as fan (default: all)")
    sub.add_argument("--no-extract", action="store_true", help="leave the archives packed")
    sub.add_argument("--base-url", default="https://zenodo.org", help="a server with Zenodo's records API")

    sub = command(
        "check",
        _dcase_check,
        "count clips beside the published numbers and read every file; exit status 1 when something is damaged",
        "  na-ssl dcase check dcase2026/development",
        dcase,
    )
    sub.add_argument("root", type=Path, metavar="ROOT", help="folder of <machine>/train and <machine>/test")
    sub.add_argument("--strict", action="store_true", help="exit status 1 also when counts are not the published ones")
    sub.add_argument("--json", action="store_true", help="print JSON instead of lines")
    sub = command(
        "run",
        _dcase_run,
        "run published systems by name: score and decision CSVs, a table beside the published numbers, a report",
        "  na-ssl dcase run --system logmel baseline_mse --data dcase2026/development --out runs\n"
        "  na-ssl dcase run --system fujimura_merl_task2_3 --frontend dis-na-beats=CHECKPOINT --data DATA --out runs\n"
        "  na-ssl dcase run --system beats --far-cancellation --frontend beats=na-beats-tiny --data DATA --out runs\n"
        "  accelerate launch -m na_ssl_hf.cli dcase run --system logmel --data DATA --out runs",
        dcase,
    )
    sub.add_argument(
        "--system",
        nargs="+",
        required=True,
        metavar="NAME",
        help="baseline_mse, baseline_mahala, logmel, logmel-centred, a frontend (beats, na-beats, dis-na-eat, ...), "
        "beats-rdp4, beats-rdp8, fujimura_merl_task2_1 to _4",
    )
    sub.add_argument("--data", type=Path, required=True, metavar="ROOT", help="folder of <machine>/train and /test")
    sub.add_argument("--out", type=Path, required=True, help="gets one folder for each system, results.md and reports")
    sub.add_argument(
        "--frontend",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=CHECKPOINT",
        help="checkpoint of a frontend: a directory, a hub id or na-beats-tiny; NAME=A,B,C for three seeds",
    )
    sub.add_argument(
        "--far-cancellation",
        nargs="?",
        const="least_squares",
        choices=("least_squares", "spectral_subtraction"),
        help="take out of the close channel what the far one hears, before everything (default method: least_squares)",
    )
    sub.add_argument("--machines", nargs="+", help="machine types, such as fan (default: all)")
    sub.add_argument(
        "--ground-truth", type=Path, metavar="DIR", help="folder of ground_truth_* folders, for anonymous test clips"
    )
    sub.add_argument("--cache", type=Path, help="keeps features and autoencoders (default: OUT/cache)")
    sub.add_argument("--seed", type=int, default=0, help="of the autoencoders and of the bootstrap (default: 0)")
    sub.add_argument("--epochs", type=int, default=100, help="of the autoencoders (default: 100)")
    sub.add_argument("--no-report", action="store_true", help="leave out the HTML reports")
    _add_inference_arguments(sub)

    corpora = commands.add_parser("corpora", help="sound corpora for distillation").add_subparsers(
        dest="corpora_command", required=True, metavar="COMMAND"
    )
    sub = command(
        "prepare",
        _corpora_prepare,
        "check the sounds of a corpus, divide them into train and validation, and write OUT/manifest.jsonl",
        "  na-ssl corpora prepare FSD50K --kind fsd50k --out prepared/fsd50k --workers 8\n"
        "  na-ssl corpora prepare my_sounds --out prepared/mine --originals --validation-share 0.1",
        corpora,
    )
    sub.add_argument("source", type=Path, metavar="SOURCE", help="folder of the corpus")
    sub.add_argument("--out", type=Path, required=True, help="gets manifest.jsonl, rejected.csv and audio/")
    sub.add_argument(
        "--kind",
        choices=("folder", "fsd50k", "wham", "demand", "qut-noise", "dataset"),
        default="folder",
        help="layout of SOURCE; dataset: as saved by datasets' save_to_disk (default: folder)",
    )
    sub.add_argument("--corpus", help="name in the manifest (default: the kind, for a folder its name)")
    sub.add_argument(
        "--originals", action="store_true", help="leave the sounds as they are, to be resampled whenever they are read"
    )
    sub.add_argument(
        "--validation-share", type=float, default=0.05, help="where SOURCE has no validation of its own (default: 0.05)"
    )
    sub.add_argument("--group", metavar="REGEX", help="sounds whose names match with the same text stay together")
    sub.add_argument("--min-duration", type=float, default=0.1, metavar="S", help="in seconds (default: 0.1)")
    sub.add_argument(
        "--manifest-csv", type=Path, help="table with path, split, licence: which files of a folder to take"
    )
    sub.add_argument("--manifest-split", help="take only the rows of the table whose split is this")
    sub.add_argument("--audio-column", default="audio", help="of a dataset (default: audio)")
    sub.add_argument("--workers", type=int, default=1, help="threads (default: 1)")

    sub = command(
        "download",
        _corpora_download,
        "fetch FSD50K or DEMAND from Zenodo (checksums; run again to resume) and unpack it",
        "  na-ssl corpora download demand --out demand",
        corpora,
    )
    sub.add_argument(
        "kind", choices=("fsd50k", "demand", "wham", "qut-noise"), help="the latter two say where they are"
    )
    sub.add_argument("--out", type=Path, required=True, help="gets archives/ and the corpus")
    sub.add_argument("--no-extract", action="store_true", help="leave the archives packed")
    sub.add_argument("--base-url", default="https://zenodo.org", help="a server with Zenodo's records API")
    return parser


def _add_inference_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--batch-size", type=int, default=8, help="recordings through the model at a time (default: 8)")
    sub.add_argument("--device", help="cpu, cuda, cuda:1, mps ... (default: the best there is)")


def _demo(options: argparse.Namespace) -> None:
    from ..demo import run_demo

    run_demo(options.out, model=options.model, seed=options.seed)


def _fit(options: argparse.Namespace) -> None:
    from ..hub.memory_bank import MemoryBank

    if options.out.is_file():
        raise FileExistsError(f"--out must be a directory, got the file {options.out}")
    files = _sound_files(options.recordings)
    scorer = _load_scorer(options.model or str(default_checkpoint()), options)
    if options.far_cancellation:
        scorer.feature_extractor.far_cancellation = (
            None if options.far_cancellation == "none" else options.far_cancellation
        )
    rescaling = None if options.rescaling == "none" else options.rescaling
    scorer.fit(
        files,
        pooling=options.pooling,
        gamma=options.gamma,
        memory_bank=MemoryBank(rescaling=rescaling),
        threshold_method=options.threshold_method,
        false_alarm_rate=options.false_alarm_rate,
        batch_size=options.batch_size,
    )
    scorer.save_pretrained(options.out)
    print(f"{len(files)} normal recordings, threshold {scorer.threshold:.6g}, saved to {options.out}")


def _score(options: argparse.Namespace) -> None:
    if options.csv is not None and options.csv.is_dir():
        raise IsADirectoryError(f"--csv must be a file, got the directory {options.csv}")
    files = _sound_files(options.recordings)
    scorer = _load_scorer(options.scorer, options)
    results = scorer(files, batch_size=options.batch_size, progress="score")
    rows = [
        [str(file), *(result[key] for key in ("score", "is_anomaly", "threshold", "p_value"))]
        for file, result in zip(files, results, strict=True)
    ]
    header = ["file", "score", "is_anomaly", "threshold", "p_value"]
    if options.csv is None:
        csv.writer(sys.stdout).writerows([header, *rows])
        return
    with whole_file(options.csv) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    anomalies = sum(result["is_anomaly"] for result in results)
    print(f"{len(files)} recordings, {anomalies} anomalous, scores in {options.csv}")


def _simulate(options: argparse.Namespace) -> None:
    from ..simulation import RoomPool, simulate_recordings, write_dcase_benchmark, write_two_channel_dataset

    options_given = {
        "--targets": options.targets,
        "--noises": options.noises,
        "--snr": options.snr,
        "--rooms": options.rooms,
        "--level-match": options.level_match or None,
        "--preset": options.preset,
        "--noise-coherence": options.noise_coherence or None,
        "--num": options.num,
        "--workers": options.workers,
    }
    taken = {"dcase": ("--preset", "--noise-coherence", "--snr"), "rooms": ("--num", "--workers")}
    if options.layout is not None:
        used = [name for name, value in options_given.items() if value is not None]
        foreign = [name for name in used if name not in taken[options.layout]]
        if foreign:
            own = ", ".join(taken[options.layout])
            raise ValueError(f"simulate {options.layout} takes {own} and --seed, got also {' '.join(foreign)}.")
    if options.layout == "dcase":
        snr_db = options.snr or [-10.0, 10.0]
        if len(snr_db) > 2:
            raise ValueError(f"--snr of simulate dcase must be one value or the two ends of a range, got {snr_db}.")
        write_dcase_benchmark(
            options.out,
            options.preset or "small",
            options.seed,
            options.noise_coherence,
            snr_db=(snr_db[0], snr_db[-1]),
        )
        print(f"benchmark written to {options.out}")
        return
    if options.layout == "rooms":
        if options.out.is_dir():
            raise ValueError(f"--out of simulate rooms must be a file, got the folder {options.out}.")
        num_rooms = 10_000 if options.num is None else options.num
        num_workers = 1 if options.workers is None else options.workers
        pool = RoomPool.simulate(num_rooms, options.seed, options.out, num_workers)
        print(f"{len(pool)} rooms written to {options.out}")
        return
    if foreign := [name for name in ("--num", "--workers") if options_given[name] is not None]:
        raise ValueError(f"{foreign[0]} is of `na-ssl simulate rooms`, got it without rooms.")
    if options.preset is not None:
        raise ValueError(f"--preset is of `na-ssl simulate dcase`, got --preset {options.preset} without dcase.")
    if (options.targets is None) != (options.noises is None):
        given = "--targets" if options.noises is None else "--noises"
        raise ValueError(f"--targets and --noises go together, got {given} alone.")
    if options.targets is None:
        write_two_channel_dataset(options.out, seed=options.seed, noise_coherence=options.noise_coherence)
    else:
        simulate_recordings(
            options.targets,
            options.noises,
            options.out,
            snr_db=options.snr or (-5.0, 0.0, 5.0),
            num_rooms=20 if options.rooms is None else options.rooms,
            seed=options.seed,
            level_match=options.level_match,
            noise_coherence=options.noise_coherence,
        )
    print(f"recordings written to {options.out}")


def _convert(options: argparse.Namespace) -> None:
    from ..convert import convert

    print(f"converted to {convert(options.kind, options.source, options.destination, base=options.base)}")


def _evaluate_submission(options: argparse.Namespace) -> None:
    from ..evaluation.report.submission import evaluate_submission

    result = evaluate_submission(options.submission, options.ground_truth)
    if options.json:
        print(json.dumps(result))
        return
    print(f"official score {100 * result['official_score']:.2f} %")
    for machine, values in result["machines"].items():
        print(f"  {machine}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))


def _dcase_download(options: argparse.Namespace) -> None:
    from ..data.dcase.download import RECORDS, download_dcase2026

    archives = download_dcase2026(
        options.out,
        sets=options.sets or tuple(RECORDS),
        machines=options.machines,
        extract=not options.no_extract,
        base_url=options.base_url,
    )
    print(f"{len(archives)} archives with the right checksums in {options.out}")


def _dcase_check(options: argparse.Namespace) -> int:
    from ..data.dcase.check import check_dcase

    report = check_dcase(options.root)
    print(json.dumps(report.to_dict()) if options.json else "\n".join(report.lines()))
    return 0 if report.is_sound and (report.is_complete or not options.strict) else 1


def _dcase_run(options: argparse.Namespace) -> None:
    from ..evaluation.systems.processes import launched_processes

    with launched_processes() as processes:
        _run_systems(options, processes)


def _run_systems(options: argparse.Namespace, processes: Processes) -> None:
    from ..evaluation.report.html_report import write_html_report
    from ..evaluation.report.result_files import describe, write_run, write_table
    from ..evaluation.systems.run_settings import RunSettings
    from ..evaluation.systems.system_run import run_system

    settings = RunSettings(
        cache=options.cache or options.out / "cache",
        batch_size=options.batch_size,
        device=options.device,
        seed=options.seed,
        num_epochs=options.epochs,
        processes=processes,
    )
    checkpoints = _checkpoints(options.frontend)
    for system in dict.fromkeys(options.system):
        run = run_system(
            system,
            options.data,
            settings,
            checkpoints,
            options.far_cancellation,
            options.machines,
            options.ground_truth,
        )
        if processes.is_main:
            metrics = write_run(options.out / run.name, run, options.data, options.seed)
            if not options.no_report:
                write_html_report(
                    options.out / run.name / "report.html", run.name, describe(metrics), run.machines, options.seed
                )
            write_table(options.out)
    if processes.is_main:
        print((options.out / "results.md").read_text(encoding="utf-8"), end="")


def _checkpoints(pairs: Sequence[str]) -> dict[str, list[str]]:
    """Embedder -> checkpoints of its seeds, from `NAME=A,B` arguments."""
    from ..evaluation.systems.published_systems import FRONTENDS

    checkpoints: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, paths = pair.partition("=")
        if name not in FRONTENDS or not equals or not all(paths.split(",")):
            raise ValueError(f"--frontend must be NAME=CHECKPOINT with NAME of {', '.join(FRONTENDS)}; got {pair!r}")
        checkpoints.setdefault(name, []).extend(paths.split(","))
    return checkpoints


def _corpora_prepare(options: argparse.Namespace) -> None:
    from ..data.corpora.prepare import prepare_corpus

    prepared = prepare_corpus(
        options.source,
        options.out,
        options.kind,
        corpus=options.corpus,
        convert=not options.originals,
        validation_share=options.validation_share,
        group_pattern=options.group,
        min_duration_s=options.min_duration,
        manifest_csv=options.manifest_csv,
        manifest_split=options.manifest_split,
        audio_column=options.audio_column,
        num_workers=options.workers,
    )
    print("\n".join(prepared.lines()))


def _corpora_download(options: argparse.Namespace) -> None:
    from ..data.corpora.download import download_corpus

    archives = download_corpus(options.kind, options.out, not options.no_extract, options.base_url)
    print(f"{len(archives)} archives with the right checksums in {options.out}")


def _load_scorer(model: str, options: argparse.Namespace) -> Any:
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import pipeline

    from .. import AnomalyScorer
    from ..quiet_checkpoints import quiet_checkpoints

    path = Path(model)
    if not path.is_dir() and (path.exists() or path.is_absolute() or model.startswith(".") or model.count("/") > 1):
        raise FileNotFoundError(f"no checkpoint directory {model}")
    if options.device is not None:
        try:
            torch.empty(0, device=options.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {options.device} cannot be used: {_first_line(error)}") from error
    try:
        with quiet_checkpoints():
            scorer: Any = pipeline("anomaly-scoring", model=model, device=options.device)  # type: ignore[call-overload]
    except (ValueError, OSError, SafetensorError, StrictDataclassError) as error:
        raise OSError(f"{model} cannot be loaded: {_first_line(error)}") from error
    assert isinstance(scorer, AnomalyScorer)
    if options.resample:
        scorer.feature_extractor.resample = True
    return scorer


def _first_line(error: BaseException) -> str:
    """The first line of a message, or the first two where the first only announces the second."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])


def _sound_files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SOUND_SUFFIXES)
            if not found:
                raise FileNotFoundError(f"no {', '.join(SOUND_SUFFIXES)} files below {path}")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"no file or folder {path}")
    return files
