/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/*
 * The few kernel types that tracker.bpf.c looks into. Only the members that are
 * read are named: preserve_access_index makes the loader look their offsets up
 * in the running kernel's BTF (CO-RE). A type ending in ___old has members that
 * newer kernels lack.
 */
#ifndef REHOST_KERNEL_H
#define REHOST_KERNEL_H

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

enum { BPF_MAP_TYPE_ARRAY = 2 };
enum { BPF_F_MMAPABLE = 1 << 10 };

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct gendisk {
	int major;
	int first_minor;
};

struct request_queue {
	struct gendisk *disk; /* since 5.15 */
};

struct blk_mq_hw_ctx {
	unsigned int queue_num;
};

struct request {
	struct request_queue *q;
	struct blk_mq_hw_ctx *mq_hctx;
	unsigned int cmd_flags;
	int tag;
	unsigned int __data_len;
	__u64 __sector;
};

struct request___old {
	struct gendisk *rq_disk; /* until 5.16 */
};

#pragma clang attribute pop

/* Of the helpers only the one whose existence is asked for. */
enum bpf_func_id___new { BPF_FUNC_loop___new = 181 };

/* enum req_op: these values have been the same since 4.10. */
enum {
	OP_WRITE = 1,
	OP_DISCARD = 3,
	OP_SECURE_ERASE = 5,
	OP_WRITE_SAME = 7, /* until 5.17; 7 is ZONE_APPEND since 6.0 */
	OP_WRITE_ZEROES = 9,
	OP_ZONE_APPEND_OLD = 13, /* 13 is ZONE_CLOSE since 6.0, which writes nothing and has no length */
	OP_ZONE_FIRST = 15, /* ZONE_RESET and others, numbered differently from kernel to kernel */
	OP_ZONE_LAST = 19,
	OP_SCSI_OUT = 33, /* until 5.13 */
	OP_DRV_OUT = 35,
	OP_MASK = 0xff,
};

#endif
