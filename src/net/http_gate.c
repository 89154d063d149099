/* The token that the HTTP port asks for, and who needs none. */
#include <netdb.h>
#include <pthread.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <netinet/in.h>

#include <microhttpd.h>

#include "tiercel/digest.h"
#include "tiercel/log.h"
#include "tiercel/stats.h"

#include "net/net_priv.h"

#define DIGEST_LEN 64

struct http_gate {
    pthread_mutex_t lock;
    bool protected_mode;
    bool has_token;
    char token[DIGEST_LEN +
               1]; /* its digest: digests are compared, so that time tells nothing of the token's length either */
    struct stats_block *stats; /* of all threads of the port, under the lock */
};

struct http_gate *http_gate_create(void)
{
    struct http_gate *g = mem_calloc(MEM_OTHER, sizeof(*g));
    pthread_mutex_init(&g->lock, NULL);
    g->protected_mode = true;
    g->stats = stats_block_create();
    return g;
}

void http_gate_destroy(struct http_gate *g)
{
    pthread_mutex_destroy(&g->lock);
    mem_free(MEM_OTHER, g);
}

void http_gate_set(struct http_gate *g, const struct http_access *access)
{
    char digest[DIGEST_LEN + 1];
    sha256_hex(slice_str(access->token), digest);
    pthread_mutex_lock(&g->lock);
    g->protected_mode = access->protected_mode;
    g->has_token = access->token[0] != '\0';
    memcpy(g->token, digest, sizeof(digest));
    pthread_mutex_unlock(&g->lock);
}

static bool is_loopback(const struct sockaddr *sa)
{
    if (sa->sa_family == AF_INET)
        return ntohl(((const struct sockaddr_in *)(const void *)sa)->sin_addr.s_addr) >> 24 == 127;
    if (sa->sa_family != AF_INET6)
        return false;
    const struct in6_addr *a = &((const struct sockaddr_in6 *)(const void *)sa)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(a) || (IN6_IS_ADDR_V4MAPPED(a) && a->s6_addr[12] == 127);
}

bool http_gate_is_local(int fd)
{
    struct sockaddr_storage sa;
    socklen_t len = sizeof(sa);
    return getsockname(fd, (struct sockaddr *)&sa, &len) == 0 && is_loopback((struct sockaddr *)&sa);
}

static const struct sockaddr *peer(struct MHD_Connection *conn)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    return info != NULL ? info->client_addr : NULL;
}

/* In a time that does not depend on where they differ. */
static bool equal(const char *a, const char *b)
{
    unsigned char differ = 0;
    for (int i = 0; i < DIGEST_LEN; i++)
        differ |= (unsigned char)(a[i] ^ b[i]);
    return differ == 0;
}

static bool shows(const char *token, struct MHD_Connection *conn)
{
    static const char scheme[] = "Bearer ";
    const char *given = MHD_lookup_connection_value(conn, MHD_HEADER_KIND, MHD_HTTP_HEADER_AUTHORIZATION);
    char digest[DIGEST_LEN + 1];
    if (given == NULL || strncasecmp(given, scheme, sizeof(scheme) - 1) != 0)
        return false;
    given += sizeof(scheme) - 1;
    given += strspn(given, " ");
    sha256_hex(SLICE(given, strcspn(given, " \t")), digest);
    return equal(token, digest);
}

static unsigned check(struct http_gate *g, struct MHD_Connection *conn)
{
    char token[DIGEST_LEN + 1];
    pthread_mutex_lock(&g->lock);
    bool has_token = g->has_token, protected_mode = g->protected_mode;
    memcpy(token, g->token, sizeof(token));
    pthread_mutex_unlock(&g->lock);
    if (has_token)
        return shows(token, conn) ? 0 : MHD_HTTP_UNAUTHORIZED;
    const struct sockaddr *from = peer(conn);
    return !protected_mode || (from != NULL && is_loopback(from)) ? 0 : MHD_HTTP_FORBIDDEN;
}

unsigned http_gate_check(struct http_gate *g, struct MHD_Connection *conn)
{
    unsigned refused = check(g, conn);
    if (refused == 0)
        return 0;
    const struct sockaddr *from = peer(conn);
    char host[NI_MAXHOST] = "?";
    socklen_t len =
        from != NULL && from->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    if (from != NULL)
        (void)getnameinfo(from, len, host, sizeof(host), NULL, 0, NI_NUMERICHOST);
    pthread_mutex_lock(&g->lock);
    stats_inc(g->stats, STAT_http_refused);
    pthread_mutex_unlock(&g->lock);
    log_warning("http", "/metrics refused to %s: %s", host,
                refused == MHD_HTTP_UNAUTHORIZED ? "no token, or a wrong one" : "protected mode, and no http-token");
    return refused;
}

bool http_gate_check_quietly(struct http_gate *g, struct MHD_Connection *conn)
{
    return check(g, conn) == 0;
}
