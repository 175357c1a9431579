/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who holds the CPUs in interrupts: softirqs, the timers run in them, high-resolution timers, and
 * handlers of devices; and how much of it interrupted a container's tasks.
 *
 * An interrupt belongs to no container: it runs on top of whatever task the CPU had. So everything
 * is summed for the host, and what the interrupted task's container lost is summed for that.
 */
#include "events.h"
#include "scope.h"

#define VECTORS 16 /* 10 are in use (include/linux/interrupt.h, enum for open_softirq) */
#define BUCKETS 32
#define MOST_WATCHED 256

/* What can be on top of a task; softirqs by their vector. */
enum kind { KIND_SOFTIRQ, KIND_TIMER, KIND_HRTIMER, KIND_IRQ };

/* What a container lost: softirqs by their vector, then these. */
#define LOST_TO_HRTIMERS 14
#define LOST_TO_IRQS 15

struct timer_list {
	void *function;
} CORE;

struct hrtimer {
	void *function;
} CORE;

struct irqaction {
	const char *name;
} CORE;

/* One that began on this CPU and has not ended. */
struct running {
	u64 at_ns, what, function;
	u32 slot, thread;
};

/* Softirq, timer, two for hrtimers, irq: one in a softirq may be interrupted by one in an irq. */
enum place { IN_SOFTIRQ, IN_TIMER, IN_HRTIMER, IN_HRTIMER_ABOVE, IN_IRQ, PLACES };

struct {
	PERCPU_ARRAY_OF(struct running, PLACES);
} running SEC(".maps");

/* One for each vector, of each CPU its own. `bucket[n]` counts those of 2^n to 2^(n+1) us. */
struct held {
	u64 count, sum_ns, longest_ns;
	u64 thread_count, thread_ns; /* of those, run by ksoftirqd */
	u32 bucket[BUCKETS];
};

struct {
	PERCPU_ARRAY_OF(struct held, VECTORS);
} softirqs SEC(".maps");

struct taken {
	u64 count, sum_ns, longest_ns;
};

struct {
	PERCPU_ARRAY_OF(struct taken, MOST_WATCHED * VECTORS);
} taken SEC(".maps");

/* By what was called: a timer's function, or an interrupt's number. */
struct callee {
	u64 function;
	u32 kind, number;
};

struct callee_sums {
	u64 count, sum_ns, longest_ns;
	/* Of the timer that was seen first, from one expiry to the next. */
	u64 last_ns, timer, several, gaps, gap_sum_ns, gap_least_ns, gap_most_ns;
	char name[16];
};

struct {
	HASH_OF(struct callee, struct callee_sums, 2048);
} callees SEC(".maps");

/* A single one that was long. */
struct slow {
	u64 at_ns, took_ns, function;
	u32 kind, number, cpu, slot, pid, tid, thread;
	char comm[16];
	char name[16];
};

/* Single ones are told from this length on. */
struct {
	ARRAY_OF(u64, 1);
} slower SEC(".maps");

INLINE int is_slow(u64 took)
{
	u32 zero = 0;
	u64 *from = bpf_map_lookup_elem(&slower, &zero);

	return from && *from && took >= *from;
}

INLINE struct running *running_in(u32 place)
{
	return bpf_map_lookup_elem(&running, &place);
}

/* ksoftirqd/N: there the softirq interrupts nobody. */
INLINE u32 in_ksoftirqd(struct task_struct *task)
{
	char comm[16] = {};

	if (!(READ(task, flags) & PF_KTHREAD))
		return 0;
	READ_STR(comm, task, comm);
	return comm[0] == 'k' && comm[1] == 's' && comm[2] == 'o' && comm[3] == 'f' &&
	       comm[4] == 't' && comm[5] == 'i';
}

INLINE void begin(struct running *one, u64 what, u64 function)
{
	one->slot = slot_of(current_task());
	one->what = what;
	one->function = function;
	one->at_ns = bpf_ktime_get_ns();
}

/* How long it took, or 0 where its begin was not seen. */
INLINE u64 end(struct running *one)
{
	u64 at = one->at_ns, took = bpf_ktime_get_ns() - at;

	one->at_ns = 0;
	return !at ? 0 : took ? took : 1;
}

INLINE void take_from(u32 slot, u32 by, u64 took)
{
	u32 at = (slot & (MOST_WATCHED - 1)) * VECTORS + (by & (VECTORS - 1));
	struct taken *sums;

	if (!slot)
		return;
	sums = bpf_map_lookup_elem(&taken, &at);
	if (!sums)
		return;
	sums->count++;
	sums->sum_ns += took;
	if (took > sums->longest_ns)
		sums->longest_ns = took;
}

INLINE void tell_slow(struct running *one, u32 kind, u64 took, const char *name)
{
	struct slow *event = event_room(sizeof(*event));
	u64 both = bpf_get_current_pid_tgid();

	if (!event)
		return;
	event->at_ns = bpf_ktime_get_ns() - took;
	event->took_ns = took;
	event->function = one->function;
	event->kind = kind;
	event->number = one->what;
	event->cpu = bpf_get_smp_processor_id();
	event->slot = one->slot;
	event->pid = both >> 32;
	event->tid = both;
	event->thread = kind == KIND_SOFTIRQ ? one->thread : 0;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	__builtin_memset(event->name, 0, sizeof(event->name));
	if (name)
		bpf_probe_read_kernel_str(event->name, sizeof(event->name), name);
	event_done(event);
}

/* How regularly a timer expires: of those that have the function, the one that was seen first. */
INLINE void note_gap(struct callee_sums *sums, u64 timer, u64 at)
{
	u64 gap = at - sums->last_ns;

	if (sums->timer != timer) {
		sums->several = 1;
		return;
	}
	if (gap >> 63)
		return;
	sums->last_ns = at;
	sums->gaps++;
	sums->gap_sum_ns += gap;
	if (gap > sums->gap_most_ns)
		sums->gap_most_ns = gap;
	if (gap < sums->gap_least_ns || !sums->gap_least_ns)
		sums->gap_least_ns = gap;
}

INLINE void count_callee(struct callee *key, u64 timer, u64 at, u64 took, const char *name)
{
	struct callee_sums *known = bpf_map_lookup_elem(&callees, key), fresh = {};

	if (known) {
		__sync_fetch_and_add(&known->count, 1);
		__sync_fetch_and_add(&known->sum_ns, took);
		if (took > known->longest_ns)
			known->longest_ns = took;
		if (timer)
			note_gap(known, timer, at);
		return;
	}
	fresh.count = 1;
	fresh.sum_ns = fresh.longest_ns = took;
	fresh.timer = timer;
	fresh.last_ns = at;
	if (name)
		bpf_probe_read_kernel_str(fresh.name, sizeof(fresh.name), name);
	if (bpf_map_update_elem(&callees, key, &fresh, 0))
		count_lost();
}

SEC("tp_btf/softirq_entry")
int on_softirq(u64 *context)
{
	struct running *one = running_in(IN_SOFTIRQ);

	if (!one)
		return 0;
	begin(one, context[0], 0);
	one->thread = !one->slot && in_ksoftirqd(current_task());
	one->at_ns = bpf_ktime_get_ns();
	return 0;
}

SEC("tp_btf/softirq_exit")
int on_softirq_end(u64 *context)
{
	struct running *one = running_in(IN_SOFTIRQ);
	u32 vector = context[0] & (VECTORS - 1), bucket;
	struct held *sums;
	u64 took;

	sums = bpf_map_lookup_elem(&softirqs, &vector);
	if (!one || !sums)
		return 0;
	took = end(one);
	if (!took || one->what != vector)
		return 0;
	bucket = log2(took / 1000);
	sums->bucket[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
	sums->count++;
	sums->sum_ns += took;
	if (took > sums->longest_ns)
		sums->longest_ns = took;
	if (one->thread) {
		sums->thread_count++;
		sums->thread_ns += took;
	}
	take_from(one->slot, vector, took);
	if (is_slow(took))
		tell_slow(one, KIND_SOFTIRQ, took, NULL);
	return 0;
}

SEC("tp_btf/timer_expire_entry")
int on_timer(u64 *context)
{
	struct timer_list *timer = (struct timer_list *)context[0];
	struct running *one = running_in(IN_TIMER);

	if (one)
		begin(one, (u64)timer, (u64)timer->function);
	return 0;
}

SEC("tp_btf/timer_expire_exit")
int on_timer_end(u64 *context)
{
	struct running *one = running_in(IN_TIMER);
	struct callee key = { .kind = KIND_TIMER };
	u64 at, took;

	if (!one)
		return 0;
	at = one->at_ns;
	took = end(one);
	if (!took || one->what != context[0])
		return 0;
	key.function = one->function;
	count_callee(&key, one->what, at, took, NULL);
	if (is_slow(took))
		tell_slow(one, KIND_TIMER, took, NULL);
	return 0;
}

SEC("tp_btf/hrtimer_expire_entry")
int on_hrtimer(u64 *context)
{
	struct hrtimer *timer = (struct hrtimer *)context[0];
	struct running *one = running_in(IN_HRTIMER);

	if (one && one->at_ns)
		one = running_in(IN_HRTIMER_ABOVE);
	if (one)
		begin(one, (u64)timer, (u64)timer->function);
	return 0;
}

SEC("tp_btf/hrtimer_expire_exit")
int on_hrtimer_end(u64 *context)
{
	struct running *one = running_in(IN_HRTIMER_ABOVE);
	struct callee key = { .kind = KIND_HRTIMER };
	u64 at, took;

	if (one && !(one->at_ns && one->what == context[0]))
		one = running_in(IN_HRTIMER);
	if (!one)
		return 0;
	at = one->at_ns;
	took = end(one);
	if (!took || one->what != context[0])
		return 0;
	key.function = one->function;
	count_callee(&key, one->what, at, took, NULL);
	take_from(one->slot, LOST_TO_HRTIMERS, took);
	if (is_slow(took))
		tell_slow(one, KIND_HRTIMER, took, NULL);
	return 0;
}

SEC("tp_btf/irq_handler_entry")
int on_irq(u64 *context)
{
	struct running *one = running_in(IN_IRQ);

	if (one)
		begin(one, (u32)context[0], context[1]);
	return 0;
}

SEC("tp_btf/irq_handler_exit")
int on_irq_end(u64 *context)
{
	struct irqaction *action = (struct irqaction *)context[1];
	struct callee key = { .kind = KIND_IRQ, .number = context[0] };
	struct running *one = running_in(IN_IRQ);
	u64 took;

	if (!one)
		return 0;
	took = end(one);
	if (!took || one->function != context[1])
		return 0;
	count_callee(&key, 0, 0, took, action->name);
	take_from(one->slot, LOST_TO_IRQS, took);
	if (is_slow(took))
		tell_slow(one, KIND_IRQ, took, action->name);
	return 0;
}

LICENSE_SECTION;
