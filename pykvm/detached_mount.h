#ifndef PYKVM_DETACHED_MOUNT_H
#define PYKVM_DETACHED_MOUNT_H

int detached_mount(const char *type);

#endif
