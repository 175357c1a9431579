/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How long one function of the kernel takes for a container's tasks. Which function is chosen when
 * the two programs are attached (Object.attach_kprobe).
 *
 * A function may call itself, and an interrupt may call it while a task is in it. So each task has
 * a small stack of calls that are open. A return tells which of them it ends by its stack pointer:
 * a call whose return was never seen is then found and left out, and does not spoil those around it.
 *
 * The kernel has room for only so many returns at once (maxactive, Documentation/trace/kprobes.rst).
 * The program at the begin runs after the kernel has put its trampoline in place of the return
 * address, or has had no room to: so it sees there whether the return will be seen.
 */
#include "scope.h"

#define BUCKETS 40
#define MOST_WATCHED 256
#define MOST_OPEN 8

struct pt_regs {
	unsigned long sp;
} CORE;

/* One for each container, of each CPU its own. `bucket[n]` counts calls of 2^n to 2^(n+1) ns. */
struct calls {
	u64 entered, count, sum_ns, longest_ns;
	u64 nested; /* calls from within another one, */
	u64 outer_ns; /* so the sum without them */
	u64 unpaired; /* their return was not seen */
	u64 untold; /* there was no room to note that they began */
	u64 bucket[BUCKETS];
};

struct {
	PERCPU_ARRAY_OF(struct calls, MOST_WATCHED);
} calls SEC(".maps");

struct call {
	u64 at_ns;
	u64 sp; /* bit 0: its return will not be seen */
};

#define UNWATCHED 1ULL

/* Where calls return to whose return is watched; 0: not known. */
struct {
	ARRAY_OF(u64, 1);
} trampoline SEC(".maps");

struct task_calls {
	u32 slot, depth;
	struct call open[MOST_OPEN];
};

/* Of each task that is in the function now. */
struct {
	HASH_OF(u64, struct task_calls, 16384);
} inside SEC(".maps");

struct caller {
	u32 slot, pid;
};

struct by_caller {
	u64 count, sum_ns, longest_ns;
	char comm[16];
};

struct {
	LRU_HASH_OF(struct caller, struct by_caller, 4096);
} callers SEC(".maps");

/* Where the call stands on its stack, with what is known of its return. */
INLINE u64 place_of(struct pt_regs *registers)
{
	u32 zero = 0;
	u64 sp = 0, back = 0, *watched;

	if (!FIELD_EXISTS(registers->sp))
		return 0;
	sp = registers->sp & ~7ULL;
	watched = bpf_map_lookup_elem(&trampoline, &zero);
	if (!watched || !*watched)
		return sp;
	bpf_probe_read_kernel(&back, sizeof(back), (void *)sp);
	return back == *watched ? sp : sp | UNWATCHED;
}

/* Stacks begin at multiples of their size, which is 16 KiB or more (THREAD_SIZE, IRQ_STACK_SIZE). */
INLINE int same_stack(u64 one, u64 other)
{
	return one >> 14 == other >> 14;
}

INLINE struct call *call_at(struct task_calls *task, u64 index)
{
	/* The compiler may know that the mask does nothing; the verifier may not. */
	asm volatile("" : "+r"(index));
	return &task->open[index & (MOST_OPEN - 1)];
}

INLINE struct calls *calls_of(u32 slot)
{
	slot &= MOST_WATCHED - 1;
	return bpf_map_lookup_elem(&calls, &slot);
}

/* Calls that are over, though their return was not seen: another one begins at or above their
 * place. Those that are not watched may be over: nobody will tell. */
INLINE void leave_stale(struct task_calls *task, struct calls *sums, u64 sp)
{
	for (int i = 0; i < MOST_OPEN; i++) {
		struct call *last;

		if (!task->depth)
			return;
		last = call_at(task, task->depth - 1);
		if (!(last->sp & UNWATCHED) && (!sp || last->sp > sp || !same_stack(last->sp, sp)))
			return;
		task->depth--;
		sums->unpaired++;
	}
}

INLINE void open_call(struct task_calls *task, struct calls *sums, u64 place)
{
	struct call *call;

	leave_stale(task, sums, place & ~UNWATCHED);
	if (task->depth >= MOST_OPEN) {
		sums->untold++;
		return;
	}
	call = call_at(task, task->depth);
	call->sp = place;
	task->depth++;
	call->at_ns = bpf_ktime_get_ns();
}

SEC("kprobe")
int on_enter(struct pt_regs *registers)
{
	u32 slot = slot_of(current_task());
	u64 tid = (u32)bpf_get_current_pid_tgid(), place;
	struct task_calls *task;
	struct calls *sums;

	if (!slot)
		return 0;
	if (!tid) /* the idle tasks all have it; interrupts may come while one runs */
		tid = (u64)bpf_get_smp_processor_id() << 32;
	sums = calls_of(slot);
	if (!sums)
		return 0;
	sums->entered++;
	place = place_of(registers);
	task = bpf_map_lookup_elem(&inside, &tid);
	if (!task) {
		struct task_calls fresh = { .slot = slot };

		fresh.depth = 1;
		fresh.open[0].sp = place;
		fresh.open[0].at_ns = bpf_ktime_get_ns();
		if (bpf_map_update_elem(&inside, &tid, &fresh, 0))
			sums->untold++;
		return 0;
	}
	task->slot = slot;
	open_call(task, sums, place);
	return 0;
}

/* The call that this return ends: its begin, or 0 where that was not seen. */
INLINE u64 close_call(struct task_calls *task, struct calls *sums, u64 sp)
{
	for (int i = 0; i < MOST_OPEN; i++) {
		struct call *last;
		u64 at, began;

		if (!task->depth)
			return 0;
		last = call_at(task, task->depth - 1);
		began = last->sp & ~UNWATCHED;
		/* A return pops its own address, so it is one word above where the call began. */
		if (sp && same_stack(began, sp) && began > sp)
			return 0;
		at = last->at_ns;
		task->depth--;
		if (!sp || (sp - began <= 16 && same_stack(began, sp)))
			return at;
		sums->unpaired++;
	}
	return 0;
}

INLINE void count_caller(u32 slot, u64 took)
{
	struct caller key = { .slot = slot, .pid = bpf_get_current_pid_tgid() >> 32 };
	struct by_caller *known = bpf_map_lookup_elem(&callers, &key), fresh = {};

	if (known) {
		__sync_fetch_and_add(&known->count, 1);
		__sync_fetch_and_add(&known->sum_ns, took);
		if (took > known->longest_ns)
			known->longest_ns = took;
		return;
	}
	fresh.count = 1;
	fresh.sum_ns = fresh.longest_ns = took;
	bpf_get_current_comm(fresh.comm, sizeof(fresh.comm));
	bpf_map_update_elem(&callers, &key, &fresh, 0);
}

SEC("kretprobe")
int on_return(struct pt_regs *registers)
{
	u64 now = bpf_ktime_get_ns(), tid = (u32)bpf_get_current_pid_tgid(), at, took;
	struct task_calls *task;
	struct calls *sums;
	u32 slot, depth, bucket;

	if (!tid)
		tid = (u64)bpf_get_smp_processor_id() << 32;
	task = bpf_map_lookup_elem(&inside, &tid);
	if (!task)
		return 0;
	slot = task->slot;
	sums = calls_of(slot);
	if (!sums)
		return 0;
	at = close_call(task, sums, FIELD_EXISTS(registers->sp) ? registers->sp : 0);
	depth = task->depth;
	if (!depth)
		bpf_map_delete_elem(&inside, &tid);
	if (!at)
		return 0;
	took = now - at;
	bucket = log2(took);
	sums->bucket[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
	sums->count++;
	sums->sum_ns += took;
	if (depth)
		sums->nested++;
	else
		sums->outer_ns += took;
	if (took > sums->longest_ns)
		sums->longest_ns = took;
	count_caller(slot, took);
	return 0;
}

LICENSE_SECTION;
