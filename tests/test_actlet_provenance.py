"""Lineage: dates, versions and commits that another person can follow."""

from __future__ import annotations

import datetime
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from actlet import provenance
from actlet.provenance import git_commit, package_versions, utc_now


def test_the_date_is_utc_to_the_second() -> None:
    """ISO 8601, readable back."""
    date = datetime.datetime.fromisoformat(utc_now())
    assert date.utcoffset() == datetime.timedelta(0)
    assert date.microsecond == 0


def test_absent_packages_are_left_out() -> None:
    """Versions are those installed."""
    assert package_versions(["numpy", "no-such-package-here"]) == {"numpy": np.__version__}


def test_a_commit_is_forty_digits_or_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With "-dirty" where tracked files differ; None outside of a work tree and where git fails."""
    commit = git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", commit)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "actlet" / "provenance.py"))
    assert git_commit() is None
    (tmp_path / ".git").mkdir()
    assert git_commit() is None
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert git_commit() is None  # A work tree without a commit.
