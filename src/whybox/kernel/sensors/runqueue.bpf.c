/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How long a container's tasks wait for a CPU, and behind whom.
 *
 * Nothing is stamped: when a task is switched to, the kernel's own note of when it was queued
 * (sched_info.last_queued, by the run queue's clock) is still there; so it is one program, on one
 * tracepoint, and no stamp can be lost.
 */
#include "scope.h"

#define SLOTS 32
#define MOST_WATCHED 256

struct rq {
	u64 clock;
} CORE;

struct cfs_rq {
	struct rq *rq;
} CORE;

struct sched_entity {
	struct cfs_rq *cfs_rq;
} CORE;

struct task_struct___queued {
	struct sched_entity se;
} CORE;

/* One for each container, of each CPU its own. `bucket[n]` counts waits of 2^n to 2^(n+1) us. */
struct waits {
	u64 sum_ns, longest_ns;
	u32 bucket[SLOTS];
};

struct {
	PERCPU_ARRAY_OF(struct waits, MOST_WATCHED);
} waits SEC(".maps");

/* Who ran when a task of a container had to wait: the task that left the CPU to it. */
struct ahead {
	u32 slot, pid;
};

struct behind {
	u64 count, sum_ns, group;
	char comm[16];
};

struct {
	LRU_HASH_OF(struct ahead, struct behind, 4096);
} behind SEC(".maps");

/* Waits shorter than this are nobody's fault. */
#define WORTH_A_NAME_NS 100000

INLINE void note_who(u32 slot, struct task_struct *prev, u64 waited)
{
	struct ahead key = { .slot = slot, .pid = READ(prev, tgid) };
	struct behind *known = bpf_map_lookup_elem(&behind, &key), fresh = {};

	if (known) {
		__sync_fetch_and_add(&known->count, 1);
		__sync_fetch_and_add(&known->sum_ns, waited);
		return;
	}
	fresh.count = 1;
	fresh.sum_ns = waited;
	fresh.group = READ(READ(READ(READ(prev, cgroups), dfl_cgrp), kn), id);
	READ_STR(fresh.comm, prev, comm);
	bpf_map_update_elem(&behind, &key, &fresh, 0);
}

/* Most waits are short, and a division takes long: of a number below 2^32 it is a product. */
INLINE u32 bucket_of(u64 waited)
{
	if (waited < 2000)
		return 0;
	return log2(waited >> 32 ? waited / 1000 : waited * 274877907 >> 38);
}

SEC("tp_btf/sched_switch")
int on_switch(u64 *context)
{
	struct task_struct *prev = (struct task_struct *)context[1];
	struct task_struct *next = (struct task_struct *)context[2];
	u64 queued = next->sched_info.last_queued, waited;
	struct memory *memory = memory_of_groups();
	struct waits *mine;
	u32 slot, bucket;

	if (!memory)
		return 0;
	memory->runs++; /* it is timed only at first */
	if (!queued)
		return 0;
	slot = slot_of_typed(next, memory);
	if (!slot)
		return 0;
	slot &= MOST_WATCHED - 1;
	mine = bpf_map_lookup_elem(&waits, &slot);
	if (!mine)
		return 0;
	waited = ((struct task_struct___queued *)next)->se.cfs_rq->rq->clock - queued;
	if ((s64)waited < 0)
		waited = 0;
	bucket = bucket_of(waited);
	mine->bucket[bucket < SLOTS ? bucket : SLOTS - 1]++;
	mine->sum_ns += waited;
	if (waited > mine->longest_ns)
		mine->longest_ns = waited;
	if (waited >= WORTH_A_NAME_NS && prev->pid)
		note_who(slot, prev, waited);
	return 0;
}

LICENSE_SECTION;
