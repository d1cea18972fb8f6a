/* Writes pages 0, 2 and 5 of the extra slot, and reads page 7. */
#include "probe.h"

GUEST_START
        movb    $1, EXTRA
        movb    $1, EXTRA + 2 * 4096
        movb    $1, EXTRA + 5 * 4096
        mov     EXTRA + 7 * 4096, %al
        VERDICT 0
