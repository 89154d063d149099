#include <stdio.h>
#include <stdlib.h>

#include "cmd/cmd_priv.h"

/* Which error codes were replied how often. One block per worker behind a mutex of its own
 * (errors are rare), so that INFO reads them from any thread. */

#define ERRSTAT_CODES_MAX 128 /* beyond it new codes are not counted: a client must not fill memory with them */

struct errstat {
    pthread_mutex_t lock;
    int n;
    struct errstat_code code[ERRSTAT_CODES_MAX];
};

struct errstat *errstat_create(void)
{
    struct errstat *e = mem_calloc(MEM_OTHER, sizeof(*e));
    pthread_mutex_init(&e->lock, NULL);
    return e;
}

void errstat_destroy(struct errstat *e)
{
    pthread_mutex_destroy(&e->lock);
    mem_free(MEM_OTHER, e);
}

static struct errstat_code *find(struct errstat_code *codes, int *n, const char *name)
{
    for (int i = 0; i < *n; i++) {
        if (strcmp(codes[i].name, name) == 0)
            return &codes[i];
    }
    if (*n == ERRSTAT_CODES_MAX)
        return NULL;
    snprintf(codes[*n].name, sizeof(codes[*n].name), "%s", name);
    codes[*n].count = 0;
    return &codes[(*n)++];
}

void errstat_add(struct worker *w, const char *text)
{
    struct errstat *e = w->cmd_worker->errors;
    char name[ERRSTAT_NAME];
    snprintf(name, sizeof(name), "%.*s", (int)strcspn(text, " "), text);
    pthread_mutex_lock(&e->lock);
    struct errstat_code *code = find(e->code, &e->n, name);
    if (code)
        code->count++;
    pthread_mutex_unlock(&e->lock);
}

void errstat_reset(struct errstat *e)
{
    pthread_mutex_lock(&e->lock);
    e->n = 0;
    pthread_mutex_unlock(&e->lock);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct errstat_code *)a)->name, ((const struct errstat_code *)b)->name);
}

int errstat_sum(const struct cmd *cmd, struct errstat_code **out)
{
    struct errstat_code *sum = mem_alloc(MEM_OTHER, sizeof(*sum) * ERRSTAT_CODES_MAX);
    int n = 0;
    for (int i = 0; i < cmd->nworkers; i++) {
        struct errstat *e = cmd->workers[i]->cmd_worker->errors;
        pthread_mutex_lock(&e->lock);
        for (int k = 0; k < e->n; k++) {
            struct errstat_code *code = find(sum, &n, e->code[k].name);
            if (code)
                code->count += e->code[k].count;
        }
        pthread_mutex_unlock(&e->lock);
    }
    qsort(sum, (size_t)n, sizeof(*sum), by_name);
    *out = sum;
    return n;
}
