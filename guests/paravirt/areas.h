/* What areas.c and mapping.c share: the table of areas. */
#ifndef AREAS_H
#define AREAS_H

#include "kernel.h"

#define AREAS_MAX 1024
#define TABLE_REST 0x1ff000ul   /* where a page lies within what one page table maps */
#define STACK_GUARD (1ul << 20) /* nothing is placed that close to the stack */

struct area {
    uint64_t start, end;
    uint64_t file;       /* the gpa of what is mapped at `start`; 0: zeros */
    uint64_t file_bytes; /* of it, zeros behind; may be more than the area has */
    unsigned prot, flags;
    unsigned touched;    /* it has had pages; else there is nothing to look for */
};

extern struct area areas[];
extern unsigned area_count;

static inline uint64_t page_up(uint64_t n) { return (n + PAGE - 1) & ~(uint64_t)(PAGE - 1); }

unsigned area_above(uint64_t address);            /* the index of the first that ends above `address` */
struct area *area_at(uint64_t address);           /* the one that holds it; NULL */
int areas_are_free(uint64_t start, uint64_t end);
int areas_cut(uint64_t start, uint64_t end);      /* let none reach over either end; 0: the table has no room */
void area_join(unsigned index);                   /* with its neighbours, where they are alike */
int areas_unmap(uint64_t start, uint64_t end);    /* 0 or -ENOMEM */
void areas_drop(uint64_t start, uint64_t end);    /* their pages */
uint64_t page_rights(unsigned prot);              /* the bits of a page table's entry */

#endif
