/* The bytes on disk.
 *
 *   block   | block_head | record | record | ... | hash >> 32, one per record | offset, one per record |
 *   record  | rec_head | expire_ms 8? | origin 8? | key | payload |
 *   keys    | keys_head | incarnations (palette) | operations in order |
 *
 * A large record is a block with one record. Whatever is read is checked against the size
 * of its entry before it is used: the file may hold anything. */
#include "disk_priv.h"

#define CHECKSUM_SEED 0x7469657263656cULL

size_t record_head_bytes(const struct disk_record *rec)
{
    return sizeof(struct rec_head) + (rec->expire_ms ? 8 : 0) + (rec->origin ? 8 : 0);
}

/* Returns where the payload goes. The checksum is filled in by record_seal(). */
char *record_write_head(char *p, const struct disk_record *rec, size_t payload_len)
{
    struct rec_head h = {
        .hash = rec->key.hash,
        .incarnation = rec->incarnation,
        .klen = rec->key.len,
        .plen = (uint32_t)payload_len,
        .type = (uint8_t)rec->type,
        .flags = (uint8_t)((rec->expire_ms ? REC_EXPIRE : 0) | (rec->origin ? REC_ORIGIN : 0)),
        .version = FORMAT_VERSION,
    };
    memcpy(p, &h, sizeof(h));
    p += sizeof(h);
    if (rec->expire_ms) {
        memcpy(p, &rec->expire_ms, 8);
        p += 8;
    }
    if (rec->origin) {
        memcpy(p, &rec->origin, 8);
        p += 8;
    }
    memcpy(p, rec->key.ptr, rec->key.len);
    return p + rec->key.len;
}

void record_seal(char *p, size_t len, struct pace *pace)
{
    uint64_t sum = hash_bytes_paced(CHECKSUM_SEED, p + 8, len - 8, pace);
    memcpy(p, &sum, 8);
}

static size_t record_len(const struct rec_head *h)
{
    return sizeof(*h) + (h->flags & REC_EXPIRE ? 8 : 0) + (h->flags & REC_ORIGIN ? 8 : 0) + (size_t)h->klen + h->plen;
}

bool record_parse(const char *block, size_t dir, size_t off, struct rec_head *h, struct disk_record *rec)
{
    if (off < sizeof(struct block_head) || off + sizeof(*h) > dir)
        return false;
    memcpy(h, block + off, sizeof(*h));
    if (h->version != FORMAT_VERSION || record_len(h) > dir - off)
        return false;
    const char *p = block + off + sizeof(*h);
    *rec = (struct disk_record){.incarnation = h->incarnation, .type = (enum obj_type)h->type};
    if (h->flags & REC_EXPIRE) {
        rec->expire_ms = (int64_t)load64(p);
        p += 8;
    }
    if (h->flags & REC_ORIGIN) {
        rec->origin = load64(p);
        p += 8;
    }
    rec->key = (struct key){.ptr = p, .len = h->klen, .inc = (uint16_t)h->incarnation, .hash = h->hash};
    rec->payload = SLICE(p + h->klen, h->plen);
    return true;
}

bool record_intact(const char *p, const struct rec_head *h, struct pace *pace)
{
    return hash_bytes_paced(CHECKSUM_SEED, p + 8, record_len(h) - 8, pace) == h->checksum;
}

bool block_parse(struct slice block, struct block_head *head)
{
    if (block.len < sizeof(*head))
        return false;
    memcpy(head, block.ptr, sizeof(*head));
    return head->magic == BLOCK_MAGIC && head->dir >= sizeof(*head) && head->dir <= block.len &&
           (uint64_t)head->count * 8 == block.len - head->dir;
}

uint64_t block_record_hash32(const char *block, const struct block_head *head, uint32_t i)
{
    return load32(block + head->dir + (size_t)i * 4);
}

size_t block_offset(const char *block, const struct block_head *head, uint32_t i)
{
    return load32(block + head->dir + ((size_t)head->count + i) * 4);
}

static bool record_matches(const struct disk *d, const struct disk_read *rd, const struct disk_record *rec)
{
    if (rd->key.ptr == NULL)
        return disk_hash_bits(d, rec->key.hash) == disk_hash_bits(d, rd->key.hash);
    return rec->key.hash == rd->key.hash && rec->incarnation == rd->incarnation &&
           slice_eq(key_slice(&rec->key), key_slice(&rd->key));
}

/* The newest record of the key in the block is the last one. */
enum status block_find(const struct disk *d, struct slice block, const struct disk_read *rd, struct disk_record *rec,
                       uint32_t *number)
{
    struct block_head bh;
    if (!block_parse(block, &bh))
        return ST_CORRUPT;
    uint32_t want = (uint32_t)(rd->key.hash >> 32); /* indexed bits all of them */
    const char *hashes = block.ptr + bh.dir;
    for (uint32_t i = bh.count; i-- > 0;) {
        if (load32(hashes + (size_t)i * 4) != want)
            continue;
        struct rec_head h;
        size_t off = block_offset(block.ptr, &bh, i);
        if (!record_parse(block.ptr, bh.dir, off, &h, rec))
            return ST_CORRUPT;
        if (!record_matches(d, rd, rec))
            continue;
        if (!rd->header_only && !record_intact(block.ptr + off, &h, rd->pace))
            return ST_CORRUPT;
        if (rd->header_only)
            rec->payload = SLICE_NONE;
        *number = i;
        return ST_OK;
    }
    return ST_NOT_FOUND;
}

size_t keys_bytes(uint32_t npal, size_t nops)
{
    return sizeof(struct keys_head) + (size_t)npal * 4 + nops * sizeof(struct disk_op);
}

void keys_write(char *p, const uint32_t *palette, uint32_t npal, const struct disk_op *ops, size_t nops,
                uint32_t min_expire_s, uint32_t written_s)
{
    struct keys_head h = {.magic = KEYS_MAGIC,
                          .nops = (uint32_t)nops,
                          .npal = npal,
                          .min_expire_s = min_expire_s,
                          .written_s = written_s};
    memcpy(p, &h, sizeof(h));
    if (npal != 0)
        memcpy(p + sizeof(h), palette, (size_t)npal * 4);
    if (nops != 0)
        memcpy(p + sizeof(h) + (size_t)npal * 4, ops, nops * sizeof(*ops));
    record_seal(p, keys_bytes(npal, nops), NULL);
}

bool keys_parse(struct slice value, struct keys_view *out)
{
    struct keys_head *h = &out->head;
    if (value.len < sizeof(*h))
        return false;
    memcpy(h, value.ptr, sizeof(*h));
    if (h->magic != KEYS_MAGIC || h->npal > PALETTE_MAX || keys_bytes(h->npal, h->nops) != value.len ||
        hash_bytes(CHECKSUM_SEED, value.ptr + 8, value.len - 8) != h->checksum)
        return false;
    out->palette = value.ptr + sizeof(*h);
    out->ops = out->palette + (size_t)h->npal * 4;
    return true;
}
