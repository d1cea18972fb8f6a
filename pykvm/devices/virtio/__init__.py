"""Virtio 1.2 devices: one transport, one queue, one device a file.

::

    driver ── registers ──► mmio    Transport: features, status, queues, configuration
           ── rings     ──► queue   Queue: chains of checked buffers in, lengths out
                              │
                            device  VirtioDevice: what block, console, entropy … have in common
"""
