/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where a container's tasks wait, and how long: from the switch away from a task that does not want
 * to run to the switch back to it (so the wait for a CPU after it was woken is in it).
 *
 * The kernel's stack of a task that sleeps does not change, so it is walked when the wait is over,
 * and only if that was worth it: the many short waits cost two look-ups each. The stack in user
 * space can be walked only while the task is current, before the wait: it is taken unless the
 * task's last wait was a short one.
 */
#include "events.h"
#include "image.h"
#include "scope.h"

#define DEPTH 127
#define FRAMES 32

/* include/linux/sched.h: the same since v5.0, but those marked. */
#define TASK_STOPPED_OR_TRACED 0x0c
#define TASK_DEAD 0x80
#define TASK_NOLOAD 0x400
#define TASK_RTLOCK_WAIT 0x1000 /* Since v5.15; nothing before. */
#define TASK_FROZEN 0x8000 /* Since v6.1; nothing before. */

enum how { SLEEPS, STUCK, STOPPED, HOWS };

struct cfs_rq {
	struct rq *rq;
} CORE;

struct rq {
	u64 clock;
} CORE;

struct sched_entity {
	struct cfs_rq *cfs_rq;
} CORE;

struct sched_info___arrival {
	u64 last_arrival;
} CORE;

struct task_struct___off {
	struct sched_entity se;
	struct sched_info___arrival sched_info;
	u8 on_cpu; /* an int once, one byte on 7.3 (measured): the low one, for bpfel alone */
} CORE;

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} CORE;

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} CORE;

/* The tracepoint's arguments since commit 9c2136be0878 ("sched/tracing: Append prev_state to tp
 * args instead") (v5.18). That it exists means: with just these arguments. */
typedef void (*btf_trace_sched_switch)(void *, _Bool, struct task_struct *, struct task_struct *,
				       unsigned int);

/* What a task of the container waits for: of every one that did since the beginning. */
struct waiting {
	u64 since_ns; /* 0: it runs, or could */
	s32 user;
	u32 how;
	u32 before; /* it waited when the trace began */
	u32 brief; /* its last wait was not worth a stack */
};

struct {
	HASH_OF(u32, struct waiting, 16384);
} waiting SEC(".maps");

/* Those who wait alike: one task in one way with one stack. */
struct wait {
	u32 tid, tgid, exec, how;
	s32 user;
	u32 unused;
	u64 frames[FRAMES];
};

struct waited {
	u64 count, sum_ns, longest_ns;
};

struct {
	HASH_OF(struct wait, struct waited, 16384);
} waits SEC(".maps");

/* Waits without a place: the short ones, and from HOWS on those for which `waits` has no room. */
struct {
	PERCPU_ARRAY_OF(struct waited, 2 * HOWS);
} elsewhere SEC(".maps");

struct {
	PERCPU_ARRAY_OF(struct wait, 1);
} scratch SEC(".maps");

struct {
	STACKS_OF(DEPTH, 8192);
} stacks SEC(".maps");

struct settings {
	u64 worth_ns; /* a stack */
	u64 slow_ns; /* an event */
};

struct {
	ARRAY_OF(struct settings, 1);
} settings SEC(".maps");

struct slow {
	u64 at_ns, waited_ns;
	u32 before;
	u32 unused;
	char comm[16];
	struct wait wait;
};

/* One that waits at this moment, as the iterator tells it. */
struct present {
	u64 waited_ns, not_on_cpu_ns;
	u32 before;
	u32 known;
	char comm[16];
	struct wait wait;
};

struct {
	PERCPU_ARRAY_OF(struct present, 1);
} presents SEC(".maps");

INLINE u32 how_of(u64 state)
{
	if (state & (TASK_RTLOCK_WAIT | TASK_FROZEN))
		return STUCK;
	if (state & TASK_UNINTERRUPTIBLE)
		return state & TASK_NOLOAD ? SLEEPS : STUCK;
	return state & TASK_STOPPED_OR_TRACED ? STOPPED : SLEEPS;
}

INLINE void add(struct waited *sum, u64 waited_ns)
{
	sum->count++;
	sum->sum_ns += waited_ns;
	if (waited_ns > sum->longest_ns)
		sum->longest_ns = waited_ns;
}

INLINE void add_elsewhere(u32 place, u64 waited_ns)
{
	struct waited *sum = bpf_map_lookup_elem(&elsewhere, &place);

	if (sum)
		add(sum, waited_ns);
}

/* A task's own key is in use on one CPU at a time: nothing here needs to be atomic. */
INLINE void add_wait(struct wait *key, u64 waited_ns)
{
	struct waited *known = bpf_map_lookup_elem(&waits, key);
	struct waited fresh = { .count = 1, .sum_ns = waited_ns, .longest_ns = waited_ns };

	if (known)
		add(known, waited_ns);
	else if (bpf_map_update_elem(&waits, key, &fresh, 0))
		add_elsewhere(HOWS + (key->how < HOWS ? key->how : 0), waited_ns);
}

INLINE void describe(struct wait *key, struct task_struct *task, struct waiting *own)
{
	key->tid = READ(task, pid);
	key->tgid = READ(task, tgid);
	key->exec = exec_of(task);
	key->how = own->how;
	key->user = own->user;
	key->unused = 0;
}

INLINE void tell(struct wait *key, struct task_struct *task, struct waiting *own, u64 now,
		 u64 waited_ns)
{
	struct slow *event = event_room(sizeof(*event));

	if (!event)
		return;
	event->at_ns = now;
	event->waited_ns = waited_ns;
	event->before = own->before;
	event->unused = 0;
	READ_STR(event->comm, task, comm);
	__builtin_memcpy(&event->wait, key, sizeof(*key));
	event_done(event);
}

INLINE void begin(u64 *context, struct task_struct *task, u64 state, u64 now)
{
	struct waiting fresh = {}, *own;
	u32 tid = task->pid;

	own = bpf_map_lookup_elem(&waiting, &tid);
	if (!own) {
		if (bpf_map_update_elem(&waiting, &tid, &fresh, BPF_NOEXIST)) {
			count_lost();
			return;
		}
		own = bpf_map_lookup_elem(&waiting, &tid);
		if (!own)
			return;
		note_image(task, task->tgid, exec_of(task));
	}
	own->user = -1;
	if (!own->brief)
		own->user = bpf_get_stackid(context, &stacks, BPF_F_USER_STACK);
	own->how = how_of(state);
	own->before = 0;
	own->since_ns = now;
}

INLINE void end(struct task_struct *task, u64 now)
{
	struct settings *set = bpf_map_lookup_elem(&settings, &(u32){ 0 });
	struct wait *key = bpf_map_lookup_elem(&scratch, &(u32){ 0 });
	u32 tid = task->pid;
	struct waiting *own = bpf_map_lookup_elem(&waiting, &tid);
	u64 waited_ns;

	if (!own || !own->since_ns || !set || !key)
		return;
	waited_ns = now - own->since_ns;
	own->since_ns = 0;
	own->brief = waited_ns < set->worth_ns;
	if (own->brief) {
		add_elsewhere(own->how < HOWS ? own->how : 0, waited_ns);
		return;
	}
	describe(key, task, own);
	if (bpf_get_task_stack(task, key->frames, sizeof(key->frames), 0) < 0)
		key->frames[0] = 0;
	note_image(task, key->tgid, key->exec);
	add_wait(key, waited_ns);
	if (own->how == STUCK && waited_ns >= set->slow_ns)
		tell(key, task, own, now, waited_ns);
}

SEC("tp_btf/sched_switch")
int on_switch(u64 *context)
{
	struct task_struct *prev = (struct task_struct *)context[1];
	struct task_struct *next = (struct task_struct *)context[2];
	u64 state, now = bpf_ktime_get_ns();
	u32 tid;

	if (next->pid)
		end(next, now);
	/* The first argument: it was preempted, and would rather run. */
	if (!prev->pid || (u8)context[0])
		return 0;
	if (TYPE_EXISTS(btf_trace_sched_switch))
		state = (u32)context[3];
	else
		state = state_of(prev);
	if (!state)
		return 0;
	if (state & TASK_DEAD) {
		tid = prev->pid;
		bpf_map_delete_elem(&waiting, &tid);
	} else if (slot_of(prev)) {
		begin(context, prev, state, now);
	}
	return 0;
}

/* How long ago it was given a CPU, by the run queues' clock; 0: the kernel does not know. */
INLINE u64 not_on_cpu(struct task_struct *task)
{
	struct task_struct___off *here = (struct task_struct___off *)current_task();
	u64 now = READ(READ(READ(here, se.cfs_rq), rq), clock);
	u64 then = READ((struct task_struct___off *)task, sched_info.last_arrival);

	return then && now > then ? now - then : 0;
}

/* The stamp of one that waits; those who did when the trace began get theirs now. */
INLINE struct waiting *stamp(struct task_struct *task, u64 state, u64 now)
{
	struct waiting fresh = { .since_ns = now, .user = -1, .how = how_of(state), .before = 1 };
	u32 tid = READ(task, pid);

	bpf_map_update_elem(&waiting, &tid, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(&waiting, &tid);
}

SEC("iter/task")
int on_task(struct bpf_iter__task *context)
{
	struct present *told = bpf_map_lookup_elem(&presents, &(u32){ 0 });
	struct seq_file *seq = context->meta->seq;
	struct task_struct *task = context->task;
	struct waiting *own, unknown = { .user = -1 };
	u64 state, since_ns, now = bpf_ktime_get_ns();

	if (!task || !told)
		return 0;
	state = state_of(task);
	if (!state || state & TASK_DEAD || READ((struct task_struct___off *)task, on_cpu))
		return 0;
	if (!slot_of(task))
		return 0;
	own = stamp(task, state, now);
	/* Read once: another CPU may be switching to it. 0: it is about to run. */
	since_ns = own ? *(volatile u64 *)&own->since_ns : now;
	if (!since_ns)
		return 0;
	told->known = !!own;
	if (!own) {
		unknown.how = how_of(state);
		own = &unknown;
	}
	describe(&told->wait, task, own);
	if (bpf_get_task_stack(task, told->wait.frames, sizeof(told->wait.frames), 0) < 0)
		told->wait.frames[0] = 0;
	note_image(task, told->wait.tgid, told->wait.exec);
	told->waited_ns = now > since_ns ? now - since_ns : 0;
	told->before = own->before;
	told->not_on_cpu_ns = not_on_cpu(task);
	READ_STR(told->comm, task, comm);
	bpf_seq_write(seq, told, sizeof(*told));
	return 0;
}

LICENSE_SECTION;
