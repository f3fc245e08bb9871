"""Runs the `na-ssl` command as a module: `python -m na_ssl_hf.cli`, or under `accelerate launch -m na_ssl_hf.cli`."""

import sys

from . import main

sys.exit(main())
