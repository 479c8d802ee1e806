"""Tests of chromakeep.store."""
