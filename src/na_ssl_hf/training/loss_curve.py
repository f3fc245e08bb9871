"""A picture of a training log, for the model card."""

from pathlib import Path

from .json_lines_tracker import read_json_lines


def plot_loss_curve(log: Path, picture: Path) -> None:
    """Draw the training loss and the validation ratios of a distillation's log over the optimizer steps."""
    from matplotlib.figure import Figure

    rows = read_json_lines(log)
    training = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    validation = [row for row in rows if "validation/ratio" in row]
    figure = Figure(figsize=(8, 4), layout="constrained")
    loss_axes, ratio_axes = figure.subplots(1, 2)
    if training:
        loss_axes.plot(*zip(*training, strict=True), linewidth=0.6, alpha=0.4, label="each step")
        width = max(1, len(training) // 50)
        blocks = [training[start : start + width] for start in range(0, len(training), width)]
        means = [(block[-1][0], sum(loss for _, loss in block) / len(block)) for block in blocks]
        loss_axes.plot(*zip(*means, strict=True), label=f"mean of {width}")
        loss_axes.set_yscale("log")
        loss_axes.legend()
    loss_axes.set(title="training", xlabel="step", ylabel="loss")
    for name, label in (
        ("ratio", "as recorded"),
        ("ratio_far_is_close", "far := close"),
        ("ratio_far_is_silent", "far := silence"),
    ):
        points = [(row["step"], row[f"validation/{name}"]) for row in validation if f"validation/{name}" in row]
        if points:
            ratio_axes.plot(*zip(*points, strict=True), marker=".", label=label)
    ratio_axes.axhline(1.0, color="grey", linewidth=0.8, linestyle=":", label="the base itself")
    ratio_axes.set(title="validation", xlabel="step", ylabel="MSE / MSE of the base", ylim=(0, None))
    ratio_axes.legend()
    figure.savefig(picture, dpi=120)
