"""Debian's cloud kernel as a guest that just works: fetched, with an initramfs and first process of ours."""
