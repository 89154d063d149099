/* Miss ratios of the memory tier on recorded traces, beside those of the reference. */
#include "hit_ratio.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tiercel/conf.h"

static const double share[SHARES] = {0.001, 0.01, 0.1, 0.2};

#define SLOW 1000   /* accesses a second: more than a trace of known duration had */
#define FAST 100000 /* a replay at full speed */

/* What is run, and the row of the reference that it has to compare with. */
struct candidate {
    const char *name;
    int policy, samples;
    uint64_t rate;
    const char *like;
};
static const struct candidate candidates[] = {
    {"allkeys-lru 5", POLICY_ALLKEYS_LRU, 5, SLOW, "RedisLRU5"},
    {"allkeys-lru 10", POLICY_ALLKEYS_LRU, 10, SLOW, "RedisLRU10"},
    {"allkeys-lru 10, exact", POLICY_ALLKEYS_LRU, 10, SLOW, "LRU"},
    {"allkeys-lru 5, fast", POLICY_ALLKEYS_LRU, 5, FAST, "RedisLRU5c"},
    {"allkeys-lfu 5", POLICY_ALLKEYS_LFU, 5, SLOW, "RedisLFU5"},
    {"allkeys-lfu 10", POLICY_ALLKEYS_LFU, 10, SLOW, "RedisLFU10"},
    {"allkeys-random", POLICY_ALLKEYS_RANDOM, 5, SLOW, "Random"},
    {"adaptive 5", POLICY_ADAPTIVE, 5, FAST, "S3FIFO"},
    {"adaptive 10", POLICY_ADAPTIVE, 10, FAST, "S3FIFO"},
};
#define CANDIDATES (sizeof(candidates) / sizeof(candidates[0]))

static const char *const context[] = {"LRU",       "RedisLRU5",  "RedisLRU10", "RedisLRU5c", "LFU",
                                      "RedisLFU5", "RedisLFU10", "RedisLFU5d", "ARC",        "LIRS",
                                      "WTLFUhc",   "S3FIFO",     "Belady",     "Random"};

struct options {
    const char *dir;
    const char *only_trace, *only_policy;
    uint64_t rate;
    int columns[SHARES];
    bool brief;
};

static uint64_t capacity_of(const struct trace *t, double part)
{
    uint64_t n = (uint64_t)(part * (double)t->keys + 0.5);
    return n < 2 ? 2 : n;
}

static void print_row(const char *name, const double *miss)
{
    printf("| %s |", name);
    for (int s = 0; s < SHARES; s++)
        printf(" %.4f |", miss[s]);
    printf("\n");
}

/* Relative to the reference's, in percent. */
static void run_candidate(const struct candidate *c, const struct trace *t, const struct references *refs,
                          const struct options *opt)
{
    const struct reference *like = refs ? references_find(refs, c->like) : NULL;

    printf("| **%s** |", c->name);
    double ns = 0;
    int runs = 0;
    for (int s = 0; s < SHARES; s++) {
        struct replay r = {t, c->policy, c->samples, capacity_of(t, share[s]), opt->rate ? opt->rate : c->rate};
        struct replay_result got;
        if (!opt->columns[s]) {
            printf(" - |");
            continue;
        }
        replay_trace(&r, &got);
        double miss = (double)got.misses / (double)t->len;
        printf(" %.4f", miss);
        if (like)
            printf(" (%+.1f%%)", (miss / like->miss[s] - 1) * 100);
        printf(" |");
        fflush(stdout);
        ns += got.ns;
        runs++;
    }
    printf(" %s, %.0f ns |\n", c->like, runs ? ns / runs : 0);
}

static bool run_trace(const char *name, const struct options *opt)
{
    char path[4096], err[256];
    struct trace t;
    struct references refs;

    snprintf(path, sizeof(path), "%s/%s.csv.zst", opt->dir, name);
    if (!trace_load(path, &t, err)) {
        fprintf(stderr, "%s: %s\n", path, err);
        return false;
    }
    snprintf(path, sizeof(path), "%s/README.md", opt->dir);
    bool known = references_load(path, name, &refs);
    printf("\n### %s: %zu accesses, %llu keys\n\n| policy |", name, t.len, (unsigned long long)t.keys);
    for (int s = 0; s < SHARES; s++)
        printf(" %g%% (%llu) |", share[s] * 100, (unsigned long long)capacity_of(&t, share[s]));
    printf(" against, CPU per access |\n|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < CANDIDATES; i++)
        if (!opt->only_policy || strncmp(candidates[i].name, opt->only_policy, strlen(opt->only_policy)) == 0)
            run_candidate(&candidates[i], &t, known ? &refs : NULL, opt);
    for (size_t i = 0; known && !opt->brief && i < sizeof(context) / sizeof(context[0]); i++) {
        const struct reference *r = references_find(&refs, context[i]);
        if (r)
            print_row(r->policy, r->miss);
    }
    trace_unload(&t);
    return true;
}

static const char usage[] =
    "Usage: tiercel-hit-ratio [--rate N] [--trace NAME] [--policy NAME] [--column 1..4] [--brief] DIRECTORY\n"
    "Replays DIRECTORY/*.csv.zst through the memory tier and prints miss ratios as Markdown, beside the tables\n"
    "of DIRECTORY/README.md. --rate: accesses a second of the simulated clock, for all rows.\n";

static bool parse(int argc, char **argv, struct options *opt)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--brief") == 0) {
            opt->brief = true;
            continue;
        }
        if (argv[i][0] != '-') {
            opt->dir = argv[i];
            continue;
        }
        if (i + 1 == argc)
            return false;
        const char *name = argv[i++];
        if (strcmp(name, "--rate") == 0)
            opt->rate = strtoull(argv[i], NULL, 10);
        else if (strcmp(name, "--trace") == 0)
            opt->only_trace = argv[i];
        else if (strcmp(name, "--policy") == 0)
            opt->only_policy = argv[i];
        else if (strcmp(name, "--column") == 0 && argv[i][0] >= '1' && argv[i][0] <= '4') {
            for (int s = 0; s < SHARES; s++)
                opt->columns[s] = s == argv[i][0] - '1';
        } else
            return false;
    }
    return opt->dir != NULL;
}

int main(int argc, char **argv)
{
    static const char *const names[] = {"oltp", "p3", "orm-busy", "cloudphysics", "adaptsize", "mooncake"};
    struct options opt = {.columns = {1, 1, 1, 1}};
    bool ok = true;

    if (!parse(argc, argv, &opt)) {
        fputs(usage, stderr);
        return 2;
    }
    printf("Miss ratios; in parentheses, relative to the row named last. Capacity in objects.\n");
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (!opt.only_trace || strcmp(names[i], opt.only_trace) == 0)
            ok &= run_trace(names[i], &opt);
    return ok ? 0 : 1;
}
