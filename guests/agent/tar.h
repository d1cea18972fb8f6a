/* Tar archives (POSIX pax) of files in a guest, and such archives back into files. Ids in them are a container's own. */
#ifndef TAR_H
#define TAR_H

#include "base.h"

enum { MAPS_MOST = 8 };
struct map { uint32_t inside, outside, count; };
struct maps { struct map uid[MAPS_MOST], gid[MAPS_MOST]; int uids, gids; }; /* none: the guest's own ids */

uint32_t id_outside(const struct map *map, int count, uint32_t inside);
uint32_t id_inside(const struct map *map, int count, uint32_t outside);

struct tar_plan {
	const struct maps *maps;
	bool is_layer;    /* an overlay's upper: whiteouts and opaque folders become OCI's .wh. names */
	bool without_content;
};

/* All that is in the folder `top`; with `name` it is that file or folder itself, called so. On descriptor 1; 0, or -errno with trouble set. */
long tar_write(const struct tar_plan *plan, int top, const char *name);

/* Takes an archive from descriptor 0 into the folder `where`, as one sees it whose root is `root`. 0, or -errno with trouble set. */
long tar_read(const struct maps *maps, int root, const char *where);

/* One header of 512 bytes, as both of them see it. */
struct tar_header {
	char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], sum[8], type, link[100], magic[8], user[32], group[32], major[8], minor[8], prefix[155], pad[12];
};
_Static_assert(sizeof(struct tar_header) == 512, "a block");
unsigned tar_sum(const struct tar_header *header);

#endif
