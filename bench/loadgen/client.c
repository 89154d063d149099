/* A thread with its connections: sends requests, times and judges the replies.
 *
 * Closed loop: a connection sends `pipeline` requests with one write, and the next ones when all of them are
 * answered. Open loop: requests are due at times that do not depend on the server; a connection takes what is due
 * while it has less than `pipeline` of them under way. A request that waits for a connection is late, and its
 * latency counts from when it was due. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>

#include "loadgen.h"
#include "reply.h"
#include "tiercel/check.h"
#include "tiercel/hash.h"

#define READ_BYTES (256 * 1024)
#define WRITE_BYTES (256 * 1024) /* a batch larger than this is written in parts */

struct bytes {
    char *ptr;
    size_t len, cap;
};

struct conn {
    union {
        uv_handle_t handle;
        uv_stream_t stream;
        uv_tcp_t tcp;
        uv_pipe_t pipe;
    } uv;
    struct client *cl;
    struct reply_parser parser;
    struct request *ring; /* under way, oldest first: [head, head + inflight) modulo pipeline */
    unsigned head, inflight;
    unsigned unsent;      /* the newest of them are not written yet */
    unsigned value_index; /* within the reply to the oldest */
    unsigned setup_left;  /* replies to come before it may be used */
    bool is_free;         /* open loop: it is in the client's list */
    struct bytes value;   /* --verify: the first parts of a value that comes in several */
    uint64_t *missed;     /* --set-on-miss: keys to store */
    unsigned missed_len;
    bool writing; /* the socket did not take all: `busy` is being written, `wait` comes then */
    struct bytes busy, wait;
    uv_write_t write;
    uv_connect_t connect;
};

struct client {
    struct plan *plan;
    const struct options *opt;
    const struct test *test;
    uv_thread_t thread;
    uv_loop_t loop;
    uv_async_t wake;
    uv_timer_t patience; /* while connecting */
    uv_idle_t spin;      /* keeps the loop from sleeping */
    struct pace pace;
    bool has_pace, started, finished;
    struct conn *conn;
    unsigned conns, index, ready;
    struct key_source keys;
    uint64_t rng;
    uint64_t left; /* requests that may still be sent */
    bool ended;    /* nothing more is to be sent */
    uint64_t measure_ns, deadline_ns;
    double due_ns, interval_ns; /* open loop: when the next request is due */
    struct conn **free;         /* a ring of connections that can take a request */
    unsigned free_head, free_len;
    char *out; /* requests being put together, for one connection at a time */
    size_t out_len;
    char *in, *key;
    struct bytes scratch;
    struct thread_stats stats;
};

void plan_fail(struct plan *p, const char *fmt, ...)
{
    uv_mutex_lock(&p->lock);
    if (!p->failed) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(p->error, sizeof(p->error), fmt, ap);
        va_end(ap);
        p->failed = true;
    }
    uv_mutex_unlock(&p->lock);
}

static void note_first(struct plan *p, char text[ERROR_MAX], struct slice a, const char *b)
{
    uv_mutex_lock(&p->lock);
    if (text[0] == '\0')
        snprintf(text, ERROR_MAX, "%.*s%s%s", a.len < 200 ? (int)a.len : 200, a.ptr, b ? ": " : "", b ? b : "");
    uv_mutex_unlock(&p->lock);
}

static void bytes_reserve(struct bytes *b, size_t cap)
{
    if (cap <= b->cap)
        return;
    b->cap = cap + cap / 2;
    b->ptr = realloc(b->ptr, b->cap);
    CHECK(b->ptr);
}

static void bytes_append(struct bytes *b, const char *ptr, size_t len)
{
    bytes_reserve(b, b->len + len);
    memcpy(b->ptr + b->len, ptr, len);
    b->len += len;
}

/* ---- the end ---- */

static void finish(struct client *cl)
{
    if (cl->finished)
        return;
    if (cl->has_pace && cl->ended && !cl->plan->stop && cl->left && cl->due_ns < (double)cl->deadline_ns &&
        cl->deadline_ns != UINT64_MAX)
        cl->stats.unsent = (uint64_t)(((double)cl->deadline_ns - cl->due_ns) / cl->interval_ns) + 1;
    uv_mutex_lock(&cl->plan->lock); /* client_wake() */
    cl->finished = true;
    uv_mutex_unlock(&cl->plan->lock);
    for (unsigned i = 0; i < cl->conns; i++)
        if (cl->conn[i].uv.handle.type && !uv_is_closing(&cl->conn[i].uv.handle))
            uv_close(&cl->conn[i].uv.handle, NULL);
    uv_close((uv_handle_t *)&cl->wake, NULL);
    uv_close((uv_handle_t *)&cl->patience, NULL);
    uv_close((uv_handle_t *)&cl->spin, NULL);
    if (cl->has_pace)
        pace_close(&cl->pace);
}

static void finish_if_done(struct client *cl)
{
    if (cl->plan->stop)
        cl->ended = true;
    if (cl->plan->failed || (cl->ended && cl->stats.inflight == 0))
        finish(cl);
}

static void fail_conn(struct conn *c, const char *what, int status)
{
    struct plan *p = c->cl->plan;

    if (c->cl->finished)
        return;
    if (status == UV_EOF || status == UV_ECONNRESET || status == UV_EPIPE)
        plan_fail(p, "%s closed the connection%s", p->target, c->setup_left ? "" : " during the test");
    else
        plan_fail(p, "%s %s: %s", what, p->target, uv_strerror(status));
    finish(c->cl);
}

static void on_wake(uv_async_t *wake)
{
    finish_if_done(wake->data);
}

/* ---- writing ---- */

static void start_write(struct conn *c);

static void on_written(uv_write_t *req, int status)
{
    struct conn *c = req->data;

    if (status < 0) {
        if (status != UV_ECANCELED)
            fail_conn(c, "cannot write to", status);
        return;
    }
    c->writing = false;
    c->busy.len = 0;
    if (c->wait.len)
        start_write(c);
}

static void start_write(struct conn *c)
{
    struct bytes b = c->busy;

    c->busy = c->wait;
    c->wait = b;
    c->writing = true;
    c->write.data = c;
    uv_buf_t buf = uv_buf_init(c->busy.ptr, (unsigned)c->busy.len);
    int rc = uv_write(&c->write, &c->uv.stream, &buf, 1, on_written);
    if (rc < 0)
        fail_conn(c, "cannot write to", rc);
}

static void write_out(struct conn *c, char *ptr, size_t len)
{
    hist_bump(&c->cl->stats.bytes_out, len);
    if (!c->writing) {
        uv_buf_t buf = uv_buf_init(ptr, (unsigned)len);
        int n = uv_try_write(&c->uv.stream, &buf, 1);
        if (n < 0 && n != UV_EAGAIN) {
            fail_conn(c, "cannot write to", n);
            return;
        }
        if (n > 0) {
            ptr += n;
            len -= (size_t)n;
        }
    }
    if (len == 0)
        return;
    bytes_append(&c->wait, ptr, len);
    if (!c->writing)
        start_write(c);
}

static struct request *ring_at(struct conn *c, unsigned i)
{
    i += c->head;
    return &c->ring[i < c->cl->plan->pipeline ? i : i - c->cl->plan->pipeline];
}

static void flush(struct conn *c)
{
    struct client *cl = c->cl;
    uint64_t now;

    if (c->unsent == 0)
        return;
    now = now_ns();
    for (; c->unsent; c->unsent--) {
        struct request *req = ring_at(c, c->inflight - c->unsent);
        if (req->begin_ns == 0)
            req->begin_ns = now;
        else if (req->counts)
            hist_record(&cl->stats.send_delay, now > req->begin_ns ? now - req->begin_ns : 0);
    }
    write_out(c, cl->out, cl->out_len);
    cl->out_len = 0;
}

/* ---- which request is next ---- */

static bool next_access(struct client *cl, struct trace_access *out)
{
    const struct trace *t = cl->plan->trace;
    uint64_t i = cl->plan->trace_next++;

    if (i >= t->len && cl->plan->one_pass) {
        cl->ended = true;
        return false;
    }
    *out = t->access[i % t->len];
    return true;
}

static unsigned pick_command(struct client *cl)
{
    const struct test *t = cl->test;
    unsigned i = 0;

    if (t->entries > 1) {
        uint64_t r = rng_next(&cl->rng) % t->entry[t->entries - 1].upto;
        while (r >= t->entry[i].upto)
            i++;
    }
    return t->entry[i].command;
}

/* Chooses command and keys; false: nothing more is to be sent. */
static bool choose(struct client *cl, struct request *req)
{
    const struct test *t = cl->test;
    bool traced = cl->plan->trace && !t->is_fill;
    struct trace_access a = {0};

    req->size = req->ttl_s = 0;
    if (t->from_trace) {
        if (!next_access(cl, &a))
            return false;
        req->command = (uint16_t)(!a.set ? t->get : a.ttl_s ? t->set_ttl : t->set);
        req->key[0] = cl->opt->first_key + a.key;
        req->size = a.size;
        req->ttl_s = a.ttl_s;
        return true;
    }
    if (cl->plan->one_pass && !traced && keys_exhausted(&cl->keys)) {
        cl->ended = true;
        return false;
    }
    req->command = (uint16_t)pick_command(cl);
    for (unsigned i = 0; i < t->command[req->command].keys; i++) {
        if (traced && !next_access(cl, &a))
            return false;
        req->key[i] = cl->opt->first_key + (traced ? a.key : keys_next(&cl->keys));
    }
    return true;
}

static void add_request(struct conn *c, struct request *req)
{
    struct client *cl = c->cl;

    cl->out_len += request_write(cl->plan, req, &cl->rng, cl->out + cl->out_len);
    c->inflight++;
    c->unsent++;
    hist_bump(&cl->stats.inflight, 1);
    if (cl->out_len >= WRITE_BYTES)
        flush(c);
}

/* Stores keys that were missed, as far as there is room. */
static void add_missed(struct conn *c, bool counts)
{
    unsigned n = 0;

    for (; n < c->missed_len && c->inflight < c->cl->plan->pipeline && !c->cl->finished; n++) {
        struct request *req = ring_at(c, c->inflight);
        req->command = (uint16_t)c->cl->test->set;
        req->key[0] = c->missed[n];
        req->size = req->ttl_s = 0;
        req->begin_ns = 0;
        req->counts = counts;
        add_request(c, req);
    }
    memmove(c->missed, c->missed + n, (c->missed_len - n) * sizeof(*c->missed));
    c->missed_len -= n;
}

/* due_ns: 0 in the closed loop. false: there is no next one. */
static bool add_next(struct conn *c, uint64_t now, uint64_t due_ns)
{
    struct client *cl = c->cl;
    struct request *req = ring_at(c, c->inflight);

    if (cl->ended || cl->plan->stop || now >= cl->deadline_ns || cl->left == 0) {
        cl->ended = true;
        return false;
    }
    if (!choose(cl, req))
        return false;
    req->begin_ns = due_ns;
    req->counts = (due_ns ? due_ns : now) >= cl->measure_ns;
    cl->left -= req->counts;
    add_request(c, req);
    return true;
}

static void send_batch(struct conn *c, uint64_t now)
{
    struct client *cl = c->cl;

    add_missed(c, now >= cl->measure_ns);
    while (c->inflight < cl->plan->pipeline && !cl->finished && add_next(c, now, 0)) {
    }
    flush(c);
}

/* ---- open loop ---- */

static void free_push(struct client *cl, struct conn *c)
{
    unsigned at = cl->free_head + cl->free_len++;
    cl->free[at < cl->conns ? at : at - cl->conns] = c;
    c->is_free = true;
}

static struct conn *free_pop(struct client *cl)
{
    struct conn *c = cl->free[cl->free_head];
    cl->free_head = cl->free_head + 1 < cl->conns ? cl->free_head + 1 : 0;
    cl->free_len--;
    c->is_free = false;
    return c;
}

static void next_due(struct client *cl)
{
    double step = cl->interval_ns;
    if (cl->opt->poisson)
        step *= -log1p(-((double)(rng_next(&cl->rng) >> 11) * 0x1p-53));
    cl->due_ns += step;
}

/* Sends what is due, as far as connections have room for it. */
static void dispatch(struct client *cl)
{
    uint64_t now = now_ns();

    while (!cl->ended && !cl->finished && cl->due_ns <= (double)now && cl->free_len) {
        struct conn *c = free_pop(cl);
        unsigned room = cl->plan->pipeline - c->inflight;
        /* Evenly over the connections that have room. */
        double share = ceil((((double)now - cl->due_ns) / cl->interval_ns + 1) / (cl->free_len + 1));
        for (unsigned n = share < room ? (unsigned)share : room; n && cl->due_ns <= (double)now; n--) {
            if (!add_next(c, now, (uint64_t)cl->due_ns))
                break;
            next_due(cl);
        }
        flush(c);
        if (c->inflight < cl->plan->pipeline)
            free_push(cl, c);
    }
    if (now >= cl->deadline_ns)
        cl->ended = true;
    if (cl->ended)
        finish_if_done(cl);
    if (cl->finished)
        return;
    if (!cl->ended && (cl->free_len || now < cl->deadline_ns))
        /* Without room the next reply goes on; but the end must not be missed. */
        pace_at(&cl->pace,
                cl->free_len && cl->due_ns < (double)cl->deadline_ns ? (uint64_t)cl->due_ns : cl->deadline_ns);
    else
        pace_at(&cl->pace, 0);
}

static void on_pace(void *arg)
{
    dispatch(arg);
}

static void on_spin(uv_idle_t *idle)
{
    struct client *cl = idle->data;
    if (cl->interval_ns > 0 && cl->due_ns <= (double)now_ns())
        dispatch(cl);
}

/* ---- replies ---- */

static void check_value(struct conn *c, struct slice value, uint64_t number)
{
    struct client *cl = c->cl;
    struct slice key = SLICE(cl->key, cl->opt->key_size);

    key_write(cl->opt, number, cl->key);
    bytes_reserve(&cl->scratch, value.len);
    const char *wrong = value_check(cl->plan->values, value, key, cl->scratch.ptr);
    if (wrong) {
        const struct command *cmd = &cl->test->command[c->ring[c->head].command];
        hist_bump(&cl->stats.command[cmd->stats].wrong, 1);
        note_first(cl->plan, cl->plan->first_wrong, key, wrong);
    }
}

/* A value of a GET or MGET, or a part of one. */
static void on_value(struct conn *c, const struct request *req, const struct reply_event *ev)
{
    struct client *cl = c->cl;
    const struct command *cmd = &cl->test->command[req->command];
    struct command_stats *st = &cl->stats.command[cmd->stats];

    if (c->value_index >= cmd->keys)
        return; /* more values than keys; the server is not what it says it is */
    uint64_t number = req->key[c->value_index];
    if (ev->kind == REPLY_NIL) {
        if (req->counts)
            hist_bump(&st->misses, 1);
        if (cl->test->set >= 0 && cl->opt->set_on_miss)
            c->missed[c->missed_len++] = number;
        c->value_index++;
        return;
    }
    if (cl->opt->verify && (!ev->last || c->value.len))
        bytes_append(&c->value, ev->data.ptr, ev->data.len);
    if (!ev->last)
        return;
    if (req->counts)
        hist_bump(&st->hits, 1);
    if (cl->opt->verify)
        check_value(c, c->value.len ? SLICE(c->value.ptr, c->value.len) : ev->data, number);
    c->value.len = 0;
    c->value_index++;
}

static void on_event(struct conn *c, const struct reply_event *ev, uint64_t now)
{
    struct client *cl = c->cl;
    struct request *req = &c->ring[c->head];
    const struct command *cmd = &cl->test->command[req->command];
    struct command_stats *st = &cl->stats.command[cmd->stats];

    if (ev->kind == REPLY_ERROR) {
        if (req->counts)
            hist_bump(&st->errors, 1);
        note_first(cl->plan, cl->plan->first_error, ev->data, NULL);
    } else if (cmd->reads && (ev->kind == REPLY_BULK || ev->kind == REPLY_NIL)) {
        on_value(c, req, ev);
    }
    if (!ev->end)
        return;
    if (req->counts) {
        hist_record(&st->latency, now > req->begin_ns ? now - req->begin_ns : 0);
        cl->stats.end_ns = now;
    }
    hist_bump(&cl->stats.replies, 1);
    hist_bump(&cl->stats.inflight, (uint64_t)-1);
    c->head = c->head + 1 < cl->plan->pipeline ? c->head + 1 : 0;
    c->inflight--;
    c->value_index = 0;
}

static void on_setup_event(struct conn *c, const struct reply_event *ev)
{
    struct client *cl = c->cl;
    struct plan *p = cl->plan;

    if (ev->kind == REPLY_ERROR) {
        plan_fail(p, "%s refuses the connection: %.*s", p->target, ev->data.len < 200 ? (int)ev->data.len : 200,
                  ev->data.ptr);
        finish(cl);
    } else if (ev->end && --c->setup_left == 0 && ++cl->ready == cl->conns) {
        uv_stop(&cl->loop);
    }
}

static void after_read(struct conn *c, uint64_t now)
{
    struct client *cl = c->cl;

    if (cl->finished || !cl->started)
        return;
    if (cl->interval_ns > 0) {
        if (c->missed_len) {
            add_missed(c, now >= cl->measure_ns);
            flush(c);
        }
        bool stuck = cl->free_len == 0; /* the pace was not set to the next due time */
        if (!c->is_free && c->inflight < cl->plan->pipeline)
            free_push(cl, c);
        if (stuck || cl->due_ns <= (double)now || cl->ended)
            dispatch(cl);
    } else if (c->inflight == 0) {
        send_batch(c, now);
        if (c->inflight == 0)
            finish_if_done(cl);
    }
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct conn *c = stream->data;
    struct client *cl = c->cl;
    struct slice in = SLICE(buf->base, n > 0 ? (size_t)n : 0);
    struct reply_event ev;
    enum reply_rc rc = REPLY_MORE;
    uint64_t now;

    if (n < 0) {
        fail_conn(c, "cannot read from", (int)n);
        return;
    }
    now = now_ns();
    hist_bump(&cl->stats.bytes_in, (uint64_t)n);
    while (!cl->finished && (rc = reply_parse(&c->parser, &in, &ev)) == REPLY_OK) {
        if (c->setup_left)
            on_setup_event(c, &ev);
        else if (c->inflight > 0)
            on_event(c, &ev, now);
        else
            break;
    }
    if (rc != REPLY_MORE && !cl->finished) {
        plan_fail(cl->plan, "%s sent %s", cl->plan->target,
                  rc == REPLY_BAD ? "something that is not RESP" : "a reply that nobody asked for");
        finish(cl);
    }
    after_read(c, now);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
    struct conn *c = handle->data;
    (void)suggested;
    *buf = uv_buf_init(c->cl->in, READ_BYTES);
}

/* ---- connecting ---- */

static size_t setup_argument(char *out, size_t room, const char *arg)
{
    int n = snprintf(out, room, "$%zu\r\n%s\r\n", strlen(arg), arg);
    return n > 0 && (size_t)n < room ? (size_t)n : 0;
}

/* PING tells whether the server can be used: it may want a password, or be loading. */
static void set_up(struct conn *c)
{
    const struct options *o = c->cl->opt;
    char text[4096], db[16];
    size_t n = 0;

    if (o->password) {
        n += (size_t)snprintf(text, sizeof(text), "*%d\r\n$4\r\nAUTH\r\n", o->user ? 3 : 2);
        if (o->user)
            n += setup_argument(text + n, sizeof(text) - n, o->user);
        n += setup_argument(text + n, sizeof(text) - n, o->password);
        c->setup_left++;
    }
    if (o->db) {
        snprintf(db, sizeof(db), "%u", o->db);
        n += (size_t)snprintf(text + n, sizeof(text) - n, "*2\r\n$6\r\nSELECT\r\n");
        n += setup_argument(text + n, sizeof(text) - n, db);
        c->setup_left++;
    }
    n += (size_t)snprintf(text + n, sizeof(text) - n, "*1\r\n$4\r\nPING\r\n");
    c->setup_left++;
    int rc = uv_read_start(&c->uv.stream, on_alloc, on_read);
    if (rc < 0)
        fail_conn(c, "cannot read from", rc);
    else
        write_out(c, text, n);
}

static void on_connect(uv_connect_t *req, int status)
{
    struct conn *c = req->data;

    if (status < 0) {
        if (status != UV_ECANCELED)
            fail_conn(c, "cannot connect to", status);
        return;
    }
    if (!c->cl->opt->socket)
        uv_tcp_nodelay(&c->uv.tcp, 1);
    set_up(c);
}

static void open_conn(struct client *cl, struct conn *c)
{
    int rc;

    c->cl = cl;
    c->connect.data = c;
    if (cl->opt->socket) {
        rc = uv_pipe_init(&cl->loop, &c->uv.pipe, 0);
        CHECK(rc == 0);
        c->uv.handle.data = c;
        uv_pipe_connect(&c->connect, &c->uv.pipe, cl->opt->socket, on_connect);
    } else {
        rc = uv_tcp_init(&cl->loop, &c->uv.tcp);
        CHECK(rc == 0);
        c->uv.handle.data = c;
        rc = uv_tcp_connect(&c->connect, &c->uv.tcp, (const struct sockaddr *)&cl->plan->addr, on_connect);
        if (rc < 0)
            fail_conn(c, "cannot connect to", rc);
    }
}

static void on_impatient(uv_timer_t *timer)
{
    struct client *cl = timer->data;
    plan_fail(cl->plan, "%s does not answer within %g s", cl->plan->target, cl->opt->timeout);
    finish(cl);
}

/* ---- the thread ---- */

static void begin(struct client *cl)
{
    const struct options *o = cl->opt;
    bool limits = !cl->test->is_fill;
    uint64_t start = cl->plan->start_ns;

    cl->started = true;
    cl->measure_ns = start + (limits ? (uint64_t)(o->warmup * 1e9) : 0);
    cl->deadline_ns = limits && o->seconds > 0 ? cl->measure_ns + (uint64_t)(o->seconds * 1e9) : UINT64_MAX;
    if (o->spin) {
        cl->spin.data = cl;
        uv_idle_start(&cl->spin, on_spin);
    }
    if (limits && o->rate > 0) {
        cl->interval_ns = 1e9 / o->rate * o->threads;
        cl->due_ns = (double)start + cl->interval_ns * (cl->index + 1) / o->threads;
        for (unsigned i = 0; i < cl->conns; i++)
            free_push(cl, &cl->conn[i]);
        dispatch(cl);
        return;
    }
    for (unsigned i = 0; i < cl->conns && !cl->finished; i++)
        send_batch(&cl->conn[i], now_ns());
    finish_if_done(cl);
}

static void run(void *arg)
{
    struct client *cl = arg;
    struct plan *p = cl->plan;

    cl->patience.data = cl;
    uv_timer_start(&cl->patience, on_impatient, (uint64_t)(cl->opt->timeout * 1000), 0);
    for (unsigned i = 0; i < cl->conns && !cl->finished; i++)
        open_conn(cl, &cl->conn[i]);
    uv_run(&cl->loop, UV_RUN_DEFAULT);
    uv_barrier_wait(&p->connected);
    uv_barrier_wait(&p->connected);
    if (!cl->finished) {
        uv_timer_stop(&cl->patience);
        if (p->failed)
            finish(cl);
        else
            begin(cl);
        uv_run(&cl->loop, UV_RUN_DEFAULT);
    }
    CHECK(uv_loop_close(&cl->loop) == 0);
    p->running--;
    uv_async_send(p->done);
}

static void conn_init(struct client *cl, struct conn *c)
{
    unsigned depth = cl->plan->pipeline, keys = cl->test->keys_max ? cl->test->keys_max : 1;
    uint64_t *numbers = calloc((size_t)depth * keys, sizeof(*numbers));

    c->ring = calloc(depth, sizeof(*c->ring));
    c->missed = calloc(((size_t)depth + 1) * keys, sizeof(*c->missed));
    CHECK(numbers && c->ring && c->missed);
    for (unsigned i = 0; i < depth; i++)
        c->ring[i].key = numbers + (size_t)i * keys;
}

struct client *client_create(struct plan *p, unsigned index)
{
    const struct options *o = p->opt;
    struct client *cl = calloc(1, sizeof(*cl));
    enum key_order order = p->test->is_fill ? KEYS_SEQUENTIAL : o->order;

    CHECK(cl);
    cl->plan = p;
    cl->opt = o;
    cl->test = p->test;
    cl->index = index;
    cl->conns = o->connections / o->threads + (index < o->connections % o->threads);
    cl->left = UINT64_MAX;
    if (o->requests && !p->test->is_fill)
        cl->left = o->requests / o->threads + (index < o->requests % o->threads);
    keys_init(&cl->keys, order, o->keys, o->zipf, o->seed, index, o->threads);
    cl->rng = o->seed + 0x51ed2701 * (uint64_t)(index + 1);
    cl->conn = calloc(cl->conns, sizeof(*cl->conn));
    cl->free = calloc(cl->conns, sizeof(struct conn *));
    cl->out = malloc(WRITE_BYTES + p->test->request_max);
    cl->in = malloc(READ_BYTES);
    cl->key = malloc(o->key_size);
    CHECK(cl->conn && cl->free && cl->out && cl->in && cl->key);
    for (unsigned i = 0; i < cl->conns; i++)
        conn_init(cl, &cl->conn[i]);
    CHECK(uv_loop_init(&cl->loop) == 0);
    CHECK(uv_async_init(&cl->loop, &cl->wake, on_wake) == 0);
    cl->wake.data = cl;
    uv_timer_init(&cl->loop, &cl->patience);
    uv_idle_init(&cl->loop, &cl->spin);
    if (o->rate > 0) {
        pace_init(&cl->pace, &cl->loop, on_pace, cl);
        cl->has_pace = true;
    }
    CHECK(uv_thread_create(&cl->thread, run, cl) == 0);
    return cl;
}

void client_join(struct client *cl)
{
    uv_thread_join(&cl->thread);
}

void client_destroy(struct client *cl)
{
    for (unsigned i = 0; i < cl->conns; i++) {
        struct conn *c = &cl->conn[i];
        free(c->ring[0].key);
        free(c->ring);
        free(c->missed);
        free(c->value.ptr);
        free(c->busy.ptr);
        free(c->wait.ptr);
    }
    free(cl->conn);
    free(cl->free);
    free(cl->out);
    free(cl->in);
    free(cl->key);
    free(cl->scratch.ptr);
    free(cl);
}

void client_wake(struct client *cl)
{
    uv_mutex_lock(&cl->plan->lock);
    if (!cl->finished)
        uv_async_send(&cl->wake);
    uv_mutex_unlock(&cl->plan->lock);
}

const struct thread_stats *client_stats(const struct client *cl)
{
    return &cl->stats;
}
