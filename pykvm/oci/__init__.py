"""`pykvm-oci`: the command line of an OCI runtime, with a machine of its own around each container."""
