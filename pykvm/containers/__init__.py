"""Containers: images on the host, layers as file systems for a guest, registries.

Nothing is imported here; each module stands for itself.
"""
