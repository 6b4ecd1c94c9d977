"""Tests of the gateway and its adapters; the folders mirror the tree."""
