"""The server of the tests of HTTP."""

from __future__ import annotations

from tests.http.conftest import served, shared_server

__all__ = ["served", "shared_server"]
