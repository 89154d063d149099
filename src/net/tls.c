/* TLS for clients, by OpenSSL on the connection's own descriptor. A context is made of the settings and the files they
 * name, and replaced as a whole when those change; connections keep the one they began with. */
#include "net_priv.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>

#include "tiercel/check.h"
#include "tiercel/log.h"

#define ERR_MAX 256
/* The payload of a record: less room than that would leave decrypted bytes with OpenSSL, where no poll sees them. */
#define RECORD_MAX SSL3_RT_MAX_PLAIN_LENGTH
_Static_assert(NET_READ_LEAST >= RECORD_MAX && NET_READ_BYTES >= RECORD_MAX, "a read takes a whole record");

/* ---- the context ------------------------------------------------------------------------- */

/* The first error that OpenSSL noted, and none remains noted. */
static const char *why(char text[160])
{
    unsigned long e = ERR_get_error();
    const char *reason = ERR_reason_error_string(e);
    snprintf(text, 160, "%s", e == 0 ? "unknown error" : reason ? reason : strerror(ERR_GET_REASON(e)));
    ERR_clear_error();
    return text;
}

static bool failed(char err[ERR_MAX], const char *setting, const char *value)
{
    char text[160];
    snprintf(err, ERR_MAX, "%s %.90s: %.130s", setting, value, why(text));
    return false;
}

static bool set_protocols(SSL_CTX *ctx, const char *list, char err[ERR_MAX])
{
    static const struct {
        const char *name;
        uint64_t off;
    } protocols[] = {{"TLSv1", SSL_OP_NO_TLSv1},
                     {"TLSv1.1", SSL_OP_NO_TLSv1_1},
                     {"TLSv1.2", SSL_OP_NO_TLSv1_2},
                     {"TLSv1.3", SSL_OP_NO_TLSv1_3}};
    uint64_t off = SSL_OP_NO_SSLv3 | SSL_OP_NO_TLSv1 | SSL_OP_NO_TLSv1_1 | SSL_OP_NO_TLSv1_2 | SSL_OP_NO_TLSv1_3;

    if (!list[strspn(list, " ")])
        list = "TLSv1.2 TLSv1.3";
    for (size_t len; list += strspn(list, " "), (len = strcspn(list, " ")) > 0; list += len) {
        size_t i = 0;
        while (i < 4 && !slice_is(SLICE(list, len), protocols[i].name))
            i++;
        if (i == 4) {
            snprintf(err, ERR_MAX, "tls-protocols: %.*s is none of TLSv1, TLSv1.1, TLSv1.2, TLSv1.3", (int)len, list);
            return false;
        }
        off &= ~protocols[i].off;
    }
    SSL_CTX_set_min_proto_version(ctx, 0); /* what the system's configuration has for all */
    SSL_CTX_set_options(ctx, off);
    return true;
}

static int give_pass(char *to, int size, int writing, void *pass)
{
    size_t len = strlen(pass);
    (void)writing;
    if (len > (size_t)size)
        return -1;
    memcpy(to, pass, len);
    return (int)len;
}

static bool set_certificate(SSL_CTX *ctx, const struct conf *conf, char err[ERR_MAX])
{
    char *pass = (char *)(uintptr_t)conf->tls_key_file_pass; /* only read */
    if (!conf->tls_cert_file[0] || !conf->tls_key_file[0]) {
        snprintf(err, ERR_MAX, "tls-port needs tls-cert-file and tls-key-file");
        return false;
    }
    if (SSL_CTX_use_certificate_chain_file(ctx, conf->tls_cert_file) != 1)
        return failed(err, "tls-cert-file", conf->tls_cert_file);
    SSL_CTX_set_default_passwd_cb(ctx, give_pass);
    SSL_CTX_set_default_passwd_cb_userdata(ctx, pass);
    bool ok = SSL_CTX_use_PrivateKey_file(ctx, conf->tls_key_file, SSL_FILETYPE_PEM) == 1;
    SSL_CTX_set_default_passwd_cb_userdata(ctx, NULL);
    if (!ok)
        return failed(err, "tls-key-file", conf->tls_key_file);
    if (SSL_CTX_check_private_key(ctx) != 1)
        return failed(err, "tls-key-file", conf->tls_key_file);
    return true;
}

enum { CLIENTS_NO, CLIENTS_YES, CLIENTS_OPTIONAL }; /* tls-auth-clients */

static bool set_clients(SSL_CTX *ctx, const struct conf *conf, char err[ERR_MAX])
{
    const char *file = conf->tls_ca_cert_file, *dir = conf->tls_ca_cert_dir;
    if (conf->tls_auth_clients == CLIENTS_NO)
        return true;
    if (!file[0] && !dir[0]) {
        snprintf(err, ERR_MAX, "tls-auth-clients needs tls-ca-cert-file or tls-ca-cert-dir (or is to be no)");
        return false;
    }
    if (SSL_CTX_load_verify_locations(ctx, file[0] ? file : NULL, dir[0] ? dir : NULL) != 1)
        return failed(err, file[0] ? "tls-ca-cert-file" : "tls-ca-cert-dir", file[0] ? file : dir);
    if (file[0]) {
        STACK_OF(X509_NAME) *names = SSL_load_client_CA_file(file);
        if (!names)
            return failed(err, "tls-ca-cert-file", file);
        SSL_CTX_set_client_CA_list(ctx, names);
    }
    int must = conf->tls_auth_clients == CLIENTS_YES ? SSL_VERIFY_FAIL_IF_NO_PEER_CERT : 0;
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | must, NULL);
    return true;
}

static bool set_ciphers(SSL_CTX *ctx, const struct conf *conf, char err[ERR_MAX])
{
    if (conf->tls_ciphers[0] && SSL_CTX_set_cipher_list(ctx, conf->tls_ciphers) != 1)
        return failed(err, "tls-ciphers", conf->tls_ciphers);
    if (conf->tls_ciphersuites[0] && SSL_CTX_set_ciphersuites(ctx, conf->tls_ciphersuites) != 1)
        return failed(err, "tls-ciphersuites", conf->tls_ciphersuites);
    if (conf->tls_prefer_server_ciphers)
        SSL_CTX_set_options(ctx, SSL_OP_CIPHER_SERVER_PREFERENCE);
    if (!conf->tls_dh_params_file[0]) {
        SSL_CTX_set_dh_auto(ctx, 1);
        return true;
    }
    BIO *bio = BIO_new_file(conf->tls_dh_params_file, "r");
    EVP_PKEY *dh = bio ? PEM_read_bio_Parameters(bio, NULL) : NULL;
    BIO_free(bio);
    if (!dh || SSL_CTX_set0_tmp_dh_pkey(ctx, dh) != 1) {
        EVP_PKEY_free(dh);
        return failed(err, "tls-dh-params-file", conf->tls_dh_params_file);
    }
    return true;
}

static void set_sessions(SSL_CTX *ctx, const struct conf *conf)
{
    static const unsigned char id[] = "tiercel"; /* without one, clients with certificates cannot resume */
    SSL_CTX_set_session_id_context(ctx, id, sizeof(id) - 1);
    if (!conf->tls_session_caching) {
        SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
        SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET);
        return;
    }
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_SERVER);
    SSL_CTX_sess_set_cache_size(ctx, conf->tls_session_cache_size);
    SSL_CTX_set_timeout(ctx, conf->tls_session_cache_timeout);
}

enum status tls_context_create(const struct conf *conf, struct ssl_ctx_st **out, char err[ERR_MAX])
{
    ERR_clear_error();
    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    CHECK(ctx);
    /* What is left to send stays in the session's chain and may be offered again from another place. Idle connections
     * give their buffers back. A peer that goes without a word has ended, as in TCP. */
    SSL_CTX_set_mode(ctx,
                     SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_options(ctx, SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION | SSL_OP_IGNORE_UNEXPECTED_EOF);
    set_sessions(ctx, conf);
    if (set_protocols(ctx, conf->tls_protocols, err) && set_certificate(ctx, conf, err) &&
        set_clients(ctx, conf, err) && set_ciphers(ctx, conf, err)) {
        *out = ctx;
        return ST_OK;
    }
    SSL_CTX_free(ctx);
    return ST_BAD;
}

void tls_context_free(struct ssl_ctx_st *ctx)
{
    SSL_CTX_free(ctx);
}

enum status net_tls_reload(struct net *net, const struct conf *conf, char err[ERR_MAX])
{
    SSL_CTX *next, *old;
    if (!net->tls)
        return ST_OK;
    if (tls_context_create(conf, &next, err) != ST_OK)
        return ST_BAD;
    pthread_mutex_lock(&net->lock);
    old = net->tls;
    net->tls = next;
    pthread_mutex_unlock(&net->lock);
    SSL_CTX_free(old); /* its connections hold it */
    return ST_OK;
}

/* ---- connections --------------------------------------------------------------------------- */

struct ssl_st *tls_open(struct net *net, int fd)
{
    pthread_mutex_lock(&net->lock);
    SSL *ssl = SSL_new(net->tls);
    pthread_mutex_unlock(&net->lock);
    if (!ssl || SSL_set_fd(ssl, fd) != 1) {
        SSL_free(ssl);
        return NULL;
    }
    SSL_set_accept_state(ssl);
    return ssl;
}

void tls_close(struct ssl_st *ssl)
{
    if (SSL_is_init_finished(ssl)) {
        ERR_clear_error();
        (void)SSL_shutdown(ssl); /* says so, and does not wait for the other side to */
    }
    SSL_free(ssl);
}

bool tls_established(const struct ssl_st *ssl)
{
    return SSL_is_init_finished(ssl);
}

bool tls_wants_write(const struct ssl_st *ssl)
{
    return SSL_want_write(ssl);
}

/* What a call that did not get on comes to: 0, or -1 with errno. */
static ssize_t stopped(SSL *ssl, int rc)
{
    char text[160];
    switch (SSL_get_error(ssl, rc)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE: errno = EAGAIN; return -1;
    case SSL_ERROR_ZERO_RETURN: return 0;
    case SSL_ERROR_SYSCALL:
        ERR_clear_error();
        if (errno == 0)
            return 0;
        return -1;
    default:
        log_verbose("net", "TLS: %s", why(text));
        errno = EPROTO;
        return -1;
    }
}

ssize_t tls_read(struct ssl_st *ssl, void *to, size_t room)
{
    size_t got = 0;
    while (room - got >= RECORD_MAX) {
        ERR_clear_error();
        errno = 0;
        size_t left = room - got;
        int n = SSL_read(ssl, (char *)to + got, left < INT_MAX ? (int)left : INT_MAX);
        if (n <= 0) {
            if (got > 0) /* what stopped it is met again by the next read */
                return (ssize_t)got;
            return stopped(ssl, n);
        }
        got += (size_t)n;
    }
    CHECK(got > 0);
    return (ssize_t)got;
}

ssize_t tls_peek(struct ssl_st *ssl, void *to, size_t room)
{
    ERR_clear_error();
    errno = 0;
    int n = SSL_peek(ssl, to, room < INT_MAX ? (int)room : INT_MAX);
    return n > 0 ? n : stopped(ssl, n);
}

void tls_take(struct ssl_st *ssl, void *to, size_t len)
{
    ERR_clear_error();
    (void)SSL_read(ssl, to, (int)len);
}

bool tls_has_input(const struct ssl_st *ssl)
{
    return SSL_pending(ssl) > 0 || SSL_get_shutdown(ssl) & SSL_RECEIVED_SHUTDOWN;
}

/* Small pieces share a record. One that was cut short is offered again with at least the same bytes: they are at the head
 * of the chain, where only more is added behind them. */
ssize_t tls_write(struct ssl_st *ssl, const struct iovec *iov, int n, size_t *offered)
{
    char record[RECORD_MAX];
    const void *from = record;
    size_t len = 0;

    if (iov[0].iov_len >= sizeof(record)) {
        from = iov[0].iov_base;
        len = sizeof(record);
    }
    for (int i = 0; from == record && i < n && len < sizeof(record); i++) {
        size_t part = iov[i].iov_len < sizeof(record) - len ? iov[i].iov_len : sizeof(record) - len;
        memcpy(record + len, iov[i].iov_base, part);
        len += part;
    }
    *offered = len;
    ERR_clear_error();
    errno = 0;
    int rc = SSL_write(ssl, from, (int)len);
    if (rc > 0)
        return rc;
    ssize_t end = stopped(ssl, rc);
    if (end == 0) { /* the peer takes nothing more */
        errno = EPIPE;
        return -1;
    }
    return end;
}
