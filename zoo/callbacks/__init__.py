"""Callbacks that recipes share."""
