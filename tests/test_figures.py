"""The figures of the pages are those that their code draws."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from module_files import module_of

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def figures():
    return module_of(DOCS / "figures.py")


def pixels(source: Path | io.BytesIO) -> np.ndarray:
    return np.asarray(Image.open(source).convert("RGB"), dtype=np.float64)


# The others take seconds, and what they draw is tested where it is computed.
@pytest.mark.parametrize("name", ["rooms", "memory"])
def test_the_figure_is_what_its_code_draws(name, figures):
    drawn = pixels(io.BytesIO(figures.png_of(figures.FIGURES[name]())))
    kept = pixels(DOCS / "pictures" / f"{name}.png")
    assert drawn.shape == kept.shape
    # Letters differ by some pixels between versions of FreeType; an empty panel would differ by far more.
    assert np.abs(drawn - kept).mean() < 1.5
    assert kept.std() > 20


def test_all_figures_are_there_small_and_on_the_page(figures):
    page = (DOCS / "how-it-works.md").read_text(encoding="utf-8")
    for name in figures.FIGURES:
        assert (DOCS / "pictures" / f"{name}.png").stat().st_size < 80_000
        assert f"(pictures/{name}.png)" in page
