"""The page of `na-ssl app`, made with gradio: three steps from uploaded recordings to scores, pictures and sounds.

What a visitor uploads and fits is kept in the state of this visitor's session, which no other one sees.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import DEFAULT_CHECKPOINT, resolve_checkpoint, shipped_checkpoints
from ..data.sound_files import SOUND_SUFFIXES
from ..hub.input_level import LEVELS
from .steps import (
    FitSettings,
    Fitted,
    Scored,
    collected_warnings,
    describe_scorer,
    fit_scorer,
    look_at,
    pack_scorer,
    score_files,
    unpack_scorer,
    write_scores,
)

if TYPE_CHECKING:
    import gradio

TITLE = "How anomalous does a machine sound?"
LARGEST_UPLOAD_MB = 200
# Uploads of visitors who went away are removed after a day, which is looked for every hour.
_CLEAN_EVERY_S, _KEPT_S = 3600, 24 * 3600
# Fits and scores wait for each other: side by side they would only share the processor, and add up their memory.
_QUEUE: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}

FAR_MICROPHONE = {
    "as the checkpoint says": None,
    "auto: the best for the normal recordings": "auto",
    "filter: learned from the normal recordings": "filter",
    "installation: filter, then subtraction": "installation",
    "least squares": "least_squares",
    "spectral subtraction": "spectral_subtraction",
    "none: only the noise-aware layers hear it": "none",
}
LAST_LAYER = "default"
_DEFAULT_PERCENT = 5

_INTRODUCTION = f"""# {TITLE}

Upload recordings of a machine while all is well, then recordings to judge. Each needs **two channels**: the first is
the microphone close to the machine, the second one hears mostly the room. There is no recording here, because the
microphone of a browser has one channel. What you upload stays on the computer that runs this page, and is removed
afterwards."""

# The lists of gradio's dropdowns stay open when the tab key leaves them; the rule of `.options` hides them.
_STYLE = """
.gradio-container { max-width: 60rem !important; margin: auto; }
.told table { border-collapse: collapse; width: 100%; }
.told table, .told tr, .told th, .told td { border: 0 !important; }
.told tr { border-bottom: 1px solid var(--border-color-primary) !important; }
.told th, .told td { padding: 0.3rem 0.5rem !important; text-align: left; color: var(--body-text-color) !important; }
.told td { font-variant-numeric: tabular-nums; }
.told td:first-child { width: 50%; overflow-wrap: anywhere; }
.told p { color: var(--body-text-color); margin: 0.2rem 0; }
.told .hint { font-size: 0.9em; }
.told .alarm, .told .problem { color: #b00020 !important; font-weight: 600; }
.dark .told .alarm { color: #ff8a80 !important; }
.dark .told .problem { color: #ff8a80 !important; }
.block:not(:focus-within) .options { display: none !important; }
@media (max-width: 40rem) {
    .told tr { display: grid; grid-template-columns: repeat(auto-fit, minmax(4.2rem, 1fr)); }
    .told tr { padding: 0.3rem 0 !important; }
    .told th, .told td { padding: 0.1rem 0 !important; font-size: 0.8em; }
    .told td:first-child, .told th:first-child { grid-column: 1 / -1; width: auto; }
    .told td[colspan] { grid-column: 1 / -1; }
}
.told .pictures { display: flex; flex-wrap: wrap; gap: 0.8rem; align-items: flex-start; }
.told .pictures img { flex: 1 1 20rem; min-width: 0; max-width: 100%; background: white; border-radius: 0.4rem; }
"""


def page_options(largest_upload_mb: int = LARGEST_UPLOAD_MB) -> dict[str, Any]:
    """Return what both `launch` of the page and `gradio.mount_gradio_app` need to know beside it.

    Args:
        largest_upload_mb: the most that one uploaded file may have, in MB.

    Raises:
        ValueError: `largest_upload_mb` is below 1, or gradio is not installed.
    """
    if largest_upload_mb < 1:
        raise ValueError(f"`largest_upload_mb` must be at least 1, got {largest_upload_mb}")
    themes = import_gradio().themes
    return {
        # The fonts of the reader's system: nothing is loaded from elsewhere.
        "theme": themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "css": _STYLE,
        "max_file_size": f"{largest_upload_mb}mb",
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "enable_monitoring": False,
    }


def import_gradio() -> Any:
    """Import gradio with its telemetry and its look for new versions switched off.

    Raises:
        ValueError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise ValueError("the page needs gradio: pip install 'na-ssl-hf[app]'") from error
    return gradio


def make_page(models: Sequence[str] = (), device: str | None = None) -> gradio.Blocks:
    """Return the page.

    Args:
        models: checkpoints to choose from beside those of the package; the first one is the default.
        device: where models compute; `None` for the best there is.

    Raises:
        ValueError: gradio is not installed.
        FileNotFoundError: there is no such checkpoint.
    """
    gr = import_gradio()
    for model in models:
        resolve_checkpoint(model)
    # A dict keeps the order and takes doubles out.
    names = list(dict.fromkeys([*models, DEFAULT_CHECKPOINT, *sorted(shipped_checkpoints())]))
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(_CLEAN_EVERY_S, _KEPT_S)) as page:
        gr.Markdown(_INTRODUCTION)
        scorer = gr.State(None)
        scored = gr.State(None)
        listen = _scorer_step(gr, scorer, names, device)
        results = _score_step(gr, scorer, scored)
        listen(scored, results)
    return page


def _scorer_step(
    gr: Any, scorer: Any, names: Sequence[str], device: str | None
) -> Callable[[Any, Sequence[Any]], None]:
    """Add how a visitor gets a scorer; return what makes its buttons work, once the results of step 2 are there.

    A new scorer empties the results of the one before.
    """
    gr.Markdown("## 1. How the machine sounds when all is well")
    with gr.Tab("Normal recordings"):
        normals = _sounds(gr, "Normal recordings, 20 or more", "normals")
        with gr.Accordion("Settings", open=False):
            with gr.Row():
                model = gr.Dropdown(names, value=names[0], label="Checkpoint")
                far = gr.Dropdown(list(FAR_MICROPHONE), label="Far microphone", elem_id="far")
            with gr.Row():
                layer = gr.Radio(_layers(names[0]), value=LAST_LAYER, label="Layer whose tokens are compared")
                level = gr.Radio(list(LEVELS), value=LEVELS[0], label="Level of the recordings")
                rate = gr.Number(
                    _DEFAULT_PERCENT, minimum=0.1, maximum=50, label="False alarms per 100 normal recordings"
                )
            log_mel = gr.Checkbox(
                label="Compare log-mel statistics as well: no network, recordings of 16 kHz", elem_id="log-mel"
            )
            machine_off = _sounds(gr, "Recordings of the noise alone, for filter, installation or auto", "off")
        fit = gr.Button("Fit", variant="primary", elem_id="fit")
    with gr.Tab("A fitted scorer"):
        archive = gr.File(label="scorer.zip", file_types=[".zip"], elem_id="archive")
        load = gr.Button("Load", variant="primary", elem_id="load")
    told = _told(gr, "scorer-told")
    keep = gr.DownloadButton("Download the scorer", visible=False, elem_id="keep")
    model.change(lambda name: gr.Radio(_layers(name), value=LAST_LAYER), model, layer, api_visibility="private")

    def with_scorer(kept: Fitted | None, uploads: Sequence[Path], make: Callable[[], Fitted]) -> list[Any]:
        with _told_problems(uploads) as problems, collected_warnings() as warnings:
            new = make()
            lines = [*(_paragraph(line) for line in describe_scorer(new.scorer)), *_hints(warnings, uploads)]
            packed = _download(gr, keep, pack_scorer(new.scorer, _folder()))
            return [new, "".join(lines), packed, None, "", *[gr.update(visible=False)] * 2]
        return [kept, problems[0], *[gr.skip()] * 5]

    def fitted(
        kept: Any, normals: Any, off: Any, name: str, far: str, layer: str, level: str, percent: float, log_mel: bool
    ) -> Any:
        recordings, machine_off = _paths(normals), _paths(off)
        number = None if layer == LAST_LAYER else int(layer)
        # Fewer recordings than the default needs are told in a warning; fewer than a wish needs are an error.
        rate = None if percent in (None, _DEFAULT_PERCENT) else percent / 100
        settings = FitSettings(name, FAR_MICROPHONE[far], number, level, rate, log_mel)
        return with_scorer(
            kept, recordings + machine_off, lambda: fit_scorer(recordings, machine_off, settings, device)
        )

    def loaded(kept: Any, archive: Any) -> Any:
        def make() -> Fitted:
            if archive is None:
                raise ValueError("scorer.zip must be uploaded before it is loaded, got none")
            return Fitted(unpack_scorer(Path(archive), _folder(), device))

        return with_scorer(kept, _paths(archive), make)

    def listen(scored: Any, results: Sequence[Any]) -> None:
        outputs = [scorer, told, keep, scored, *results]
        settings = [model, far, layer, level, rate, log_mel]
        fit.click(fitted, [scorer, normals, machine_off, *settings], outputs, **_QUEUE)
        load.click(loaded, [scorer, archive], outputs, **_QUEUE)

    return listen


def _score_step(gr: Any, scorer: Any, scored: Any) -> list[Any]:
    """Add how recordings are scored and looked at; return the components that show results, the table first."""
    gr.Markdown("## 2. Recordings to judge")
    files = _sounds(gr, "Recordings", "tests")
    score = gr.Button("Score", variant="primary", elem_id="score")
    table = _told(gr, "scores")
    csv = gr.DownloadButton("Download the table", visible=False, elem_id="csv")
    with gr.Column(visible=False) as looking:
        gr.Markdown("## 3. Look and listen")
        choice = gr.Dropdown([], label="Recording", elem_id="choice")
        pictures = _told(gr, "pictures")
        players = [
            gr.Audio(label=label, interactive=False, visible=False, elem_id=name, buttons=["download"])
            for name, label in (
                ("close", "Close microphone"),
                ("far", "Far microphone"),
                ("cancelled", "Close microphone without the far one"),
            )
        ]

    viewed = [pictures, *players]

    def scores(scorer: Fitted | None, kept: Scored | None, files: Any) -> Any:
        uploads = _paths(files)
        with _told_problems(uploads) as problems, collected_warnings() as warnings:
            if scorer is None:
                raise ValueError("a scorer must be fitted or loaded before recordings are scored, got none")
            new = score_files(scorer, uploads)
            text = _shown(_table(new), uploads) + "".join(_hints(warnings, uploads))
            target = Path(tempfile.mkdtemp(dir=_folder())) / "scores.csv"
            write_scores(new, target)
            good = [(new.files[place].name, place) for place in new.order() if "error" not in new.results[place]]
            first = good[0][1] if good else None
            shown = _download(gr, csv, target), gr.Column(visible=bool(good))
            # In the same event: what a visitor asks for while a second one begins, gradio's page may never answer.
            return new, text, *shown, gr.Dropdown(good, value=first), *look(scorer, new, first)
        return kept, problems[0], *[gr.skip()] * (3 + len(viewed))

    def look(scorer: Fitted | None, scored: Scored | None, place: int | None) -> Any:
        if scorer is None or scored is None or place is None:
            return [gr.skip()] * len(viewed)
        uploads = list(scored.files)
        with _told_problems(uploads) as problems:
            view = look_at(scorer.scorer, scored, place, _folder())
            drawn = "".join(f'<img src="{one.source}" alt="{escape(one.alt)}">' for one in view.pictures)
            heard = [gr.Audio(view.sounds.get(one.elem_id), visible=one.elem_id in view.sounds) for one in players]
            return [f'{_paragraph(view.title)}<div class="pictures">{drawn}</div>', *heard]
        return [problems[0], *[gr.Audio(visible=False)] * len(players)]

    score.click(scores, [scorer, scored, files], [scored, table, csv, looking, choice, *viewed], **_QUEUE)
    choice.input(look, [scorer, scored, choice], viewed, **_QUEUE)
    return [table, csv, looking]


def _sounds(gr: Any, label: str, name: str) -> Any:
    return gr.File(label=label, file_count="multiple", file_types=list(SOUND_SUFFIXES), elem_id=name, height=180)


def _told(gr: Any, name: str) -> Any:
    return gr.HTML("", elem_id=name, elem_classes="told", js_on_load=None)


def _download(gr: Any, button: Any, file: Path) -> Any:
    """Offer a file, which lies in the folder of uploads; gradio copies it, and removes both when they are old."""
    button.temp_files.add(str(file))
    return gr.DownloadButton(value=file, visible=True)


def _layers(name: str) -> list[str]:
    """Return the choices of layers of a checkpoint; those of one that is not in a folder are not known beforehand."""
    file = Path(resolve_checkpoint(name)) / "config.json"
    try:
        most = int(json.loads(file.read_text(encoding="utf-8")).get("num_hidden_layers", 0))
    except (OSError, ValueError):
        most = 0
    return [LAST_LAYER, *map(str, range(1, most + 1))]


def _paths(uploads: Any) -> list[Path]:
    """Return the paths of what gradio gives of one upload, of several, or of none."""
    if uploads is None:
        return []
    return [Path(upload) for upload in (uploads if isinstance(uploads, list) else [uploads])]


def _folder() -> Path:
    """Return the folder of uploads, which gradio makes with the first one."""
    from gradio.utils import get_upload_folder

    folder = Path(get_upload_folder())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _told_problems(uploads: Sequence[Path]) -> Iterator[list[str]]:
    """Catch what is wrong with uploads or settings, and put it, ready to be shown, into the list."""
    problems: list[str] = []
    try:
        yield problems
    except (ValueError, OSError) as error:
        text = escape(_shown(" ".join(str(error).split()), uploads))
        problems.append(f'<p class="problem" role="alert">{text}</p>')


def _hints(warnings: Sequence[str], uploads: Sequence[Path]) -> list[str]:
    return [f'<p class="hint">{escape(_shown(warning, uploads))}</p>' for warning in warnings]


def _shown(text: str, uploads: Sequence[Path]) -> str:
    """Return a text in which uploaded files have the names that the visitor knows, not those on this computer."""
    for upload in uploads:
        text = text.replace(str(upload), upload.name)
    return text


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _table(scored: Scored) -> str:
    """Return the scores as HTML, the highest first."""
    heads = ["file", "score", "p-value", "decision", *([] if scored.log_mel is None else ["log-mel p-value"])]
    rows = []
    for place in scored.order():
        name, result = escape(scored.files[place].name), scored.results[place]
        if "error" in result:
            told = escape(result["error"].removeprefix(f"{scored.files[place]}: "))
            rows.append(f'<td>{name}</td><td class="problem" colspan="{len(heads) - 1}">{told}</td>')
            continue
        decision = "anomalous" if result["is_anomaly"] else "normal"
        row = f"<td>{name}</td><td>{result['score']:.4g}</td><td>{result['p_value']:.3g}</td>"
        row += f"<td{_of_alarm(result)}>{decision}</td>"
        opinion = None if scored.log_mel is None else scored.log_mel[place]
        rows.append(row if opinion is None else f"{row}<td{_of_alarm(opinion)}>{opinion['p_value']:.3g}</td>")
    thresholds = [result["threshold"] for result in scored.results if "threshold" in result]
    limit = f"Threshold {thresholds[0]:.4g}. " if thresholds else ""
    second = "" if scored.log_mel is None else " That of log-mel statistics is bold where they call it anomalous."
    return (
        f"<table><thead><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{''.join(f'<tr>{row}</tr>' for row in rows)}</tbody></table>"
        f'<p class="hint">{limit}A higher score is more anomalous. The p-value is the chance that a normal recording '
        f"scores as high.{second}</p>"
    )


def _of_alarm(result: Mapping[str, Any]) -> str:
    return ' class="alarm"' if result["is_anomaly"] else ""
