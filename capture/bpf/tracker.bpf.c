//go:build ignore

/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * Which blocks of which disks change: three programs on the block layer's
 * request tracepoints, and a spare one. docs/capture.md says what user space does with their
 * marks and why the order of every step below matters.
 *
 * A granule is 2^shift sectors. Disks lie one behind the other in the dirty
 * bitmap, each from a word of its own (word0).
 */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define MAX_DISKS 64
#define FILTER (1u << 20) /* bytes a generation */
#define UNROLLED 6         /* words; a request of more on a kernel without bpf_loop dirties the disk */
#define WIDE 1024         /* granules; a request of more conflicts with everything */
#define CPUS 16           /* counters are spread over these to keep CPUs apart */
#define HOMES 256
#define PRESENT (1ULL << 63)

struct disk {
	__u64 dev;      /* major << 32 | first minor */
	__u64 granules;
	__u32 word0;    /* the disk's first word in dirty */
	__u32 slot0;    /* the disk's first entry in pend */
	__u32 queues, tags;
	__u32 salt;     /* where the disk's granule 0 is in the filter */
	__u32 pad;
};

const volatile __u32 ndisks;
const volatile __u32 shift = 3;
const volatile __u8 queue_first; /* before 5.11: issue and requeue get (q, rq) */
const volatile struct disk disks[MAX_DISKS];
const volatile __u8 homes[HOMES]; /* by home(dev): 1 and one of the disks that are at home there, or 0 where none is */

struct control {
	volatile __u32 gen;
	__u32 pad0;
	volatile __u8 wide[2];  /* of a generation: conflicts with everything */
	__u8 pad1[6];
	__u64 alone;            /* user space's: skips of block_rq_issue until its spare was there */
	__u8 pad2[40];
	volatile __u64 whole[MAX_DISKS]; /* everything on the disk is dirty */
	volatile __u8 filter[2 * FILTER];
};

struct counters {
	__u64 issued, completed, requeued;
	__u64 bytes;            /* written or discarded, as diskstats count them */
	__u64 lost_completions; /* found by pend and made good */
	__u64 lost_issues;      /* a completion whose issue was not seen */
	__u64 passthrough;      /* writes that say not where they go */
	__u64 out_of_range;     /* sector, queue or tag beyond what was announced */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control);
} control SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* words; set by the loader */
	__type(key, __u32);
	__type(value, __u64);
} dirty SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* entries; set by the loader */
	__type(key, __u32);
	__type(value, __u64); /* PRESENT | first granule << 20 | granules - 1 */
} pend SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, CPUS); /* times the disks; set by the loader */
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

static __always_inline struct counters *counters_of(__u32 d)
{
	__u32 k = d * CPUS + (bpf_get_smp_processor_id() & (CPUS - 1));
	return bpf_map_lookup_elem(&counters, &k);
}

/* ---- dirty */

struct marking {
	__u64 first, last; /* granules */
	__u32 word0;
};

static __always_inline long mark_in(__u64 i, struct marking *m)
{
	__u64 w = (m->first >> 6) + i, mask = ~0ULL;
	if (m->first > w << 6)
		mask &= ~0ULL << (m->first & 63);
	if (m->last < (w << 6 | 63))
		mask &= ~0ULL >> (63 - (m->last & 63));
	__u32 k = m->word0 + (__u32)w;
	__u64 *p = bpf_map_lookup_elem(&dirty, &k);
	if (!p)
		return 1;
	/* Leaving a set bit alone is safe here, at completion: whoever takes the bit
	 * after this look reads the disk after the data landed. */
	if ((*(volatile __u64 *)p & mask) != mask)
		__sync_fetch_and_or(p, mask);
	return 0;
}

static long mark_word(__u64 i, struct marking *m) { return mark_in(i, m); }

static __always_inline void mark(struct control *c, __u32 d, __u32 word0, __u64 first, __u64 last)
{
	struct marking m = { .first = first, .last = last, .word0 = word0 };
	__u64 n = (last >> 6) - (first >> 6) + 1;

	if (n == 1) {
		mark_in(0, &m); /* most are; without a call */
	} else if (bpf_core_enum_value_exists(enum bpf_func_id___new, BPF_FUNC_loop___new)) {
		bpf_loop(n, mark_word, &m, 0);
	} else if (n <= UNROLLED) {
		/* Written out: the verifier of 6.1 takes no loop whose body ends
		 * in a call, not even where this branch is dead. */
#pragma clang loop unroll(full)
		for (__u64 i = 0; i < UNROLLED; i++)
			if (i < n)
				mark_in(i, &m);
	} else {
		c->whole[d & (MAX_DISKS - 1)] = 1;
	}
}

/* ---- the conflict filter */

static __always_inline __u64 slot(__u64 hash)
{
	__u64 k = hash & (FILTER - 1);

	asm volatile("" : "+r"(k)); /* keeps a sum with it a sum: 6.1's verifier loses the bounds of an OR */
	return k;
}

/* Functions that are not static are verified once, for any argument, and not again
 * on every path that calls them. */
__noinline int filter_many(__u32 gen, __u32 salt, __u64 first, __u64 last)
{
	__u32 zero = 0;
	struct control *c = bpf_map_lookup_elem(&control, &zero);
	__u64 n = last - first + 1;
	__u64 h = (__u32)first + salt, g = (__u64)(gen & 1) * FILTER;

	if (!c)
		return 0;
	if (n > WIDE) {
		c->wide[gen & 1] = 1;
		return 0;
	}
	for (__u32 i = 0; i < WIDE; i++) {
		if (i >= n)
			break;
		c->filter[g + slot(h + i)] = 1;
	}
	return 0;
}

static __always_inline void filter(struct control *c, __u32 gen, __u32 salt, __u64 first, __u64 last)
{
	if (first == last)
		c->filter[(__u64)(gen & 1) * FILTER + slot((__u32)first + salt)] = 1; /* most are; without a call */
	else
		filter_many(gen, salt, first, last);
}

/* ---- requests */

static __always_inline int changes_content(__u32 op)
{
	return op == OP_WRITE || op == OP_DISCARD || op == OP_SECURE_ERASE || op == OP_WRITE_SAME ||
	       op == OP_WRITE_ZEROES || op == OP_ZONE_APPEND_OLD || (op >= OP_ZONE_FIRST && op <= OP_ZONE_LAST);
}

__noinline int find_disk(__u64 dev)
{
	for (int i = 0; i < MAX_DISKS; i++) {
		if (i >= ndisks)
			break;
		if (disks[i].dev == dev)
			return i;
	}
	return -1;
}

static __always_inline __u32 home(__u32 major, __u32 minor) { return (major * 37 + minor) & (HOMES - 1); }

/* The programs run for every disk of the machine. That one is not tracked is known
 * here without a search and without a call. */
static __always_inline int disk_at(__u32 major, __u32 minor)
{
	__u64 dev = (__u64)major << 32 | minor;
	__u8 at = homes[home(major, minor)];

	if (!at)
		return -1;
	at = (at - 1) & (MAX_DISKS - 1);
	return disks[at].dev == dev ? at : find_disk(dev);
}

static __always_inline int disk_of(struct request *rq)
{
	struct gendisk *disk;

	if (bpf_core_field_exists(rq->q->disk))
		disk = rq->q->disk;
	else
		disk = ((struct request___old *)rq)->rq_disk;
	if (!disk)
		return -1;
	return disk_at(disk->major, disk->first_minor);
}

/* What a request is to the tracker. */
struct seen {
	__u32 disk, word0;
	__u64 first, last; /* granules */
	struct counters *n;
};

static __always_inline int look(struct request *rq, struct seen *s)
{
	__u32 op = rq->cmd_flags & OP_MASK;
	int passthrough = op == OP_DRV_OUT || op == OP_SCSI_OUT;

	if (!passthrough && !changes_content(op))
		return 0;
	int d = disk_of(rq);
	if (d < 0 || d >= MAX_DISKS)
		return 0;
	s->disk = d;
	s->word0 = disks[d].word0;
	s->n = counters_of(d);
	if (!s->n)
		return 0;
	if (passthrough) {
		__sync_fetch_and_add(&s->n->passthrough, 1);
		return 0;
	}
	__u64 sector = rq->__sector, bytes = rq->__data_len;
	if (!bytes)
		return 0; /* a flush, or the end of one */
	s->first = sector >> shift;
	s->last = (sector + ((bytes + 511) >> 9) - 1) >> shift;
	if (s->last >= disks[d].granules) {
		__sync_fetch_and_add(&s->n->out_of_range, 1);
		if (s->first >= disks[d].granules)
			return 0;
		s->last = disks[d].granules - 1;
	}
	return 1;
}

static __always_inline __u64 *pending(struct request *rq, struct seen *s)
{
	__u32 d = s->disk & (MAX_DISKS - 1), q = rq->mq_hctx->queue_num, t = rq->tag;

	if (q >= disks[d].queues || t >= disks[d].tags)
		return 0;
	__u32 k = disks[d].slot0 + q * disks[d].tags + t;
	return bpf_map_lookup_elem(&pend, &k);
}

/* An entry of the pending table. Longer ranges than 4 GiB of blocks are cut: no
 * request has one. */
#define LONGEST 0xfffffULL

static __always_inline __u64 entry(struct seen *s)
{
	__u64 more = s->last - s->first;

	return PRESENT | s->first << 20 | (more < LONGEST ? more : LONGEST);
}

static __always_inline __u64 first_of(__u64 entry) { return (entry & ~PRESENT) >> 20; }
static __always_inline __u64 last_of(__u64 entry) { return first_of(entry) + (entry & LONGEST); }

/* All of this may be done twice for one beginning. Only a count may not be: an entry
 * with the request's own range tells the spare that the program was there before
 * it, or that a request of long ago left it. So it says nothing of the filter. */
static __always_inline int issue(struct request *rq, int spare)
{
	__u32 zero = 0;
	struct control *c = bpf_map_lookup_elem(&control, &zero);
	struct seen s;
	int again = 0;

	if (!c)
		return 0;
	__u32 gen = c->gen; /* first: "issued at" means this read */
	if (!look(rq, &s))
		return 0;
	filter(c, gen, disks[s.disk & (MAX_DISKS - 1)].salt, s.first, s.last);
	__u64 *p = pending(rq, &s);
	if (p) {
		/* First marked, then forgotten: whoever flips in between finds it in one of them. */
		__u64 old = *(volatile __u64 *)p;
		again = spare && old == entry(&s);
		if (old && !again) {
			mark(c, s.disk, s.word0, first_of(old), last_of(old));
			__sync_fetch_and_add(&s.n->lost_completions, 1);
		}
		/* A full barrier besides: the filter is visible before the driver is told. */
		__sync_lock_test_and_set(p, entry(&s));
	} else {
		__sync_fetch_and_add(&s.n->out_of_range, 1);
	}
	if (!again)
		__sync_fetch_and_add(&s.n->issued, 1);
	return 0;
}

static __always_inline int requeue(struct request *rq)
{
	__u32 zero = 0;
	struct control *c = bpf_map_lookup_elem(&control, &zero);
	struct seen s;

	if (!c || !look(rq, &s))
		return 0;
	__u64 *p = pending(rq, &s);
	if (p) {
		/* It may be a request's of before, whose completion was not seen: of another range, where
		 * this one's issue was not seen either, or of the same, which the spare took for its own. */
		__u64 old = *(volatile __u64 *)p;
		if (old)
			mark(c, s.disk, s.word0, first_of(old), last_of(old));
		__sync_lock_test_and_set(p, 0);
	} else {
		/* With an I/O scheduler the tag is given back before this tracepoint: then the entry
		 * stays, and whoever gets the tag next marks its range and counts a lost completion.
		 * It is none, and is taken off here. */
		__sync_fetch_and_add(&s.n->lost_completions, -1);
	}
	__sync_fetch_and_add(&s.n->requeued, 1);
	return 0;
}

SEC("tp_btf/block_rq_issue")
int block_rq_issue(__u64 *ctx)
{
	return issue(queue_first ? (struct request *)ctx[1] : (struct request *)ctx[0], 0);
}

/* The kernel skips a program that runs already on that CPU, but not its copy. */
SEC("tp_btf/block_rq_issue")
int block_rq_issue_spare(__u64 *ctx)
{
	return issue(queue_first ? (struct request *)ctx[1] : (struct request *)ctx[0], 1);
}

SEC("tp_btf/block_rq_requeue")
int block_rq_requeue(__u64 *ctx)
{
	return requeue(queue_first ? (struct request *)ctx[1] : (struct request *)ctx[0]);
}

SEC("tp_btf/block_rq_complete")
int block_rq_complete(__u64 *ctx)
{
	struct request *rq = (struct request *)ctx[0];
	__u32 done = (__u32)ctx[2], zero = 0, len = rq->__data_len;
	struct control *c = bpf_map_lookup_elem(&control, &zero);
	struct seen s;

	if (!c || !look(rq, &s))
		return 0;
	mark(c, s.disk, s.word0, s.first, s.last); /* also after an error: who knows what landed */
	__sync_fetch_and_add(&s.n->bytes, done < len ? done : len);
	if (done < len)
		return 0; /* the rest is still in flight */
	__u64 *p = pending(rq, &s);
	if (p) {
		/* It was issued with this range, or, after a part was done, one up to its end. Another
		 * is of a request before, whose completion was not seen: nor was this one's issue. */
		__u64 old = *(volatile __u64 *)p;
		int others = old && (first_of(old) > s.first || (last_of(old) != s.last && (old & LONGEST) != LONGEST));
		if (old && old != entry(&s)) /* of a part, too: another's may end where this one does */
			mark(c, s.disk, s.word0, first_of(old), last_of(old));
		if (others)
			__sync_fetch_and_add(&s.n->lost_completions, 1);
		if (!old || others)
			__sync_fetch_and_add(&s.n->lost_issues, 1);
		__sync_lock_test_and_set(p, 0);
	}
	__sync_fetch_and_add(&s.n->completed, 1);
	return 0;
}
