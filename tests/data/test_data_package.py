import subprocess
import sys

import pytest

from na_ssl_hf.data import corpora, dcase, synthetic


@pytest.mark.parametrize("package", [corpora, dcase, synthetic], ids=lambda package: package.__name__)
def test_public_names_exist_and_unknown_ones_do_not(package):
    for name in package.__all__:
        value = getattr(package, name)
        if callable(value):
            assert value.__module__.startswith(f"{package.__name__}.")
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        package.nonsense  # noqa: B018 (the access is what is tested)


def test_names_of_clips_are_read_without_heavy_packages():
    code = (
        "import sys; import na_ssl_hf.data.dcase.names, na_ssl_hf.data.corpora, na_ssl_hf.data.sound_files; "
        "sys.exit(bool({'torch', 'transformers', 'datasets', 'soundfile'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
