#ifndef TIERCEL_GEOHASH_H
#define TIERCEL_GEOHASH_H

#include <stdbool.h>
#include <stdint.h>

/* Places on earth as integers: longitude and latitude each cut into 2^step parts, the bits of both numbers interleaved
 * (https://en.wikipedia.org/wiki/Geohash). 26 steps make the 52 bits that a double holds exactly: the scores that
 * Redis's geo commands keep in sorted sets, with its limits of latitude (those of the Mercator projection), its earth
 * radius and its order of arithmetic, so that scores and distances are the same to the last bit. No state. */
#define GEO_LON_MAX 180.0
#define GEO_LAT_MAX 85.05112878
#define GEO_HASH_TEXT 11

struct geo_point {
    double lon, lat;
};

struct geo_shape {
    struct geo_point center;
    bool box;
    double radius, width, height; /* in the caller's unit */
    double unit;                  /* meters of it */
};

/* Within the limits. */
bool geo_valid(struct geo_point p);
uint64_t geo_encode(struct geo_point p); /* 52 bits */
/* The middle of its cell. A score that is no such number is read as far as it goes. */
struct geo_point geo_decode(double score);
/* The usual text form, of the same place. */
void geo_text(double score, char out[GEO_HASH_TEXT]);
double geo_distance(struct geo_point a, struct geo_point b); /* meters */
/* Is it within the shape? Its distance from the center in meters. */
bool geo_within(const struct geo_shape *s, struct geo_point p, double *distance);

/* The scores [min, max) among which a shape's places are: the cell of its center and those around it that it reaches,
 * in Redis's order. Returns how many ranges. */
#define GEO_CELLS 9
struct geo_cell {
    uint64_t min, max;
};
int geo_cover(const struct geo_shape *s, struct geo_cell cell[GEO_CELLS]);

#endif
