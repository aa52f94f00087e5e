"""Failed assertions of the simulation's own modules say what was compared, as those of tests do."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("checks", "expectation", "seeded_life")
