#ifndef TIERCEL_TABLE_H
#define TIERCEL_TABLE_H

#include <stddef.h>
#include <stdint.h>

/* A chained hash table of embedded nodes; zero is an empty one, which has no memory. No locks. */

struct node {
    struct node *next;
    uint64_t hash;
};

struct table {
    struct node **bucket;
    size_t buckets, count;
};

/* What a node is embedded in, as its first field. */
#define NODE(ptr, type) ((type *)(void *)(ptr))

void table_add(struct table *t, struct node *n);
void table_remove(struct table *t, struct node *n);

/* The chain in which nodes of that hash are. */
static inline struct node *table_first(const struct table *t, uint64_t hash)
{
    return t->count ? t->bucket[hash & (t->buckets - 1)] : NULL;
}

#endif
