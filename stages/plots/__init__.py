"""Figures of the report and their encoding as PNG."""
