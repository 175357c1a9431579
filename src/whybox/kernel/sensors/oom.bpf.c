/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whom the OOM killer kills of a container, who asked for the memory that was not there, and what
 * every group above the victim held and was allowed to hold at that moment.
 */
#define EVENTS_BYTES (1 << 18)
#include "events.h"
#include "scope.h"

#define SIGKILL 9
#define SEND_SIG_PRIV 1

#define MOST_LEVELS 12

typedef struct {
	s64 counter;
} counter;

struct page_counter {
	counter usage;
	u64 max;
} CORE;

struct mem_cgroup {
	struct cgroup_subsys_state css;
	struct page_counter memory;
	struct page_counter memsw; /* in a union with `swap`: which it is, the tree's version tells */
} CORE;

struct percpu_counter {
	s64 count;
} CORE;

/* Since commit f1a7941243c1 ("mm: convert mm's rss stats into percpu_counter") (in v6.2). */
struct mm_struct {
	struct percpu_counter rss_stat[4];
} CORE;

struct mm_rss_stat {
	counter count[4];
} CORE;

struct mm_struct___old {
	struct mm_rss_stat rss_stat;
} CORE;

struct signal_struct {
	short oom_score_adj;
} CORE;

struct task_struct___oom {
	struct mm_struct *mm;
	struct signal_struct *signal;
} CORE;

/* One group, in pages. */
struct level {
	u64 id;
	u64 usage, max, swap_usage, swap_max;
};

struct killed {
	u64 at_ns;
	u32 slot, trigger_slot; /* 0: not in a container that is watched */
	u32 victim_pid, trigger_pid, trigger_tid;
	s32 score_adj;
	s64 rss[4]; /* in pages: of files, anonymous, swapped out, shared memory */
	u32 levels, trigger_levels;
	char victim_comm[16], trigger_comm[16];
	struct level level[MOST_LEVELS]; /* the victim's own group, and upwards */
	u64 trigger_group[MOST_LEVELS];
};

/* Whom this task has just sent a SIGKILL in the kernel's name. */
struct {
	LRU_HASH_OF(u32, u64, 1024);
} condemned SEC(".maps");

SEC("tp_btf/signal_generate")
int on_signal(u64 *context)
{
	u32 tid;
	u64 to;

	if ((s32)context[0] != SIGKILL || context[1] != SEND_SIG_PRIV)
		return 0;
	tid = bpf_get_current_pid_tgid();
	to = context[2];
	bpf_map_update_elem(&condemned, &tid, &to, 0);
	return 0;
}

/* By itself, and so loaded and verified once for both who are asked about. */
__attribute__((noinline)) u32 slot_of_either(u64 task)
{
	return slot_of((struct task_struct *)task);
}

INLINE struct cgroup_subsys_state *memory_of(struct task_struct *task)
{
	struct css_set *set = READ(task, cgroups);
	u32 number = ENUM_VALUE(enum cgroup_subsys_id, memory_cgrp_id);
	struct cgroup_subsys_state *css = NULL;

	bpf_probe_read_kernel(&css, sizeof(css),
			      (void *)__builtin_preserve_access_index(&set->subsys) + 8 * number);
	return css;
}

INLINE u64 id_of(struct cgroup_subsys_state *css)
{
	return READ(READ(READ(css, cgroup), kn), id);
}

INLINE void describe_levels(struct killed *event, struct task_struct *victim)
{
	struct cgroup_subsys_state *css = memory_of(victim);

	event->levels = 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < MOST_LEVELS; i++) {
		struct mem_cgroup *group = (void *)css;
		struct level *level = &event->level[i];

		if (!css)
			break;
		level->id = id_of(css);
		level->usage = READ(group, memory.usage.counter);
		level->max = READ(group, memory.max);
		level->swap_usage = READ(group, memsw.usage.counter);
		level->swap_max = READ(group, memsw.max);
		event->levels = i + 1;
		css = READ(css, parent);
	}
}

INLINE void describe_trigger(struct killed *event, struct task_struct *trigger)
{
	struct cgroup_subsys_state *css = memory_of(trigger);

	event->trigger_pid = READ(trigger, tgid);
	event->trigger_tid = READ(trigger, pid);
	READ_STR(event->trigger_comm, trigger, comm);
	event->trigger_levels = 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < MOST_LEVELS; i++) {
		if (!css)
			break;
		event->trigger_group[i] = id_of(css);
		event->trigger_levels = i + 1;
		css = READ(css, parent);
	}
}

INLINE void describe_victim(struct killed *event, struct task_struct *victim)
{
	struct task_struct___oom *task = (struct task_struct___oom *)victim;
	struct mm_struct *mm = READ(task, mm);
	struct mm_struct___old *old = (struct mm_struct___old *)mm;

	event->victim_pid = READ(victim, tgid);
	event->score_adj = READ(READ(task, signal), oom_score_adj);
	READ_STR(event->victim_comm, victim, comm);
	/* Each kernel's way apart: what the other lacks may not even be named beside it. */
	if (FIELD_EXISTS(mm->rss_stat[0].count)) {
		/* Not in a loop: how far apart they are is put in for constants alone. */
		event->rss[0] = READ(mm, rss_stat[0].count);
		event->rss[1] = READ(mm, rss_stat[1].count);
		event->rss[2] = READ(mm, rss_stat[2].count);
		event->rss[3] = READ(mm, rss_stat[3].count);
	} else if (FIELD_EXISTS(old->rss_stat.count)) {
		for (int i = 0; i < 4; i++)
			event->rss[i] = READ(old, rss_stat.count[i].counter);
	} else {
		for (int i = 0; i < 4; i++)
			event->rss[i] = -1;
	}
}

/*
 * mm/oom_kill.c, __oom_kill_process: the SIGKILL comes right before the mark, from the same task.
 * A victim that was ending already is marked without one, and is nobody's kill. The mark's first
 * argument is the victim's pid, and the task itself since commit 72ba14deb40a ("mm: update
 * mark_victim tracepoints fields") (in v6.8, and in 6.1's stable series); the signal tells both.
 */
SEC("tp_btf/mark_victim")
int on_victim(u64 *context)
{
	u32 tid = bpf_get_current_pid_tgid(), slot, trigger_slot;
	u64 *found = bpf_map_lookup_elem(&condemned, &tid), marked = 0;
	struct task_struct *victim;
	struct killed *event;

	if (!found)
		return 0;
	victim = (struct task_struct *)*found;
	bpf_map_delete_elem(&condemned, &tid);
	/* Where it is a pointer, the verifier lets nobody compare a part of it. */
	bpf_probe_read_kernel(&marked, sizeof(marked), context);
	if (marked != (u64)victim && (u32)marked != (u32)READ(victim, pid))
		return 0;
	slot = slot_of_either((u64)victim);
	trigger_slot = slot_of_either(bpf_get_current_task());
	if (!slot && !trigger_slot)
		return 0;
	event = event_room(sizeof(*event));
	if (!event)
		return 0;
	event->at_ns = bpf_ktime_get_ns();
	event->slot = slot;
	event->trigger_slot = trigger_slot;
	describe_victim(event, victim);
	describe_trigger(event, current_task());
	describe_levels(event, victim);
	event_done(event);
	return 0;
}

LICENSE_SECTION;
