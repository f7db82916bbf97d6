"""Tests of arranging documents."""
