#include "hit_ratio.h"

#include <stdio.h>
#include <string.h>

#include "tiercel/num.h"

/* The next cell of "| LRU | 0.8623 | 0.5836 | 0.3348 | 0.2803 |", without blanks. false: none is left. */
static bool next_cell(const char **rest, struct slice *cell)
{
    const char *start = strchr(*rest, '|'), *end = start ? strchr(start + 1, '|') : NULL;

    if (!end)
        return false;
    *rest = end;
    for (start++; start < end && *start == ' ';)
        start++;
    while (end > start && end[-1] == ' ')
        end--;
    *cell = SLICE(start, (size_t)(end - start));
    return true;
}

static bool read_row(const char *line, struct reference *row)
{
    struct slice cell;

    if (!next_cell(&line, &cell) || cell.len >= sizeof(row->policy))
        return false;
    snprintf(row->policy, sizeof(row->policy), "%.*s", SLICE_FMT(cell));
    for (int s = 0; s < SHARES; s++) {
        long double miss;
        if (!next_cell(&line, &cell) || !num_parse_f64(cell, &miss))
            return false;
        row->miss[s] = (double)miss;
    }
    return true;
}

bool references_load(const char *readme, const char *trace, struct references *out)
{
    char line[1024], heading[256];
    bool inside = false;
    FILE *f = fopen(readme, "r");

    out->n = 0;
    if (!f)
        return false;
    snprintf(heading, sizeof(heading), "### %s\n", trace);
    while (fgets(line, sizeof(line), f)) {
        if (line[0] == '#') {
            inside = strcmp(line, heading) == 0;
            continue;
        }
        if (!inside)
            continue;
        if (out->n < sizeof(out->row) / sizeof(out->row[0]) && read_row(line, &out->row[out->n]))
            out->n++;
        else if (out->n > 0)
            break; /* the table ends */
    }
    fclose(f);
    return out->n > 0;
}

const struct reference *references_find(const struct references *refs, const char *policy)
{
    for (size_t i = 0; i < refs->n; i++)
        if (strcmp(refs->row[i].policy, policy) == 0)
            return &refs->row[i];
    return NULL;
}
