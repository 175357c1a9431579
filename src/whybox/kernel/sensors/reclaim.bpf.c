/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How long a container's tasks are held up for memory: they free pages themselves before they get
 * one, they wait until dirty pages are written, or they move pages for a larger one.
 *
 * Kernel threads do that too, but then nobody waits: they are in no container.
 */
#include "events.h"
#include "scope.h"

#define SLOTS 32
#define MOST_WATCHED 32

enum kind {
	DIRECT, /* the machine, or a node of it, is short of free pages */
	GROUP, /* a control group is at its limit */
	DIRTY, /* too much is not yet written */
	COMPACT, /* the free pages lie too far apart for what is wanted */
	THROTTLED, /* reclaim waits for others; a part of the first two */
	KINDS = 8,
};

/* One for each container and kind, of each CPU its own. `bucket[n]`: stalls of 2^n to 2^(n+1) us. */
struct stalls {
	u64 count, sum_ns, longest_ns, pages;
	u32 bucket[SLOTS];
};

struct {
	PERCPU_ARRAY_OF(struct stalls, MOST_WATCHED * KINDS);
} stalls SEC(".maps");

struct who {
	u32 slot, kind, pid;
};

struct share {
	u64 count, sum_ns, longest_ns, pages;
	char comm[16];
};

struct {
	LRU_HASH_OF(struct who, struct share, 4096);
} shares SEC(".maps");

struct running {
	u32 tid, kind;
};

struct begun {
	u64 at_ns;
	u32 order, gfp;
};

/* A storm of tasks that all reclaim at once pushes the oldest out. */
struct {
	LRU_HASH_OF(struct running, struct begun, 16384);
} begun SEC(".maps");

/* Single stalls are told from this length on. */
struct {
	ARRAY_OF(u64, 1);
} slower SEC(".maps");

struct stall {
	u64 at_ns, lasted_ns, pages;
	u32 slot, kind, pid, tid, order, gfp;
	char comm[16];
	char device[32];
};

INLINE void share_of(u32 slot, u32 kind, u64 lasted, u64 pages)
{
	struct who key = { .slot = slot, .kind = kind };
	struct share *known, fresh = {};

	key.pid = bpf_get_current_pid_tgid() >> 32;
	known = bpf_map_lookup_elem(&shares, &key);
	if (known) {
		__sync_fetch_and_add(&known->count, 1);
		__sync_fetch_and_add(&known->sum_ns, lasted);
		/* To add a constant 0 is compiled to an atomic OR, which 5.10 does not know. */
		if (pages)
			__sync_fetch_and_add(&known->pages, pages);
		if (lasted > known->longest_ns)
			known->longest_ns = lasted;
		return;
	}
	fresh.count = 1;
	fresh.sum_ns = fresh.longest_ns = lasted;
	fresh.pages = pages;
	READ_STR(fresh.comm, READ(current_task(), group_leader), comm);
	bpf_map_update_elem(&shares, &key, &fresh, 0);
}

/* Add one to the sums; whether it is long enough to be told. */
INLINE u32 count_stall(u32 slot, u32 kind, u64 lasted, u64 pages)
{
	u32 at = (slot & (MOST_WATCHED - 1)) * KINDS + (kind & (KINDS - 1)), bucket, zero = 0;
	struct stalls *sums = bpf_map_lookup_elem(&stalls, &at);
	u64 *least = bpf_map_lookup_elem(&slower, &zero);

	if (!sums || !least)
		return 0;
	bucket = log2(lasted / 1000);
	sums->bucket[bucket < SLOTS ? bucket : SLOTS - 1]++;
	sums->count++;
	sums->sum_ns += lasted;
	sums->pages += pages;
	if (lasted > sums->longest_ns)
		sums->longest_ns = lasted;
	share_of(slot, kind, lasted, pages);
	return lasted >= *least;
}

INLINE struct stall *stall_event(u32 slot, u32 kind, u64 lasted, u64 pages)
{
	struct stall *event = event_room(sizeof(*event));

	if (!event)
		return NULL;
	event->at_ns = bpf_ktime_get_ns();
	event->lasted_ns = lasted;
	event->pages = pages;
	event->slot = slot;
	event->kind = kind;
	event->pid = bpf_get_current_pid_tgid() >> 32;
	event->tid = bpf_get_current_pid_tgid();
	event->order = event->gfp = 0;
	event->device[0] = 0;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	return event;
}

INLINE void begins(u32 kind, u32 order, u32 gfp)
{
	struct running key = { .kind = kind };
	struct begun value = { .order = order, .gfp = gfp };

	if (!slot_of(current_task()))
		return;
	key.tid = bpf_get_current_pid_tgid();
	value.at_ns = bpf_ktime_get_ns();
	bpf_map_update_elem(&begun, &key, &value, 0);
}

INLINE void ends(u32 kind, u64 pages)
{
	struct running key = { .kind = kind };
	struct begun *found, since;
	struct stall *event;
	u64 lasted;
	u32 slot;

	key.tid = bpf_get_current_pid_tgid();
	found = bpf_map_lookup_elem(&begun, &key);
	if (!found)
		return;
	since = *found;
	bpf_map_delete_elem(&begun, &key);
	slot = slot_of(current_task());
	if (!slot)
		return;
	lasted = bpf_ktime_get_ns() - since.at_ns;
	if (!count_stall(slot, kind, lasted, pages))
		return;
	event = stall_event(slot, kind, lasted, pages);
	if (!event)
		return;
	event->order = since.order;
	event->gfp = since.gfp;
	event_done(event);
}

/*
 * The arguments were (order, gfp); 7.3 has (gfp, order) (its BTF). Who reclaims directly is allowed
 * to, which is a bit of gfp that is larger than any order.
 */
INLINE void reclaim_begins(u32 kind, u64 *context)
{
	u32 one = context[0], other = context[1];

	begins(kind, one < other ? one : other, one < other ? other : one);
}

SEC("tp_btf/mm_vmscan_direct_reclaim_begin")
int on_direct_begin(u64 *context)
{
	reclaim_begins(DIRECT, context);
	return 0;
}

SEC("tp_btf/mm_vmscan_direct_reclaim_end")
int on_direct_end(u64 *context)
{
	ends(DIRECT, context[0]);
	return 0;
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_begin")
int on_group_begin(u64 *context)
{
	reclaim_begins(GROUP, context);
	return 0;
}

SEC("tp_btf/mm_vmscan_memcg_reclaim_end")
int on_group_end(u64 *context)
{
	ends(GROUP, context[0]);
	return 0;
}

/* Each zone by itself. Its arguments differ between kernels, and none is needed. */
SEC("tp_btf/mm_compaction_begin")
int on_compaction_begin(u64 *context)
{
	begins(COMPACT, 0, 0);
	return 0;
}

SEC("tp_btf/mm_compaction_end")
int on_compaction_end(u64 *context)
{
	ends(COMPACT, 0);
	return 0;
}

/* Since commit 8cd7c588decf ("mm/vmscan: throttle reclaim until some writeback completes if
 * congested") (in v5.16): node, timeout and wait in microseconds, reason. */
SEC("tp_btf/mm_vmscan_throttled")
int on_throttled(u64 *context)
{
	u32 slot = slot_of(current_task());

	if (slot)
		count_stall(slot, THROTTLED, (u64)(u32)context[2] * 1000, 0);
	return 0;
}

/* The record, whose fields move from kernel to kernel; the tracepoint's arguments do so more. */
struct trace_event_raw_balance_dirty_pages {
	char bdi[32];
	long pause; /* in ms; 0 and below: it may go on at once */
} CORE;

/* Told just before the pause, which nothing but a fatal signal cuts short (mm/page-writeback.c,
 * balance_dirty_pages: io_schedule_timeout in TASK_KILLABLE). */
SEC("tracepoint/writeback/balance_dirty_pages")
int on_dirty(struct trace_event_raw_balance_dirty_pages *record)
{
	s64 pause = record->pause;
	struct stall *event;
	u32 slot;
	u64 lasted;

	if (pause <= 0)
		return 0;
	slot = slot_of(current_task());
	if (!slot)
		return 0;
	lasted = (u64)pause * 1000000;
	if (!count_stall(slot, DIRTY, lasted, 0))
		return 0;
	event = stall_event(slot, DIRTY, lasted, 0);
	if (!event)
		return 0;
	bpf_probe_read_kernel_str(event->device, sizeof(event->device), record->bdi);
	event_done(event);
	return 0;
}

LICENSE_SECTION;
