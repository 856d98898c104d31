"""Builds the body of `RunInstances`, and compares what EC2 made with what was asked for; pure."""

from __future__ import annotations
