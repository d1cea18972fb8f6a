"""A fuzzer of the virtio devices: a driver that breaks every rule, against the queue and each device."""
