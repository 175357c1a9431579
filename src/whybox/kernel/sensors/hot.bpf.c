/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a container's tasks are doing whenever a clock on each CPU ticks: the stacks in user space
 * and in the kernel, counted.
 */
#include "image.h"
#include "scope.h"

/* As deep as the kernel walks by default (kernel.perf_event_max_stack). */
#define DEPTH 127
#define NO_PLACE (-17) /* -EEXIST: another stack has the same hash */

struct sample {
	u32 tgid, exec;
	s32 user, kernel; /* numbers in `stacks`, or an errno: -EFAULT where there is none */
};

/* Two of each: user space empties one pair while the other is written. */
struct {
	HASH_OF(struct sample, u64, 16384);
} samples SEC(".maps"), samples_too SEC(".maps");

struct {
	STACKS_OF(DEPTH, 8192);
} stacks SEC(".maps"), stacks_too SEC(".maps");

struct {
	ARRAY_OF(u32, 1);
} turn SEC(".maps");

struct {
	PERCPU_ARRAY_OF(u64, 1);
} lost SEC(".maps");

INLINE void count_lost(void)
{
	u64 *count = bpf_map_lookup_elem(&lost, &(u32){ 0 });

	if (count)
		++*count;
}

INLINE void count(void *samples, struct sample *key)
{
	u64 one = 1, *known = bpf_map_lookup_elem(samples, key);

	if (!known && !bpf_map_update_elem(samples, key, &one, BPF_NOEXIST))
		return;
	if (!known) /* no room, or another CPU was faster */
		known = bpf_map_lookup_elem(samples, key);
	if (known)
		__sync_fetch_and_add(known, 1);
	else
		count_lost();
}

INLINE void take(void *context, void *samples, void *stacks, struct sample *key)
{
	key->user = bpf_get_stackid(context, stacks, BPF_F_USER_STACK);
	key->kernel = bpf_get_stackid(context, stacks, 0);
	if (key->user == NO_PLACE || key->kernel == NO_PLACE)
		count_lost();
	count(samples, key);
}

SEC("perf_event")
int on_clock(void *context)
{
	struct task_struct *task = current_task();
	struct sample key = {};
	u32 *second;

	if (!READ(task, pid) || !slot_of(task))
		return 0;
	key.tgid = READ(task, tgid);
	key.exec = exec_of(task);
	note_image(task, key.tgid, key.exec);
	second = bpf_map_lookup_elem(&turn, &(u32){ 0 });
	if (second && *second)
		take(context, &samples_too, &stacks_too, &key);
	else
		take(context, &samples, &stacks, &key);
	return 0;
}

LICENSE_SECTION;
