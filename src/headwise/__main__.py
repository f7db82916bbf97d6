"""`python -m headwise`: the commands."""

from __future__ import annotations

from headwise.cli.main import app

app(prog_name="headwise")
