"""``python -m osscar_opt``: the same as the command ``osscar-opt``."""

from __future__ import annotations

from osscar_opt.cli import main

if __name__ == "__main__":
    main()
