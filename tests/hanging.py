"""What a test makes hang wakes up when the test is over (conftest.py sees to it)."""

from __future__ import annotations

import threading

over = threading.Event()
"""Wait for it in place of sleeping in C code, out of reach of exceptions."""
