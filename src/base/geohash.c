#include "tiercel/geohash.h"

#include <math.h>
#include <string.h>

#define STEP_MAX 26
#define EARTH_RADIUS 6372797.560856 /* meters */
#define MERCATOR_MAX 20037726.37    /* half the equator, in meters */

struct range {
    double min, max;
};
static const struct range lon_range = {-GEO_LON_MAX, GEO_LON_MAX}, lat_range = {-GEO_LAT_MAX, GEO_LAT_MAX};

/* ---- cells --------------------------------------------------------------------------- */

/* x counts from west to east, y from south to north; a place on the upper limit is in a cell of its own. */
struct cell {
    uint32_t x, y;
    int step;
};

static uint64_t spread(uint32_t v)
{
    uint64_t b = v;

    b = (b | b << 16) & 0x0000ffff0000ffffULL;
    b = (b | b << 8) & 0x00ff00ff00ff00ffULL;
    b = (b | b << 4) & 0x0f0f0f0f0f0f0f0fULL;
    b = (b | b << 2) & 0x3333333333333333ULL;
    return (b | b << 1) & 0x5555555555555555ULL;
}

static uint32_t gather(uint64_t b)
{
    b &= 0x5555555555555555ULL;
    b = (b | b >> 1) & 0x3333333333333333ULL;
    b = (b | b >> 2) & 0x0f0f0f0f0f0f0f0fULL;
    b = (b | b >> 4) & 0x00ff00ff00ff00ffULL;
    b = (b | b >> 8) & 0x0000ffff0000ffffULL;
    return (uint32_t)(b | b >> 16);
}

static uint64_t cell_bits(struct cell c)
{
    return spread(c.y) | spread(c.x) << 1;
}

static uint32_t part(double v, struct range r, int step)
{
    double share = (v - r.min) / (r.max - r.min);

    return (uint32_t)(share * (double)(1ULL << step));
}

static struct cell cell_of(struct geo_point p, struct range lat, int step)
{
    return (struct cell){part(p.lon, lon_range, step), part(p.lat, lat, step), step};
}

static struct range part_range(uint32_t i, struct range r, int step)
{
    double scale = r.max - r.min, parts = (double)(1ULL << step);

    return (struct range){r.min + (i * 1.0 / parts) * scale, r.min + ((i + 1) * 1.0 / parts) * scale};
}

/* One further, around the earth; across a pole, too, as Redis has it. */
static struct cell beside(struct cell c, int dx, int dy)
{
    uint32_t mask = (uint32_t)((1ULL << c.step) - 1);

    if (dx)
        c.x = (c.x + (uint32_t)dx) & mask;
    if (dy)
        c.y = (c.y + (uint32_t)dy) & mask;
    return c;
}

bool geo_valid(struct geo_point p)
{
    return p.lon >= lon_range.min && p.lon <= lon_range.max && p.lat >= lat_range.min && p.lat <= lat_range.max;
}

uint64_t geo_encode(struct geo_point p)
{
    return cell_bits(cell_of(p, lat_range, STEP_MAX));
}

static double clamp(double v, struct range r)
{
    return v > r.max ? r.max : v < r.min ? r.min : v;
}

struct geo_point geo_decode(double score)
{
    uint64_t bits = score >= 0 && score < 18446744073709551616.0 ? (uint64_t)score
                    : score < 0                                  ? (uint64_t)(int64_t)score
                                                                 : 0;
    struct range lon = part_range(gather(bits >> 1), lon_range, STEP_MAX);
    struct range lat = part_range(gather(bits), lat_range, STEP_MAX);

    return (struct geo_point){clamp((lon.min + lon.max) / 2, lon_range), clamp((lat.min + lat.max) / 2, lat_range)};
}

void geo_text(double score, char out[GEO_HASH_TEXT])
{
    static const char letters[] = "0123456789bcdefghjkmnpqrstuvwxyz";
    const struct range whole = {-90, 90}; /* which everybody else's geohashes have */
    uint64_t bits = cell_bits(cell_of(geo_decode(score), whole, STEP_MAX));

    /* 52 bits are ten letters and a bit more, which is not told. */
    for (int i = 0; i < GEO_HASH_TEXT; i++)
        out[i] = letters[i < 10 ? bits >> (52 - 5 * (i + 1)) & 31 : 0];
}

/* ---- distances ----------------------------------------------------------------------- */

static double radians(double degrees)
{
    return degrees * (M_PI / 180.0);
}

static double degrees(double rad)
{
    return rad / (M_PI / 180.0);
}

static double lat_distance(double a, double b)
{
    return EARTH_RADIUS * fabs(radians(b) - radians(a));
}

/* The haversine formula. */
double geo_distance(struct geo_point a, struct geo_point b)
{
    double lon_a = radians(a.lon), lon_b = radians(b.lon), v = sin((lon_b - lon_a) / 2);

    if (v == 0.0)
        return lat_distance(a.lat, b.lat);
    double lat_a = radians(a.lat), lat_b = radians(b.lat), u = sin((lat_b - lat_a) / 2);
    double h = u * u + cos(lat_a) * cos(lat_b) * v * v;
    return 2.0 * EARTH_RADIUS * asin(sqrt(h));
}

bool geo_within(const struct geo_shape *s, struct geo_point p, double *distance)
{
    if (!s->box) {
        *distance = geo_distance(s->center, p);
        return *distance <= s->radius * s->unit;
    }
    struct geo_point beside_center = {s->center.lon, p.lat};
    if (lat_distance(p.lat, s->center.lat) > s->height * s->unit / 2 ||
        geo_distance(p, beside_center) > s->width * s->unit / 2)
        return false;
    *distance = geo_distance(s->center, p);
    return true;
}

/* ---- the cells that a shape reaches -------------------------------------------------- */

struct bounds {
    struct range lon, lat;
};

static struct bounds bounds_of(const struct geo_shape *s)
{
    double lon = s->center.lon, lat = s->center.lat;
    double height = s->unit * (s->box ? s->height / 2 : s->radius);
    double width = s->unit * (s->box ? s->width / 2 : s->radius);
    double up = degrees(height / EARTH_RADIUS);
    /* The edge that is nearer to a pole is the longer one, in degrees. */
    double edge = lat < 0 ? lat - up : lat + up;
    double aside = degrees(width / EARTH_RADIUS / cos(radians(edge)));

    return (struct bounds){{lon - aside, lon + aside}, {lat - up, lat + up}};
}

static int step_for(double meters, double lat)
{
    int step = 1;

    if (meters == 0)
        return STEP_MAX;
    for (; meters < MERCATOR_MAX; step++)
        meters *= 2;
    step -= 2; /* so that a cell and its neighbours hold it, mostly */
    if (lat > 66 || lat < -66)
        step -= lat > 80 || lat < -80 ? 2 : 1; /* cells are narrower there */
    return step < 1 ? 1 : step > STEP_MAX ? STEP_MAX : step;
}

/* Does the shape reach beyond the neighbours of its center's cell? */
static bool too_small(struct cell c, const struct bounds *b)
{
    struct cell north = beside(c, 0, 1), south = beside(c, 0, -1), east = beside(c, 1, 0), west = beside(c, -1, 0);

    return part_range(north.y, lat_range, c.step).max < b->lat.max ||
           part_range(south.y, lat_range, c.step).min > b->lat.min ||
           part_range(east.x, lon_range, c.step).max < b->lon.max ||
           part_range(west.x, lon_range, c.step).min > b->lon.min;
}

int geo_cover(const struct geo_shape *s, struct geo_cell cell[GEO_CELLS])
{
    static const struct {
        int dx, dy;
    } around[GEO_CELLS] = {{0, 0}, {0, 1}, {0, -1}, {1, 0}, {-1, 0}, {1, 1}, {-1, 1}, {1, -1}, {-1, -1}};
    struct bounds b = bounds_of(s);
    double reach = s->box ? sqrt((s->width / 2) * (s->width / 2) + (s->height / 2) * (s->height / 2)) : s->radius;
    int step = step_for(reach * s->unit, s->center.lat), n = 0;
    struct cell c = cell_of(s->center, lat_range, step);

    if (step > 1 && too_small(c, &b))
        c = cell_of(s->center, lat_range, --step);
    struct range lat = part_range(c.y, lat_range, step), lon = part_range(c.x, lon_range, step);
    uint64_t last = UINT64_MAX;
    for (int i = 0; i < GEO_CELLS; i++) {
        int dx = around[i].dx, dy = around[i].dy;
        if (step >= 2 && ((dy < 0 && lat.min < b.lat.min) || (dy > 0 && lat.max > b.lat.max) ||
                          (dx < 0 && lon.min < b.lon.min) || (dx > 0 && lon.max > b.lon.max)))
            continue;
        uint64_t bits = cell_bits(beside(c, dx, dy));
        if (bits == last) /* large cells are their own neighbours */
            continue;
        last = bits;
        int shift = 2 * (STEP_MAX - step);
        cell[n++] = (struct geo_cell){bits << shift, (bits + 1) << shift};
    }
    return n;
}
