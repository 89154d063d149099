#include <getopt.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include "loadgen.h"
#include "tiercel/num.h"
#include "tiercel/version.h"

static const char help[] =
    "Usage: " NAME " [OPTIONS] [COMMAND ARG...]\n"
    "\n"
    "Loads a server that speaks the Redis protocol and reports throughput and latencies.\n"
    "\n"
    "Server\n"
    "  -h HOST               (127.0.0.1)\n"
    "  -p PORT               (6379)\n"
    "  -s PATH               a UNIX socket instead\n"
    "  -a PASSWORD           or from the environment: REDISCLI_AUTH\n"
    "  --user NAME           with -a\n"
    "  --dbnum N             SELECT this database\n"
    "Load\n"
    "  -c N                  connections, of all threads together (50)\n"
    "  --threads N           (1)\n"
    "  -P N                  pipeline: requests sent with one write, and most under way on a connection (1)\n"
    "  -n N                  requests of each test (100000; every key once with --keys seq)\n"
    "  -D, --duration S      seconds of each test, instead of or beside -n\n"
    "  --warmup S            seconds before anything counts\n"
    "  --rate N              open loop: N requests a second, sent when they are due whether or not the server is\n"
    "                        behind; latency counts from then. Without it: the next request after the reply\n"
    "  --poisson             with --rate: random distances instead of even ones\n"
    "  --spin                do not sleep: most exact, takes one core per thread\n"
    "  --timeout S           give up when the server is silent for so long (30)\n"
    "What is sent\n"
    "  -t LIST               tests, one after another (set,get): get set incr mget mset del exists ping, or\n"
    "                        mixes of them with weights: get:9+set:1\n"
    "  COMMAND ARG...        a command of your own. __key__ becomes a key, __rand_int__ its number alone, __value__\n"
    "                        a value for the key before it, __ttl__ milliseconds of --ttl\n"
    "  --fill                set every key once before the tests\n"
    "  --set-on-miss         a GET that misses is followed by a SET of that key, beyond -n and --rate\n"
    "  --mget-keys N         keys of an MGET or MSET (10)\n"
    "Keys\n"
    "  -r N                  number of different keys (100000)\n"
    "  --first-key N         the number of the first of them (0)\n"
    "  --keys ORDER          uniform (default), seq (each once), zipf:EXPONENT (zipf:0.99)\n"
    "  --trace FILE          as recorded: CSV with the columns key, op, value_size, ttl_s, or that compressed by zstd;\n"
    "                        - reads standard input. Sends its GETs and SETs, or with -t those commands on its keys\n"
    "  --key-prefix TEXT     (key:)\n"
    "  --key-size N          bytes: the prefix, then digits (16)\n"
    "Values\n"
    "  -d SIZE               bytes: 100, or 100-2000, or with weights 64:70,1kb:25,64kb:5 (64); a key keeps its size\n"
    "  --values KIND         random (does not compress), json (compresses as such)\n"
    "  --ttl S, S-S          expiry of what is set, in seconds\n"
    "  --verify              check that a GET returns its own key's value, undamaged (also of an earlier run)\n"
    "  --seed N              another order of keys\n"
    "Output\n"
    "  --json FILE           the report as JSON too; - is standard output\n"
    "  --progress            a line every second, also if standard error is no terminal\n"
    "  -q                    one line per test\n"
    "  --help, --version\n"
    "\n"
    "Numbers may have a suffix: 500k, 1m, 1kb. Exits with 0; 1 if the server cannot be reached, goes away or returned\n"
    "a wrong value; 2 after a bad option; 130 if it was interrupted.\n"
    "\n"
    "  " NAME " -t set --keys seq -r 1m -d 1kb -P 16      fill with 1,000,000 keys\n"
    "  " NAME " -t get:9+set:1 -r 1m --keys zipf:0.99 --rate 50k -D 30 --verify\n"
    "  " NAME " --trace oltp.csv.zst --set-on-miss\n"
    "  " NAME " -r 1000 hset __key__ field __value__\n";

enum {
    OPT_HELP = 256,
    OPT_VERSION,
    OPT_USER,
    OPT_DBNUM,
    OPT_THREADS,
    OPT_WARMUP,
    OPT_RATE,
    OPT_POISSON,
    OPT_SPIN,
    OPT_TIMEOUT,
    OPT_FILL,
    OPT_SET_ON_MISS,
    OPT_MGET_KEYS,
    OPT_KEYS,
    OPT_FIRST_KEY,
    OPT_TRACE,
    OPT_KEY_PREFIX,
    OPT_KEY_SIZE,
    OPT_VALUES,
    OPT_TTL,
    OPT_VERIFY,
    OPT_SEED,
    OPT_JSON,
    OPT_PROGRESS
};

static const struct option longs[] = {
    {"help", no_argument, NULL, OPT_HELP},
    {"version", no_argument, NULL, OPT_VERSION},
    {"user", required_argument, NULL, OPT_USER},
    {"dbnum", required_argument, NULL, OPT_DBNUM},
    {"threads", required_argument, NULL, OPT_THREADS},
    {"duration", required_argument, NULL, 'D'},
    {"warmup", required_argument, NULL, OPT_WARMUP},
    {"rate", required_argument, NULL, OPT_RATE},
    {"poisson", no_argument, NULL, OPT_POISSON},
    {"spin", no_argument, NULL, OPT_SPIN},
    {"timeout", required_argument, NULL, OPT_TIMEOUT},
    {"fill", no_argument, NULL, OPT_FILL},
    {"set-on-miss", no_argument, NULL, OPT_SET_ON_MISS},
    {"mget-keys", required_argument, NULL, OPT_MGET_KEYS},
    {"keys", required_argument, NULL, OPT_KEYS},
    {"first-key", required_argument, NULL, OPT_FIRST_KEY},
    {"trace", required_argument, NULL, OPT_TRACE},
    {"key-prefix", required_argument, NULL, OPT_KEY_PREFIX},
    {"key-size", required_argument, NULL, OPT_KEY_SIZE},
    {"values", required_argument, NULL, OPT_VALUES},
    {"ttl", required_argument, NULL, OPT_TTL},
    {"verify", no_argument, NULL, OPT_VERIFY},
    {"seed", required_argument, NULL, OPT_SEED},
    {"json", required_argument, NULL, OPT_JSON},
    {"progress", no_argument, NULL, OPT_PROGRESS},
    {NULL, 0, NULL, 0},
};

void options_fail(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs(NAME ": ", stderr);
    vfprintf(stderr, fmt, ap);
    fputs("\n" NAME ": --help lists the options\n", stderr);
    va_end(ap);
    exit(2);
}

static uint64_t parse_count(const char *name, const char *text, uint64_t min, uint64_t max)
{
    uint64_t v;
    if (!num_parse_bytes(slice_str(text), &v) || v < min || v > max)
        options_fail("%s: '%s' is not a number from %llu to %llu", name, text, (unsigned long long)min,
                     (unsigned long long)max);
    return v;
}

static double parse_seconds(const char *name, struct slice text, double min, double max)
{
    long double v;
    if (!num_parse_f64(text, &v) || !(v >= min && v <= max))
        options_fail("%s: '%.*s' is not a number from %g to %g", name, SLICE_FMT(text), min, max);
    return (double)v;
}

static void parse_keys(struct options *o, const char *text)
{
    if (strcmp(text, "seq") == 0) {
        o->order = KEYS_SEQUENTIAL;
    } else if (strcmp(text, "uniform") == 0) {
        o->order = KEYS_UNIFORM;
    } else if (strncmp(text, "zipf", 4) == 0 && (text[4] == '\0' || text[4] == ':')) {
        o->order = KEYS_ZIPF;
        if (text[4])
            o->zipf = parse_seconds("--keys zipf", slice_str(text + 5), 0.01, 10);
    } else {
        options_fail("--keys: '%s' is none of uniform, seq, zipf:EXPONENT", text);
    }
}

static void parse_ttl(struct options *o, const char *text)
{
    const char *dash = strchr(text, '-');
    size_t first = dash ? (size_t)(dash - text) : strlen(text);

    o->ttl_min = parse_seconds("--ttl", SLICE(text, first), 0.001, 1e9);
    o->ttl_max = dash ? parse_seconds("--ttl", slice_str(dash + 1), 0.001, 1e9) : o->ttl_min;
    if (o->ttl_max < o->ttl_min)
        options_fail("--ttl: '%s' ends before it begins", text);
}

static double parse_rate(const char *text)
{
    uint64_t v;
    if (num_parse_bytes(slice_str(text), &v))
        return (double)parse_count("--rate", text, 1, 1000000000);
    return parse_seconds("--rate", slice_str(text), 0.001, 1e9);
}

static void parse_values(struct options *o, const char *text)
{
    if (strcmp(text, "random") == 0)
        o->kind = VALUE_RANDOM;
    else if (strcmp(text, "json") == 0)
        o->kind = VALUE_JSON;
    else
        options_fail("--values: '%s' is neither random nor json", text);
}

static void parse_option(struct options *o, int opt, const char *arg, const char *word)
{
    switch (opt) {
    case OPT_HELP: fputs(help, stdout); exit(0);
    case OPT_VERSION: puts(NAME " " TIERCEL_VERSION); exit(0);
    case 'h': o->host = arg; break;
    case 'p': o->port = (unsigned)parse_count("-p", arg, 1, 65535); break;
    case 's': o->socket = arg; break;
    case 'a': o->password = arg; break;
    case OPT_USER: o->user = arg; break;
    case OPT_DBNUM: o->db = (unsigned)parse_count("--dbnum", arg, 0, 1000000); break;
    case 'c': o->connections = (unsigned)parse_count("-c", arg, 1, CONNECTIONS_MAX); break;
    case OPT_THREADS: o->threads = (unsigned)parse_count("--threads", arg, 1, THREADS_MAX); break;
    case 'P': o->pipeline = (unsigned)parse_count("-P", arg, 1, PIPELINE_MAX); break;
    case 'n': o->requests = parse_count("-n", arg, 1, UINT64_MAX / 2); break;
    case 'D': o->seconds = parse_seconds("--duration", slice_str(arg), 0.01, 1e7); break;
    case OPT_WARMUP: o->warmup = parse_seconds("--warmup", slice_str(arg), 0, 1e7); break;
    case OPT_RATE: o->rate = parse_rate(arg); break;
    case OPT_POISSON: o->poisson = true; break;
    case OPT_SPIN: o->spin = true; break;
    case OPT_TIMEOUT: o->timeout = parse_seconds("--timeout", slice_str(arg), 0.1, 1e6); break;
    case 't': o->tests = arg; break;
    case OPT_FILL: o->fill = true; break;
    case OPT_SET_ON_MISS: o->set_on_miss = true; break;
    case OPT_MGET_KEYS: o->mget_keys = (unsigned)parse_count("--mget-keys", arg, 1, REQUEST_KEYS_MAX); break;
    case 'r': o->keys = parse_count("-r", arg, 1, UINT64_MAX / 2); break;
    case OPT_KEYS: parse_keys(o, arg); break;
    case OPT_FIRST_KEY: o->first_key = parse_count("--first-key", arg, 0, UINT64_MAX / 2); break;
    case OPT_TRACE: o->trace = arg; break;
    case OPT_KEY_PREFIX: o->key_prefix = arg; break;
    case OPT_KEY_SIZE: o->key_size = (unsigned)parse_count("--key-size", arg, 1, KEY_SIZE_MAX); break;
    case 'd':
        if (!value_sizes_parse(arg, &o->sizes))
            options_fail("-d: '%s' is neither a size up to 512mb, nor MIN-MAX, nor SIZE:WEIGHT,...", arg);
        break;
    case OPT_VALUES: parse_values(o, arg); break;
    case OPT_TTL: parse_ttl(o, arg); break;
    case OPT_VERIFY: o->verify = true; break;
    case OPT_SEED: o->seed = parse_count("--seed", arg, 0, UINT64_MAX / 2); break;
    case OPT_JSON: o->json = arg; break;
    case OPT_PROGRESS: o->progress = 1; break;
    case 'q': o->quiet = true; break;
    case ':': options_fail("%s wants a value", word);
    default: options_fail("there is no option %s", word);
    }
}

void options_parse(struct options *o, int argc, char **argv)
{
    int opt;

    *o = (struct options){
        .host = "127.0.0.1",
        .port = 6379,
        .password = getenv("REDISCLI_AUTH"),
        .connections = 50,
        .threads = 1,
        .pipeline = 1,
        .timeout = 30,
        .order = KEYS_UNIFORM,
        .zipf = 0.99,
        .keys = 100000,
        .key_prefix = "key:",
        .key_size = 16,
        .sizes = {.min = 64, .max = 64},
        .mget_keys = 10,
        .progress = -1,
        .seed = 1,
    };
    /* '+': the options end where the user's own command begins. */
    while ((opt = getopt_long(argc, argv, "+:h:p:s:a:c:P:n:D:t:r:d:q", longs, NULL)) != -1)
        parse_option(o, opt, optarg, argv[optind - 1]);
    o->argv = argv + optind;
    o->argc = argc - optind;
    if (o->argc && o->tests)
        options_fail("-t and a command ('%s') exclude each other", o->argv[0]);
    if (o->argc && o->trace)
        options_fail("--trace and a command ('%s') exclude each other", o->argv[0]);
    if (o->threads > o->connections)
        options_fail("--threads %u: more than connections (-c %u)", o->threads, o->connections);
    if (o->poisson && o->rate == 0)
        options_fail("--poisson wants --rate");
    if (o->user && !o->password)
        options_fail("--user wants -a");
    if (o->password && strlen(o->password) + (o->user ? strlen(o->user) : 0) > 2048)
        options_fail("-a: longer than 2048 bytes");
    if (o->requests == 0 && o->seconds == 0 && o->order != KEYS_SEQUENTIAL && !o->trace)
        o->requests = 100000;
}
