/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How the denial of a system call is told: counted by what is alike, and the first few of each
 * process in a second as events.
 */
#ifndef WHYBOX_DENIALS_H
#define WHYBOX_DENIALS_H

#include "events.h"

#define SECOND 1000000000ULL
#define MOST_TOLD 3 /* denials of one kind by one process in a second */

enum kind {
	SLOW, /* no denial */
	SECCOMP, /* left, never entered, and a filter is in force */
	SKIPPED, /* left, never entered, without a filter: a tracer skipped it */
	DOUBTED, /* left, and nothing is known of the task: seccomp, or it began before */
	ENTERED, /* entered and refused */
	TRAPPED, /* seccomp sent SIGSYS, and the task lived on */
	KILLED, /* seccomp ended it */
};

struct denial {
	u32 index;
	u16 error, kind;
	u64 refused, overridden, elsewhere;
	s32 stack;
	u32 unused;
};

struct denials {
	u64 count;
	u32 pid, unused;
	char comm[16];
};

struct {
	HASH_OF(struct denial, struct denials, 4096);
} denied SEC(".maps");

struct whose {
	u32 pid;
	u32 index;
	u32 kind;
};

struct pace {
	u64 since_ns, count;
};

struct {
	LRU_HASH_OF(struct whose, struct pace, 4096);
} paces SEC(".maps");

struct told {
	u64 at_ns, took_ns;
	struct denial what;
	s64 result;
	u32 pid, tid;
	char comm[16];
};

INLINE bool often_enough(u32 pid, const struct denial *what, u64 now)
{
	struct whose key = { .pid = pid, .index = what->index, .kind = what->kind };
	struct pace *pace = bpf_map_lookup_elem(&paces, &key), fresh = { .since_ns = now };

	if (!pace || now - pace->since_ns > SECOND) {
		bpf_map_update_elem(&paces, &key, &fresh, 0);
		return false;
	}
	if (pace->count >= MOST_TOLD - 1)
		return true;
	__sync_fetch_and_add(&pace->count, 1);
	return false;
}

INLINE void tell(u64 who, const struct denial *what, s64 result, u64 now, u64 took)
{
	struct told *event = event_room(sizeof(*event));

	if (!event)
		return;
	event->at_ns = now;
	event->took_ns = took;
	event->what = *what;
	event->result = result;
	event->pid = who >> 32;
	event->tid = who;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	event_done(event);
}

static __attribute__((noinline)) int note_denial(u64 who, const struct denial *what, s64 result)
{
	struct denials *known, fresh = {};
	struct denial key;
	u64 now = bpf_ktime_get_ns();

	if (!what)
		return 0;
	key = *what;
	known = bpf_map_lookup_elem(&denied, &key);
	if (known) {
		__sync_fetch_and_add(&known->count, 1);
	} else {
		fresh.count = 1;
		fresh.pid = who >> 32;
		bpf_get_current_comm(fresh.comm, sizeof(fresh.comm));
		if (bpf_map_update_elem(&denied, &key, &fresh, 0))
			count_lost();
	}
	if (!often_enough(who >> 32, &key, now))
		tell(who, &key, result, now, 0);
	return 0;
}

#endif
