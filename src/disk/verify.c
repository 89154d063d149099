/* LMDB trusts its file: a damaged page makes it read or free what it should not, or abort.
 * So before the file is opened, all its tree pages are checked here: the meta pages, the
 * free list, and the branch and leaf pages of each database (values are not read; they
 * have checksums of their own). A start reads most of these pages anyway. The layout is
 * that of LMDB's data version 1, which all 0.9 releases share. */
#include "disk_priv.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LMDB_MAGIC 0xBEEFC0DEu
#define LMDB_DATA_VERSION 1u
#define PAGE_HEAD 16u
#define P_BRANCH 0x01u
#define P_LEAF 0x02u
#define P_OVERFLOW 0x04u
#define P_META 0x08u
#define P_LEAF2 0x20u
#define F_BIGDATA 0x01u
#define F_SUBDATA 0x02u
#define F_DUPDATA 0x04u
#define DEPTH_MAX 24
#define NO_PAGE UINT64_MAX

struct lmdb_db {
    uint32_t pad;
    uint16_t flags, depth;
    uint64_t branch_pages, leaf_pages, overflow_pages, entries, root;
};

struct lmdb_meta {
    uint32_t magic, version;
    uint64_t address, map_size;
    struct lmdb_db dbs[2]; /* free list, main */
    uint64_t last_page, txnid;
};

struct lmdb_page {
    uint64_t pgno;
    uint16_t pad, flags, lower, upper;
};

struct lmdb_node {
    uint16_t lo, hi, flags, ksize;
};

_Static_assert(sizeof(struct lmdb_db) == 48 && sizeof(struct lmdb_meta) == 136, "LMDB's layout");

enum tree { TREE_FREE, TREE_MAIN, TREE_BLOCKS, TREE_OTHER };

struct verify {
    const char *map;
    size_t page;
    uint64_t pages; /* in use: last_page + 1 */
    uint64_t seen;
};

struct walk {
    enum tree tree;
    bool first;
    uint64_t last_key;
};

static bool verify_tree(struct verify *v, const struct lmdb_db *db, enum tree tree);

static bool verify_overflow(struct verify *v, uint64_t pgno, size_t size, bool look)
{
    uint64_t n = ((uint64_t)size + PAGE_HEAD + v->page - 1) / v->page;
    struct lmdb_page head;
    if (pgno < 2 || pgno >= v->pages || n > v->pages - pgno)
        return false;
    if (!look)
        return true;
    memcpy(&head, v->map + pgno * v->page, sizeof(head));
    return head.pgno == pgno && (head.flags & P_OVERFLOW) && load32(v->map + pgno * v->page + 12) == n;
}

/* An ID list: its length, then page numbers, descending. */
static bool verify_free_list(struct verify *v, const char *p, size_t size)
{
    if (size < 8 || size % 8 != 0 || load64(p) > size / 8 - 1)
        return false;
    uint64_t n = load64(p), last = v->pages;
    for (uint64_t i = 1; i <= n; i++) {
        uint64_t id = load64(p + i * 8);
        if (id < 2 || id >= last)
            return false;
        last = id;
    }
    return true;
}

static bool verify_sub_tree(struct verify *v, const char *key, size_t klen, const char *data, size_t size)
{
    struct lmdb_db db;
    if (size != sizeof(db))
        return false;
    memcpy(&db, data, sizeof(db));
    bool blocks = klen == 4 && (memcmp(key, "data", 4) == 0 || memcmp(key, "keys", 4) == 0);
    if (blocks && db.flags != MDB_INTEGERKEY)
        return false;
    return !(db.flags & (MDB_DUPSORT | MDB_DUPFIXED)) && verify_tree(v, &db, blocks ? TREE_BLOCKS : TREE_OTHER);
}

static bool verify_key_order(struct walk *w, const char *key, size_t klen)
{
    if (w->tree != TREE_BLOCKS && w->tree != TREE_FREE)
        return true;
    if (klen != 8)
        return false;
    uint64_t id = load64(key);
    bool ok = w->first || id > w->last_key;
    w->first = false;
    w->last_key = id;
    return ok;
}

static bool verify_leaf_node(struct verify *v, struct walk *w, const struct lmdb_node *n, const char *body, size_t room)
{
    size_t size = n->lo | (size_t)n->hi << 16;
    const char *data = body + n->ksize;
    if (n->ksize > 511 || !verify_key_order(w, body, n->ksize))
        return false;
    if (n->flags & F_BIGDATA) {
        if (n->flags != F_BIGDATA || room < (size_t)n->ksize + 8)
            return false;
        bool free_list = w->tree == TREE_FREE;
        uint64_t pgno = load64(data);
        return verify_overflow(v, pgno, size, free_list) &&
               (!free_list || verify_free_list(v, v->map + pgno * v->page + PAGE_HEAD, size));
    }
    if (room < n->ksize + size)
        return false;
    if (w->tree == TREE_FREE)
        return n->flags == 0 && verify_free_list(v, data, size);
    if (n->flags & F_SUBDATA)
        return w->tree == TREE_MAIN && n->flags == F_SUBDATA && verify_sub_tree(v, body, n->ksize, data, size);
    return n->flags == 0;
}

static bool verify_page(struct verify *v, struct walk *w, uint64_t pgno, unsigned depth)
{
    struct lmdb_page h;
    if (depth == 0 || pgno < 2 || pgno >= v->pages || ++v->seen > v->pages)
        return false;
    const char *page = v->map + pgno * v->page;
    memcpy(&h, page, sizeof(h));
    bool branch = (h.flags & P_BRANCH) != 0;
    if (h.pgno != pgno || (h.flags & ~0x10u) != (branch ? P_BRANCH : P_LEAF) || branch != (depth > 1))
        return false;
    if (h.lower < PAGE_HEAD || h.lower > h.upper || h.upper > v->page)
        return false;
    unsigned keys = (h.lower - PAGE_HEAD) / 2, least = branch && w->tree != TREE_FREE ? 2 : 1;
    if (keys < least)
        return false;
    for (unsigned i = 0; i < keys; i++) {
        uint16_t at;
        struct lmdb_node n;
        memcpy(&at, page + PAGE_HEAD + (size_t)i * 2, 2);
        if (at < h.upper || at + sizeof(n) > v->page || at % 2 != 0)
            return false;
        memcpy(&n, page + at, sizeof(n));
        size_t room = v->page - at - sizeof(n);
        if (n.ksize > room)
            return false;
        if (branch) {
            uint64_t child = n.lo | (uint64_t)n.hi << 16 | (uint64_t)n.flags << 32;
            if (!verify_page(v, w, child, depth - 1))
                return false;
        } else if (!verify_leaf_node(v, w, &n, page + at + sizeof(n), room)) {
            return false;
        }
    }
    return true;
}

static bool verify_tree(struct verify *v, const struct lmdb_db *db, enum tree tree)
{
    struct walk w = {.tree = tree, .first = true};
    if (db->root == NO_PAGE)
        return db->depth == 0 && db->entries == 0;
    if (db->branch_pages > v->pages || db->leaf_pages > v->pages || db->overflow_pages > v->pages)
        return false;
    return db->depth <= DEPTH_MAX && verify_page(v, &w, db->root, db->depth);
}

static bool verify_meta(const char *page, struct lmdb_meta *m)
{
    struct lmdb_page h;
    memcpy(&h, page, sizeof(h));
    memcpy(m, page + PAGE_HEAD, sizeof(*m));
    return (h.flags & P_META) && m->magic == LMDB_MAGIC && m->version == LMDB_DATA_VERSION;
}

static const char *verify_map(struct verify *v, size_t size)
{
    struct lmdb_meta m[2];
    if (size < PAGE_HEAD + sizeof(m[0]) || !verify_meta(v->map, &m[0]))
        return "not a file of ours";
    v->page = m[0].dbs[0].pad;
    if (v->page < 512 || v->page > 65536 || (v->page & (v->page - 1)) != 0)
        return "damaged: page size";
    if (size < v->page + PAGE_HEAD + sizeof(m[0]))
        return "truncated";
    if (!verify_meta(v->map + v->page, &m[1]) || m[1].dbs[0].pad != v->page)
        return "damaged: meta page";
    const struct lmdb_meta *now = &m[m[1].txnid > m[0].txnid];
    if (now->last_page == 1 && now->txnid == 0)
        return NULL; /* new and empty */
    if (now->last_page > UINT64_MAX / v->page - 2 || (now->last_page + 1) * v->page > size)
        return "truncated";
    v->pages = now->last_page + 1;
    struct lmdb_db free_db = now->dbs[0];
    if (!verify_tree(v, &free_db, TREE_FREE))
        return "damaged: free list";
    return verify_tree(v, &now->dbs[1], TREE_MAIN) ? NULL : "damaged: tree page";
}

const char *verify_file(const char *path)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) != 0 || st.st_size == 0 || !S_ISREG(st.st_mode)) {
        if (fd >= 0)
            close(fd);
        return NULL; /* opening tells */
    }
    struct verify v = {.map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0)};
    close(fd);
    if (v.map == MAP_FAILED)
        return NULL;
    madvise((void *)(uintptr_t)v.map, (size_t)st.st_size, MADV_RANDOM);
    const char *why = verify_map(&v, (size_t)st.st_size);
    munmap((void *)(uintptr_t)v.map, (size_t)st.st_size);
    return why;
}
