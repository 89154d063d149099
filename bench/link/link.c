/* A link with a delay: link PORT TARGET_PORT MICROSECONDS
 *
 * Listens on 127.0.0.1:PORT; what arrives goes on to 127.0.0.1:TARGET_PORT, and back, each piece that much later, in
 * order and with no limit of rate. One thread, ppoll() with the clock's precision, so that it adds tens of microseconds. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PAIRS_MAX 512
#define CHUNK 65536
#define QUEUED_MAX (8 << 20) /* bytes under way in one direction: past it nothing more is read */

struct chunk {
    struct chunk *next;
    int64_t due_ns;
    size_t len, sent;
    char data[];
};

struct way { /* from one socket to the other */
    struct chunk *first, **last;
    size_t queued;
    bool ended;
};

struct pair {
    int fd[2];
    struct way way[2]; /* [i]: from fd[i] */
};

static struct pair *pairs[PAIRS_MAX];
static int npairs;
static int64_t delay_ns;

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static struct sockaddr_in loopback(int port)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

static void no_delay(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

static void accept_pair(int listener, int target)
{
    struct sockaddr_in to = loopback(target);
    int a = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (a < 0)
        return;
    int b = socket(AF_INET, SOCK_STREAM, 0);
    if (npairs == PAIRS_MAX || b < 0 || connect(b, (struct sockaddr *)&to, sizeof(to)) != 0) {
        close(a);
        if (b >= 0)
            close(b);
        return;
    }
    struct pair *p = calloc(1, sizeof(*p));
    if (!p)
        exit(1);
    no_delay(a);
    no_delay(b);
    p->fd[0] = a;
    p->fd[1] = b;
    for (int i = 0; i < 2; i++)
        p->way[i].last = &p->way[i].first;
    pairs[npairs++] = p;
}

static void close_pair(int at)
{
    struct pair *p = pairs[at];

    for (int i = 0; i < 2; i++) {
        close(p->fd[i]);
        for (struct chunk *c = p->way[i].first, *next; c; c = next) {
            next = c->next;
            free(c);
        }
    }
    free(p);
    pairs[at] = pairs[--npairs];
}

static void take(struct pair *p, int from)
{
    static char buf[CHUNK];
    struct way *w = &p->way[from];
    ssize_t n = recv(p->fd[from], buf, sizeof(buf), MSG_DONTWAIT);

    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        w->ended = true;
        return;
    }
    struct chunk *c = malloc(sizeof(*c) + (size_t)n);
    if (!c)
        exit(1);
    *c = (struct chunk){.due_ns = now_ns() + delay_ns, .len = (size_t)n};
    memcpy(c->data, buf, (size_t)n);
    *w->last = c;
    w->last = &c->next;
    w->queued += (size_t)n;
}

/* false: the other side is gone */
static bool give(struct pair *p, int from, int64_t now)
{
    struct way *w = &p->way[from];

    while (w->first && w->first->due_ns <= now) {
        struct chunk *c = w->first;
        ssize_t n = send(p->fd[!from], c->data + c->sent, c->len - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0)
            return errno == EAGAIN || errno == EINTR;
        c->sent += (size_t)n;
        w->queued -= (size_t)n;
        if (c->sent < c->len)
            return true;
        w->first = c->next;
        if (!w->first)
            w->last = &w->first;
        free(c);
    }
    return true;
}

static void turn(int listener, int target)
{
    static struct pollfd fds[1 + 2 * PAIRS_MAX];
    int64_t now = now_ns(), next = INT64_MAX;
    int n = npairs;

    fds[0] = (struct pollfd){.fd = listener, .events = POLLIN};
    for (int i = 0; i < n; i++) {
        for (int from = 0; from < 2; from++) {
            struct way *in = &pairs[i]->way[from], *out = &pairs[i]->way[!from];
            short events = !in->ended && in->queued < QUEUED_MAX ? POLLIN : 0;
            if (out->first && out->first->due_ns <= now)
                events |= POLLOUT;
            else if (out->first && out->first->due_ns < next)
                next = out->first->due_ns;
            fds[1 + 2 * i + from] = (struct pollfd){.fd = events ? pairs[i]->fd[from] : -1, .events = events};
        }
    }
    struct timespec left = {0, 0};
    if (next != INT64_MAX && next > now)
        left = (struct timespec){(next - now) / 1000000000, (next - now) % 1000000000};
    if (ppoll(fds, (nfds_t)(1 + 2 * n), next == INT64_MAX ? NULL : &left, NULL) < 0)
        return;
    now = now_ns();
    for (int i = n - 1; i >= 0; i--) {
        struct pair *p = pairs[i];
        bool alive = true;
        for (int from = 0; from < 2; from++)
            if (fds[1 + 2 * i + from].revents & (POLLIN | POLLERR | POLLHUP))
                take(p, from);
        for (int from = 0; from < 2; from++)
            alive = alive && give(p, from, now);
        bool over = (p->way[0].ended && !p->way[0].first) || (p->way[1].ended && !p->way[1].first);
        if (!alive || over)
            close_pair(i);
    }
    if (fds[0].revents & POLLIN)
        accept_pair(listener, target);
}

static long number(const char *text)
{
    char *end;
    long n = strtol(text, &end, 10);

    if (*end || end == text || n < 0 || n > 10000000) {
        fprintf(stderr, "link: not a number: %s\n", text);
        exit(2);
    }
    return n;
}

int main(int argc, char **argv)
{
    int on = 1;

    if (argc != 4) {
        fprintf(stderr, "usage: %s PORT TARGET_PORT MICROSECONDS\n", argv[0]);
        return 2;
    }
    struct sockaddr_in here = loopback((int)number(argv[1]));
    int target = (int)number(argv[2]);
    delay_ns = (int64_t)number(argv[3]) * 1000;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (listener < 0 || bind(listener, (struct sockaddr *)&here, sizeof(here)) != 0 || listen(listener, 128) != 0) {
        perror("link");
        return 1;
    }
    prctl(PR_SET_TIMERSLACK, 1);
    for (;;)
        turn(listener, target);
}
