"""The lab is a computer with a full KVM, made in software, for hosts whose KVM lacks it or that have none.

Two back ends, one way to use them::

    amd      kvm_amd   SVM with nested paging, in QEMU's software CPU      pykvm.lab.amd
    intel    kvm_intel VMX with EPT, in Bochs                              pykvm.lab.intel

`launch.run(["pytest", …], cpu="amd")` boots the lab, runs the command in it with this process's standard
streams, environment and current directory, and returns its exit status. Neither root nor /dev/kvm is
needed. The command runs as the lab's root on a copy of the host's file system: whatever it writes is
gone with the lab, except what it writes below `share`, which is the same directory inside and outside.

How a lab is put together
=========================
::

    host                                            lab
    ────                                            ───
    launch.py   looks up the back end, makes Job
    packages.py a kernel and its modules  ───────►  kernel
    initramfs.py  init, modules, lab.conf ───────►  /init (init.c), /lab.conf
    amd.py | intel.py  starts the emulator
    session.py  ◄── one two-way byte stream ─────►  /init ── pipes or a pty ── the command
       │            ("the channel"; wire.py)
       ├─ stdin, stdout, stderr, signals
       └─ the kernel's console: read apart, kept for the diagnosis

A back end (`backend.Backend`) only knows how to start its emulator: it gives `session.py` a process, the
channel's file descriptors and the console's. All talk with the init is in `session.py`.

The channel
===========
Any byte-transparent stream will do: a virtio-serial port, a raw serial line. Both directions carry
frames: a header of four bytes, little-endian, and `length` bytes of payload, at most `wire.MAX_PAYLOAD`::

    0        1        2                 4
    ├────────┼────────┼─────────────────┼─────────────…
    │ kind   │ stream │ length          │ payload
    ├────────┼────────┼─────────────────┼─────────────…

    lab to host                                        stream     payload
    'H' HELLO   the init is up, waits for its job      0          u32 protocol, then the kernel's release
    'L' STAGE   what the init does now (diagnosis)     0          text
    'F' FAIL    the init can't go on, powers off       0          text
    'D' DATA    output of the command                  1 or 2     bytes; empty: end of the stream
    'W' WINDOW  room for that many more bytes          0          u32
    'X' EXIT    the command ended, results are safe    0          u8 how, u8 value, then text (wire.Ending)
    'P' PONG    answer to PING                         0          that of the PING

    host to lab
    'J' JOB     a piece of the job; empty: that is all 0          bytes (below)
    'D' DATA    the command's standard input           0          bytes; empty: end of the stream
    'W' WINDOW  room for that many more bytes          1 or 2     u32
    'S' SIGNAL  for the command's process group        0          u32 signal number
    'Z' SIZE    of the terminal                        0          u16 rows, u16 columns
    'P' PING    are you there?                         0          anything, at most 64 bytes

Each of the three streams has a window: its sender starts with `wire.WINDOW` bytes of credit and gets more
by WINDOW frames, so a reader that does not read stops its own stream and nothing else. The pieces of
the job joined are NUL-terminated strings `key=value`, any order, `arg` and `env` as often as needed::

    arg=…  env=NAME=VALUE  cwd=/…  share=/…  tty=ROWSxCOLS  merge=1 (stderr goes where stdout goes)

After EXIT or FAIL the init waits a moment for the host to hang up, then powers the lab off. The init
also powers off when the channel is closed on the host's side.

The init's configuration
========================
`/lab.conf` in the initramfs; a line a directive, words separated by one space, `-` for an empty word::

    module  FILE [PARAMETERS]              load it; in this order
    channel IN OUT                         character devices; the same twice for one two-way device.
                                           A serial line is set raw at 115200, without its FIFO; OUT may
                                           be port:0xe9 (bytes are written to that I/O port, a preamble
                                           first: others may have written to it)
    root    SOURCE FSTYPE OPTIONS          the host's files, mounted read-only under an overlay in memory;
                                           up to four, each over those before it. SOURCE may be LABEL=…
                                           of an ext4 disk
    share   SOURCE FSTYPE OPTIONS          the shared folder, if the job has one
    start   NUMBER                         seconds to wait for the devices of root, share and channel
    name    NAME                           the lab's host name

The init mounts proc, sys, dev, devpts, /dev/shm, /run, cgroup2, tracefs and debugfs, brings the loopback
network up, and makes the overlay the root by moving it (so that namespaces and pivot_root work inside).
Nothing of it depends on the back end.
"""
