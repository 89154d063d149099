#include "tiercel/table.h"

#include "tiercel/alloc.h"

static void table_resize(struct table *t, size_t buckets)
{
    struct node **fresh = mem_calloc(MEM_OTHER, buckets * sizeof(*fresh));
    for (size_t i = 0; i < t->buckets; i++) {
        for (struct node *n = t->bucket[i], *next; n; n = next) {
            next = n->next;
            struct node **at = &fresh[n->hash & (buckets - 1)];
            n->next = *at;
            *at = n;
        }
    }
    mem_free(MEM_OTHER, t->bucket);
    t->bucket = fresh;
    t->buckets = buckets;
}

void table_add(struct table *t, struct node *n)
{
    if (t->count >= t->buckets)
        table_resize(t, t->buckets ? t->buckets * 2 : 8);
    struct node **at = &t->bucket[n->hash & (t->buckets - 1)];
    n->next = *at;
    *at = n;
    t->count++;
}

void table_remove(struct table *t, struct node *n)
{
    struct node **at = &t->bucket[n->hash & (t->buckets - 1)];
    while (*at != n)
        at = &(*at)->next;
    *at = n->next;
    t->count--;
    if (t->count == 0) {
        mem_free(MEM_OTHER, t->bucket);
        *t = (struct table){0};
    } else if (t->buckets > 64 && t->count < t->buckets / 8) {
        table_resize(t, t->buckets / 4);
    }
}
