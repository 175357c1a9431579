/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where the time of a container's slow writes to files goes: each call is timed from its entry to
 * its exit, and what it was not running is put down to the place in the kernel where it slept, to
 * reclaim, or to the wait for a CPU. These add up to the call's time; what is left is running.
 *
 * What must be walked, a stack, is walked when a task sleeps within such a call, and at no other
 * time.
 */
#include "events.h"
#include "scope.h"

#define MOST_CALLS 512
#define PLACES 8
#define DEPTH 32
#define BUCKETS 32
#define MOST_WATCHED 256

#define S_IFMT 0170000
#define S_IFREG 0100000
#define S_IFBLK 0060000
#define O_DSYNC 010000
#define O_DIRECT_X86 040000
#define O_DIRECT_ARM64 0200000

enum kind { BUFFERED, SYNCED, SYNC, KINDS };

/* 0: it is not looked at; 1: it writes; 2: it syncs. By the names (sensors/writes.py). */
struct {
	ARRAY_OF(u32, MOST_CALLS);
} calls SEC(".maps");

/* From which length on a call is told. */
struct {
	ARRAY_OF(u64, 1);
} slower SEC(".maps");

struct {
	STACKS_OF(DEPTH, 4096);
} stacks SEC(".maps");

struct place {
	u64 ns;
	s32 stack;
	u32 count;
};

/* A call that a task is in. */
struct writing {
	u64 at_ns; /* 0: none */
	u64 off_ns; /* since when it does not run; 0: it runs */
	u64 reclaim_at_ns; /* 0: it does not reclaim */
	u64 reclaim_ns, cpu_ns, other_ns;
	u64 inode;
	u32 slot, number, kind, pid;
	s32 stack; /* where it sleeps; negative: not known */
	u32 preempted; /* it does not sleep: it would rather run */
	char comm[16];
	struct place place[PLACES];
};

struct {
	HASH_OF(u32, struct writing, 8192);
} writing SEC(".maps");

/* Zeros: it is never written. */
struct {
	PERCPU_ARRAY_OF(struct writing, 1);
} nothing SEC(".maps");

/* How long all calls took: `bucket[n]` of 2^n to 2^(n+1) us. */
struct lengths {
	u64 count, sum_ns;
	u32 bucket[BUCKETS];
};

struct which {
	u32 slot, kind;
};

struct {
	HASH_OF(struct which, struct lengths, 1024);
} lengths SEC(".maps");

struct told {
	u64 at_ns, took_ns;
	u32 tid, unused;
	struct writing call;
};

struct pt_regs___x86 {
	u64 di, cs;
} CORE;

struct pt_regs___arm64 {
	u64 regs[31];
	u64 pstate;
} CORE;

struct inode {
	u16 i_mode;
	u64 i_ino;
} CORE;

struct file {
	struct inode *f_inode;
	u32 f_flags;
} CORE;

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
} CORE;

struct files_struct {
	struct fdtable *fdt;
} CORE;

struct rq {
	u64 clock;
} CORE;

struct cfs_rq {
	struct rq *rq;
} CORE;

struct sched_entity {
	struct cfs_rq *cfs_rq;
} CORE;

struct task_struct___write {
	struct files_struct *files;
	struct sched_entity se;
} CORE;

#define ON_X86 FIELD_EXISTS(((struct pt_regs___x86 *)0)->di)

INLINE u64 first_argument(u64 registers)
{
	struct pt_regs___x86 *x86 = (struct pt_regs___x86 *)registers;
	struct pt_regs___arm64 *arm64 = (struct pt_regs___arm64 *)registers;

	if (ON_X86)
		return READ(x86, di);
	return READ(arm64, regs[0]);
}

/* A 32-bit program's calls have other numbers: __USER32_CS, PSR_MODE32_BIT. */
INLINE bool is_compat(u64 registers)
{
	struct pt_regs___x86 *x86 = (struct pt_regs___x86 *)registers;
	struct pt_regs___arm64 *arm64 = (struct pt_regs___arm64 *)registers;

	if (ON_X86)
		return (READ(x86, cs) & 0xffff) == 0x23;
	return READ(arm64, pstate) & 0x10;
}

INLINE struct file *file_of(struct task_struct *task, u64 descriptor)
{
	struct fdtable *table = READ(READ((struct task_struct___write *)task, files), fdt);
	struct file *file = NULL;

	if (descriptor >= READ(table, max_fds))
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), READ(table, fd) + descriptor);
	return file;
}

INLINE u32 kind_of(struct file *file, u32 call)
{
	u32 direct = ON_X86 ? O_DIRECT_X86 : O_DIRECT_ARM64;

	if (call == 2)
		return SYNC;
	return READ(file, f_flags) & (O_DSYNC | direct) ? SYNCED : BUFFERED;
}

SEC("tp_btf/sys_enter")
int on_enter(u64 *context)
{
	struct task_struct *task;
	struct writing *own, *zeros;
	struct file *file;
	u32 number = context[1], tid, slot, *call, zero = 0;
	u16 type;

	if (number >= MOST_CALLS)
		return 0;
	call = bpf_map_lookup_elem(&calls, &number);
	if (!call || !*call)
		return 0;
	task = current_task();
	slot = slot_of(task);
	if (!slot || is_compat(context[0]))
		return 0;
	file = file_of(task, (u32)first_argument(context[0]));
	type = READ(READ(file, f_inode), i_mode) & S_IFMT;
	/* Writing to a pipe or a socket is waiting for somebody, not for a file. */
	if (!file || (type != S_IFREG && type != S_IFBLK))
		return 0;
	tid = bpf_get_current_pid_tgid();
	own = bpf_map_lookup_elem(&writing, &tid);
	if (!own) {
		zeros = bpf_map_lookup_elem(&nothing, &zero);
		if (!zeros || bpf_map_update_elem(&writing, &tid, zeros, 0)) {
			count_lost();
			return 0;
		}
		own = bpf_map_lookup_elem(&writing, &tid);
		if (!own)
			return 0;
	}
	own->off_ns = own->reclaim_at_ns = 0;
	own->reclaim_ns = own->cpu_ns = own->other_ns = 0;
	__builtin_memset(own->place, 0, sizeof(own->place));
	own->inode = READ(READ(file, f_inode), i_ino);
	own->slot = slot;
	own->number = number;
	own->kind = kind_of(file, *call);
	own->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(own->comm, sizeof(own->comm));
	own->at_ns = bpf_ktime_get_ns();
	return 0;
}

INLINE void note_length(struct writing *own, u64 took)
{
	struct which key = { .slot = own->slot, .kind = own->kind };
	struct lengths *known = bpf_map_lookup_elem(&lengths, &key), fresh = {};
	u32 bucket = log2(took / 1000);

	if (!known) {
		bpf_map_update_elem(&lengths, &key, &fresh, 1 /* BPF_NOEXIST */);
		known = bpf_map_lookup_elem(&lengths, &key);
		if (!known)
			return;
	}
	if (bucket >= BUCKETS)
		bucket = BUCKETS - 1;
	__sync_fetch_and_add(&known->count, 1);
	__sync_fetch_and_add(&known->sum_ns, took);
	__sync_fetch_and_add(&known->bucket[bucket & (BUCKETS - 1)], 1);
}

SEC("tp_btf/sys_exit")
int on_exit(u64 *context)
{
	u32 tid = bpf_get_current_pid_tgid(), zero = 0;
	struct writing *own = bpf_map_lookup_elem(&writing, &tid);
	struct told *event;
	u64 now, took, *least;

	if (!own || !own->at_ns)
		return 0;
	now = bpf_ktime_get_ns();
	took = now - own->at_ns;
	note_length(own, took);
	least = bpf_map_lookup_elem(&slower, &zero);
	if (least && took >= *least) {
		event = event_room(sizeof(*event));
		if (event) {
			event->at_ns = now;
			event->took_ns = took;
			event->tid = tid;
			event->unused = 0;
			__builtin_memcpy(&event->call, own, sizeof(*own));
			event_done(event);
		}
	}
	own->at_ns = 0;
	return 0;
}

INLINE void put_down(struct writing *own, u64 ns)
{
	for (int i = 0; i < PLACES; i++) {
		if (own->place[i].count && own->place[i].stack != own->stack)
			continue;
		own->place[i].stack = own->stack;
		own->place[i].count++;
		own->place[i].ns += ns;
		return;
	}
	own->other_ns += ns;
}

/* How long it was ready to run and did not, by the kernel's own note (sched_info.last_queued). */
INLINE u64 wait_for_cpu(struct task_struct *task, u64 away)
{
	u64 queued = task->sched_info.last_queued, waited;

	if (!queued)
		return 0;
	waited = ((struct task_struct___write *)task)->se.cfs_rq->rq->clock - queued;
	if ((s64)waited < 0)
		return 0;
	return waited < away ? waited : away;
}

INLINE void back(struct task_struct *task, u64 now)
{
	u32 tid = task->pid;
	struct writing *own = bpf_map_lookup_elem(&writing, &tid);
	u64 away, waited;

	if (!own || !own->at_ns || !own->off_ns)
		return;
	away = now - own->off_ns;
	own->off_ns = 0;
	if (own->reclaim_at_ns)
		return; /* all of that is reclaim */
	waited = own->preempted ? away : wait_for_cpu(task, away);
	own->cpu_ns += waited;
	if (!own->preempted)
		put_down(own, away - waited);
}

INLINE void away(u64 *context, struct task_struct *task, u64 now)
{
	u32 tid = task->pid;
	struct writing *own = bpf_map_lookup_elem(&writing, &tid);

	if (!own || !own->at_ns)
		return;
	own->preempted = (u8)context[0] || !state_of(task);
	own->stack = -1;
	if (!own->preempted && !own->reclaim_at_ns)
		own->stack = bpf_get_stackid(context, &stacks, 0);
	own->off_ns = now;
}

SEC("tp_btf/sched_switch")
int on_switch(u64 *context)
{
	struct task_struct *prev = (struct task_struct *)context[1];
	struct task_struct *next = (struct task_struct *)context[2];
	u64 now = bpf_ktime_get_ns();

	if (next->pid)
		back(next, now);
	if (prev->pid)
		away(context, prev, now);
	return 0;
}

INLINE struct writing *current_call(void)
{
	u32 tid = bpf_get_current_pid_tgid();
	struct writing *own = bpf_map_lookup_elem(&writing, &tid);

	return own && own->at_ns ? own : NULL;
}

INLINE int reclaims(void)
{
	struct writing *own = current_call();

	if (own && !own->reclaim_at_ns)
		own->reclaim_at_ns = bpf_ktime_get_ns();
	return 0;
}

INLINE int reclaimed(void)
{
	struct writing *own = current_call();

	if (own && own->reclaim_at_ns) {
		own->reclaim_ns += bpf_ktime_get_ns() - own->reclaim_at_ns;
		own->reclaim_at_ns = 0;
	}
	return 0;
}

SEC("raw_tp/mm_vmscan_memcg_reclaim_begin")
int on_group_begin(void *context)
{
	return reclaims();
}

SEC("raw_tp/mm_vmscan_memcg_reclaim_end")
int on_group_end(void *context)
{
	return reclaimed();
}

SEC("raw_tp/mm_vmscan_direct_reclaim_begin")
int on_direct_begin(void *context)
{
	return reclaims();
}

SEC("raw_tp/mm_vmscan_direct_reclaim_end")
int on_direct_end(void *context)
{
	return reclaimed();
}

LICENSE_SECTION;
