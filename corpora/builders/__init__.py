"""Builders of `tiny-text`: one module per kind of source, each turning an unpacked package into documents."""
