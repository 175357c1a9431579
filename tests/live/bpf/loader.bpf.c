/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* One program of each kind that the loader can attach, one map of each kind that it can read. */
#include "core.h"
#include "events.h"

#define WATCHED_PID 0

/* Who is counted: value 0 of `settings`. */
struct {
	ARRAY_OF(u64, 1);
} settings SEC(".maps");

struct {
	HASH_OF(u32, u64, 64);
} by_kind SEC(".maps");

struct {
	LRU_HASH_OF(u32, u64, 16);
} recent SEC(".maps");

struct {
	PERCPU_ARRAY_OF(u64, 4);
} percpu SEC(".maps");

struct {
	ARRAY_OF(u64, 4);
	MAP_NUMBER(map_flags, BPF_F_MMAPABLE);
} memory SEC(".maps");

struct {
	STACKS_OF(127, 64);
} stacks SEC(".maps");

enum { TRACEPOINT = 1, RAW, TYPED, KPROBE, UPROBE, CLOCK };

INLINE bool watched(void)
{
	u64 *pid = bpf_map_lookup_elem(&settings, &(u32){ WATCHED_PID });

	return pid && *pid == bpf_get_current_pid_tgid() >> 32;
}

INLINE int count(u32 kind)
{
	u64 one = 1, *known;

	if (!watched())
		return 0;
	known = bpf_map_lookup_elem(&by_kind, &kind);
	if (known)
		__sync_fetch_and_add(known, 1);
	else
		bpf_map_update_elem(&by_kind, &kind, &one, 0);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_getppid")
int on_tracepoint(void *context)
{
	u32 zero = 0, stack, *event;
	u64 *mine = bpf_map_lookup_elem(&percpu, &zero), one = 1;

	if (!watched())
		return 0;
	if (mine)
		++*mine;
	/* At a system call's own tracepoint old kernels know the stack of user space alone (5.10,
	 * measured: of the kernel's it says EFAULT). */
	stack = bpf_get_stackid(context, &stacks, 1 << 8 /* BPF_F_USER_STACK */);
	bpf_map_update_elem(&recent, &stack, &one, 0);
	event = event_room(sizeof(*event));
	if (event) {
		*event = 77;
		event_done(event);
	}
	return count(TRACEPOINT);
}

SEC("raw_tp/sched_process_exec")
int on_raw(u64 *context)
{
	return count(RAW);
}

SEC("tp_btf/sched_process_fork")
int on_typed(u64 *context)
{
	return count(TYPED);
}

SEC("kprobe/do_sys_openat2")
int on_kprobe(void *context)
{
	return count(KPROBE);
}

SEC("uprobe")
int on_uprobe(void *context)
{
	return count(UPROBE);
}

SEC("perf_event")
int on_clock(void *context)
{
	return count(CLOCK);
}

struct bpf_iter_meta {
	void *seq;
} CORE;

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
} CORE;

SEC("iter/task")
int each_task(struct bpf_iter__task *context)
{
	struct task_struct *task = context->task;
	u32 pid;

	if (!task)
		return 0;
	pid = task->pid;
	bpf_seq_write(context->meta->seq, &pid, sizeof(pid));
	return 0;
}

struct two {
	u64 a, b;
};

SEC("syscall")
int add(struct two *two)
{
	u64 *sum = bpf_map_lookup_elem(&memory, &(u32){ 1 });

	if (sum)
		*sum = two->a + two->b;
	return two->a + two->b;
}

LICENSE_SECTION;
